// The identity provider of the end-to-end tests: oidc-provider, which nobody
// here wrote, with controls that make it misbehave. It binds to loopback alone.
//
// Environment:
//   PORT               required
//   STATE              required: a file for keys and client credentials. It is
//                      written if absent, so that a restart keeps them
//   LIFETIME           of tokens, in seconds (default 3600)
//   RESOURCES          further resources, separated by spaces, whose tokens are JWTs
//   TLS_CERT, TLS_KEY  PEM files: serve https
//   MTLS               URL of a front over TLS that demands client certificates. It says in
//                      x-client-certificate (URL-encoded PEM) which one was presented, and in
//                      x-client-subject who that is, if an authority that it trusts says so
//   MTLS_CERTIFICATES  with MTLS, a PEM file with the certificates of the client self-signed
//
// Controls, below /control: POST with a JSON body
//   rotate     {keep: bool, alg?: "RS256"}: sign with new keys, of one or all
//              algorithms; the old ones stay published if keep
//   register   {id, jwks_uri, seconds}: a client whose ES256 keys it reads at a URL, and
//              reads again when it has kept them for so many seconds
//   lifetime   {seconds}
//   delay      {ms}: the token endpoint waits
//   fail       {times, status, error?, retryAfter?}: the next token requests fail
//   fail-jwks  {times, status}: the next JWKS requests fail
//   reset      {}: undo lifetime, delay and failures; forget the counts
// and GET requests: {paths: {"/token": n}, auth: {basic, post, assertion, certificate}}.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import * as http from 'node:http';
import * as https from 'node:https';
import { X509Certificate, createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { exportJWK, generateKeyPair } from 'jose';
import { Provider, errors } from 'oidc-provider';

const { PORT, STATE, LIFETIME = '3600', RESOURCES = '', TLS_CERT, TLS_KEY, MTLS, MTLS_CERTIFICATES } = process.env;
if (!PORT || !STATE) {
  console.error('PORT and STATE must be set; see the head of server.mjs');
  process.exit(2);
}
const issuer = `${TLS_CERT ? 'https' : 'http'}://127.0.0.1:${PORT}`;
const algorithms = ['RS256', 'ES256', 'EdDSA'];

const newKey = async (alg) => {
  const { privateKey } = await generateKeyPair(alg, { extractable: true });
  return { ...await exportJWK(privateKey), alg, use: 'sig', kid: randomBytes(8).toString('hex') };
};

const publicPart = ({ d, p, q, dp, dq, qi, ...rest }) => rest;

// Secrets hold every character that a client may forget to encode.
const newSecret = () => `${randomBytes(24).toString('hex')}:%+/=& "`;

const newClient = async (client_id, token_endpoint_auth_method, alg) => {
  const client = {
    client_id,
    token_endpoint_auth_method,
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
  };
  if (token_endpoint_auth_method === 'private_key_jwt') {
    const key = await newKey(alg);
    return { ...client, token_endpoint_auth_signing_alg: alg, jwks: { keys: [publicPart(key)] }, private_key: key };
  }
  return { ...client, client_secret: newSecret() };
};

const newState = async () => ({
  keys: await Promise.all(algorithms.map(newKey)),
  clients: await Promise.all([
    newClient('basic', 'client_secret_basic'),
    newClient('odd:%+/=& id', 'client_secret_basic'),
    newClient('post', 'client_secret_post'),
    newClient('secret-jwt', 'client_secret_jwt'),
    newClient('key-rs256', 'private_key_jwt', 'RS256'),
    newClient('key-ps256', 'private_key_jwt', 'PS256'),
    newClient('key-es256', 'private_key_jwt', 'ES256'),
    newClient('key-eddsa', 'private_key_jwt', 'EdDSA'),
  ]),
});

const state = existsSync(STATE) ? JSON.parse(readFileSync(STATE, 'utf8')) : await newState();
const save = () => writeFileSync(STATE, JSON.stringify(state, null, 2), { mode: 0o600 });
save();

// The clients that present a certificate.
const certified = () => {
  if (!MTLS) return [];
  const base = { grant_types: ['client_credentials'], response_types: [], redirect_uris: [] };
  const pems = readFileSync(MTLS_CERTIFICATES, 'utf8').match(/-----BEGIN[^]+?-----END CERTIFICATE-----/g);
  const keys = pems.map((pem) => {
    const { raw, publicKey } = new X509Certificate(pem);
    return {
      ...publicKey.export({ format: 'jwk' }),
      kid: randomBytes(8).toString('hex'),
      x5c: [raw.toString('base64')],
      'x5t#S256': createHash('sha256').update(raw).digest('base64url'),
    };
  });
  const byAuthority = { ...base, token_endpoint_auth_method: 'tls_client_auth', tls_client_auth_subject_dn: 'CN=client' };
  return [
    { ...byAuthority, client_id: 'tls' },
    { ...byAuthority, client_id: 'bound', tls_client_certificate_bound_access_tokens: true },
    { ...base, client_id: 'self-signed', token_endpoint_auth_method: 'self_signed_tls_client_auth', jwks: { keys } },
  ];
};

const mTLS = {
  enabled: Boolean(MTLS),
  certificateBoundAccessTokens: true,
  tlsClientAuth: true,
  selfSignedTlsClientAuth: true,
  getCertificate: (ctx) => {
    const pem = ctx.get('x-client-certificate');
    return pem ? new X509Certificate(decodeURIComponent(pem)) : undefined;
  },
  certificateAuthorized: (ctx) => Boolean(ctx.get('x-client-subject')),
  certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_subject_dn' && ctx.get('x-client-subject') === expected,
};

const aliases = MTLS ? {
  mtls_endpoint_aliases: { token_endpoint: `${MTLS}/token`, introspection_endpoint: `${MTLS}/token/introspection` },
} : {};

// The clients whose keys are read at a URL, with the seconds for which the keys are kept.
const reading = new Map();

// keepBriefly ends what oidc-provider keeps of a jwks_uri before its own minimum of a minute.
const keepBriefly = async (provider) => {
  for (const [id, { seconds }] of reading) {
    const { asymmetricKeyStore: keys } = await provider.Client.find(id);
    if (keys.freshUntil) keys.freshUntil = Math.min(keys.freshUntil, Date.now() / 1000 + seconds);
  }
};

const fresh = () => ({ lifetime: Number(LIFETIME), delay: 0, fail: { times: 0 }, failJWKS: { times: 0 }, paths: {}, auth: {} });
let controls = fresh();

const jwt = (alg) => ({ accessTokenFormat: 'jwt', jwt: { sign: { alg } } });
const resources = {
  'https://rs256.example.com': jwt('RS256'),
  'https://es256.example.com': jwt('ES256'),
  'https://eddsa.example.com': jwt('EdDSA'),
  'https://array.example.com': jwt('RS256'),
  'https://short.example.com': { ...jwt('ES256'), accessTokenTTL: 5 },
  'https://opaque.example.com': { accessTokenFormat: 'opaque' },
  ...Object.fromEntries(RESOURCES.split(' ').map((resource) => [resource, jwt('ES256')])),
};

const newProvider = () => {
  const provider = new Provider(issuer, {
    clients: [
      ...state.clients.map(({ private_key, ...client }) => client),
      ...certified(),
      ...[...reading.values()].map(({ client }) => client),
    ],
    // Without the dispatcher, which refuses loopback.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
    discovery: aliases,
    jwks: { keys: state.keys },
    scopes: ['read', 'write'],
    clientAuthMethods: [
      'client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt',
      ...MTLS ? ['tls_client_auth', 'self_signed_tls_client_auth'] : [],
    ],
    enabledJWA: { clientAuthSigningAlgValues: ['HS256', 'PS256', ...algorithms] },
    features: {
      mTLS,
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => {
          if (!Object.hasOwn(resources, resource)) throw new errors.InvalidTarget();
          return { audience: resource, scope: 'read write', ...resources[resource] };
        },
      },
    },
    formats: {
      customizers: {
        jwt: (ctx, token, parts) => {
          if (parts.payload.aud === 'https://array.example.com') {
            parts.payload.aud = [parts.payload.aud, 'https://other.example.com'];
          }
        },
      },
    },
    ttl: { ClientCredentials: (ctx, token) => token.resourceServer?.accessTokenTTL ?? controls.lifetime },
  });
  provider.use(async (ctx, next) => {
    await keepBriefly(provider);
    await next();
    if (ctx.path !== '/token') return;
    const { client_secret, client_assertion } = ctx.oidc?.params ?? {};
    const certificate = ctx.get('x-client-certificate');
    const way = ctx.headers.authorization ? 'basic' : client_assertion ? 'assertion' : client_secret ? 'post' : certificate ? 'certificate' : 'none';
    controls.auth[way] = (controls.auth[way] ?? 0) + 1;
  });
  return provider.callback();
};
let serve = newProvider();

