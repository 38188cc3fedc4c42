// Gets an access token of a client. It needs only Node: node token.mjs CLIENT
//
// BROKER_URL   the broker's HTTP listener, such as https://tokenbroker.example.com:8444
// BROKER_CA    a file with the authority of its certificate
// BROKER_JWT   a file with the caller's own JWT; or else:
// BROKER_CERT, BROKER_KEY   files with the caller's certificate and its key
import { readFileSync } from 'node:fs'
import { request } from 'node:https'

const { BROKER_URL, BROKER_CA, BROKER_JWT, BROKER_CERT, BROKER_KEY } = process.env
const body = new URLSearchParams({ grant_type: 'client_credentials', client_id: process.argv[2] }).toString()
const headers = { 'content-type': 'application/x-www-form-urlencoded', 'content-length': Buffer.byteLength(body) }
const certificate = {}
if (BROKER_JWT) {
  headers.authorization = `Bearer ${readFileSync(BROKER_JWT, 'ascii').trim()}`
} else {
  certificate.cert = readFileSync(BROKER_CERT)
  certificate.key = readFileSync(BROKER_KEY)
}
const call = request(`${BROKER_URL}/oauth2/token`, { method: 'POST', headers, ca: readFileSync(BROKER_CA), ...certificate }, (response) => {
  let text = ''
  response.setEncoding('utf8')
  response.on('data', (part) => { text += part })
  response.on('end', () => {
    process.exitCode = response.statusCode === 200 ? 0 : 1
    process.stdout.write(text)
  })
})
call.on('error', (err) => {
  process.exitCode = 1
  process.stderr.write(`${err.message}\n`)
})
call.end(body)
