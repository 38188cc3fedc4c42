// Gets an access token of a client with nothing but Node: node token.mjs CLIENT
//
// BROKER_URL and BROKER_CA tell where the broker is, and either BROKER_JWT (a file) or
// BROKER_CERT and BROKER_KEY who asks.
import { readFileSync } from 'node:fs'
import { request } from 'node:https'

const { BROKER_URL, BROKER_CA, BROKER_JWT, BROKER_CERT, BROKER_KEY } = process.env
const body = new URLSearchParams({ grant_type: 'client_credentials', client_id: process.argv[2] }).toString()
const headers = { 'content-type': 'application/x-www-form-urlencoded', 'content-length': Buffer.byteLength(body) }
const proof = {}
if (BROKER_JWT) {
  headers.authorization = `Bearer ${readFileSync(BROKER_JWT, 'ascii').trim()}`
} else {
  proof.cert = readFileSync(BROKER_CERT)
  proof.key = readFileSync(BROKER_KEY)
}
const asked = request(`${BROKER_URL}/oauth2/token`, { method: 'POST', headers, ca: readFileSync(BROKER_CA), ...proof }, (answer) => {
  let text = ''
  answer.setEncoding('utf8')
  answer.on('data', (part) => { text += part })
  answer.on('end', () => {
    process.exitCode = answer.statusCode === 200 ? 0 : 1
    process.stdout.write(text)
  })
})
asked.on('error', (err) => {
  process.exitCode = 1
  process.stderr.write(`${err.message}\n`)
})
asked.end(body)
