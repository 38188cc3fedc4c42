// Mints one token in each algorithm that it is asked for, with jose, which
// nobody here wrote. Usage: node minter.mjs CLAIMS ALG...
// It prints {keys: [JWK...], tokens: {ALG: token}}.

import { randomBytes } from 'node:crypto';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';

const [claims, ...algorithms] = process.argv.slice(2);
const keys = [];
const tokens = {};
for (const alg of algorithms) {
  const { privateKey, publicKey } = await generateKeyPair(alg);
  const kid = randomBytes(8).toString('hex');
  keys.push({ ...await exportJWK(publicKey), alg, use: 'sig', kid });
  tokens[alg] = await new SignJWT(JSON.parse(claims))
    .setProtectedHeader({ alg, kid, typ: 'at+jwt' })
    .setIssuedAt()
    .setExpirationTime('1h')
    .sign(privateKey);
}
console.log(JSON.stringify({ keys, tokens }));
