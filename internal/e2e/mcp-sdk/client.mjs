// Calls a tool of an MCP server with the client of the official SDK as it is published. The
// client knows only the URL of the server, its own credentials and its scope (a provider of the
// SDK without a user takes the scope from nowhere else). It finds the rest through
// the challenge of the gateway. It writes what it requested and the result of the tool.
//
//   node client.mjs URL CLIENT_ID PRIVATE_JWK ISSUER
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { PrivateKeyJwtProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'

const [url, clientId, key, expectedIssuer] = process.argv.slice(2)
const requests = []
const recorded = async (target, init) => {
  const response = await fetch(target, init)
  requests.push({
    method: init?.method ?? 'GET', url: String(target), status: response.status,
    challenge: response.headers.get('www-authenticate') ?? '', resource: new URLSearchParams(String(init?.body ?? '')).get('resource') ?? '',
  })
  return response
}
const client = new Client({ name: 'agent', version: '1.0.0' })
let result = ''
let error = ''
try {
  await client.connect(new StreamableHTTPClientTransport(new URL(url), {
    authProvider: new PrivateKeyJwtProvider({ clientId, privateKey: JSON.parse(key), algorithm: 'ES256', scope: 'read', expectedIssuer }), fetch: recorded,
  }))
  result = (await client.callTool({ name: 'whoami', arguments: {} })).content[0].text
} catch (e) {
  error = String(e)
} finally {
  await client.close()
}
console.log(JSON.stringify({ requests, result, error }))