const rotate = async ({ keep, alg }) => {
  const rotated = alg ? [alg] : algorithms;
  const added = await Promise.all(rotated.map(newKey));
  // The first key of an algorithm signs, the others only stay published.
  state.keys = [...added, ...state.keys.filter((key) => keep || !rotated.includes(key.alg))];
  save();
  serve = newProvider();
};

const register = ({ id, jwks_uri, seconds }) => {
  const client = {
    client_id: id,
    jwks_uri,
    token_endpoint_auth_method: 'private_key_jwt',
    token_endpoint_auth_signing_alg: 'ES256',
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
  };
  reading.set(id, { client, seconds });
  serve = newProvider();
};

const changes = {
  rotate,
  register,
  lifetime: ({ seconds }) => { controls.lifetime = seconds; },
  delay: ({ ms }) => { controls.delay = ms; },
  fail: (failure) => { controls.fail = failure; },
  'fail-jwks': (failure) => { controls.failJWKS = failure; },
  reset: () => { controls = fresh(); },
};

const sendJSON = (res, status, value, headers = {}) => {
  res.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store', ...headers });
  res.end(JSON.stringify(value));
};

const control = async (req, res, name) => {
  if (req.method === 'GET' && name === 'requests') {
    return sendJSON(res, 200, { paths: controls.paths, auth: controls.auth });
  }
  if (req.method !== 'POST' || !Object.hasOwn(changes, name)) {
    return sendJSON(res, 404, { error: `no control ${req.method} ${name}` });
  }
  let body = '';
  for await (const chunk of req) body += chunk;
  await changes[name](JSON.parse(body));
  return sendJSON(res, 200, {});
};

