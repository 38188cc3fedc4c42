// Exchanges a user's token at the broker with openid-client as it is published: discovery of
// the broker's metadata, then the token-exchange grant. The broker's client takes the place of
// the OAuth client, and the caller's JWT that of its secret.
//
//   node exchange.mjs BROKER_URL CLIENT CALLER_JWT USER_TOKEN
import * as client from 'openid-client'

const [url, name, callerJWT, userToken] = process.argv.slice(2)
const config = await client.discovery(new URL(url), name, undefined, client.ClientSecretBasic(callerJWT), {
  algorithm: 'oauth2',
  execute: [client.allowInsecureRequests],
})
const token = 'urn:ietf:params:oauth:token-type:access_token'
const response = await client.genericGrantRequest(config, 'urn:ietf:params:oauth:grant-type:token-exchange', {
  subject_token: userToken,
  subject_token_type: token,
  requested_token_type: token,
  scope: 'read',
})
console.log(JSON.stringify(response))
