// Gets an access token of a client over gRPC: node grpc.mjs CLIENT. Before it, here:
//
//   npm install @grpc/grpc-js @grpc/proto-loader
//
// TOKENBROKER_ADDR names the broker, HOST:PORT, TOKENBROKER_TOKEN_FILE the file with the
// caller's JWT, and TOKENBROKER_CA the file with the CA of the broker's certificate. Without
// it the connection is in plaintext: for a broker on this machine only.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import grpc from '@grpc/grpc-js'
import loader from '@grpc/proto-loader'

const { TOKENBROKER_ADDR, TOKENBROKER_CA, TOKENBROKER_TOKEN_FILE } = process.env
const definition = loader.loadSync('tokenbroker/v1/tokenbroker.proto', {
  includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))], longs: String, enums: String, defaults: true,
})
const { TokenBrokerService } = grpc.loadPackageDefinition(definition).tokenbroker.v1
const credentials = TOKENBROKER_CA ? grpc.credentials.createSsl(readFileSync(TOKENBROKER_CA)) : grpc.credentials.createInsecure()
const broker = new TokenBrokerService(TOKENBROKER_ADDR || '127.0.0.1:8443', credentials)
const metadata = new grpc.Metadata()
if (TOKENBROKER_TOKEN_FILE) {
  metadata.set('authorization', `Bearer ${readFileSync(TOKENBROKER_TOKEN_FILE, 'ascii').trim()}`)
}
broker.getToken({ clientName: process.argv[2] }, metadata, { deadline: Date.now() + 20_000 }, (err, response) => {
  if (err) {
    process.exitCode = 1
    process.stderr.write(`${err.details}\n`)
  } else {
    process.stdout.write(`${response.accessToken}\n`)
  }
  broker.close()
})