// fails answers with the failure if there is one left.
const fails = (res, failure) => {
  if (failure.times <= 0) return false;
  failure.times -= 1;
  const headers = failure.retryAfter === undefined ? {} : { 'retry-after': String(failure.retryAfter) };
  sendJSON(res, failure.status, failure.error ? { error: failure.error } : {}, headers);
  return true;
};

const handle = async (req, res) => {
  const { pathname } = new URL(req.url, issuer);
  if (pathname.startsWith('/control/')) return control(req, res, pathname.slice('/control/'.length));
  controls.paths[pathname] = (controls.paths[pathname] ?? 0) + 1;
  if (pathname === '/token') {
    if (controls.delay > 0) await sleep(controls.delay);
    if (fails(res, controls.fail)) return undefined;
  }
  if (pathname === '/jwks' && fails(res, controls.failJWKS)) return undefined;
  return serve(req, res);
};

const listener = (req, res) => handle(req, res).catch((error) => {
  console.error(error);
  if (!res.headersSent) sendJSON(res, 500, { error: 'server_error' });
});

const server = TLS_CERT
  ? https.createServer({ cert: readFileSync(TLS_CERT), key: readFileSync(TLS_KEY) }, listener)
  : http.createServer(listener);
server.listen(Number(PORT), '127.0.0.1', () => console.log(`serving ${issuer}`));
