// An MCP server with one tool, built with the official SDK as it is published. It checks no
// tokens: the gateway in front of it does, and passes the identity on in headers.
//
//   PORT=PORT node server.mjs
import { createServer } from 'node:http'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'

createServer(async (request, response) => {
  if (!request.url.endsWith('/mcp')) {
    response.writeHead(404).end()
    return
  }
  const server = new McpServer({ name: 'orders', version: '1.0.0' })
  server.registerTool('whoami', { description: 'Names the client of the access token' }, async () => ({
    content: [{ type: 'text', text: `${request.headers['x-auth-client-id']} ${request.headers['x-auth-scope']}` }],
  }))
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true })
  response.on('close', () => { transport.close(); server.close() })
  await server.connect(transport)
  await transport.handleRequest(request, response)
}).listen(Number(process.env.PORT), '127.0.0.1')
