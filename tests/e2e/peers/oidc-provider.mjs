// oidc-provider, a certified OpenID Connect issuer: everybody who writes a name gets in.
import { generateKeyPairSync } from "node:crypto";
import Provider from "oidc-provider";

const { issuer, clients } = JSON.parse(process.argv[2]);
const pairs = {
  RS256: generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ES256: generateKeyPairSync("ec", { namedCurve: "P-256" }),
  EdDSA: generateKeyPairSync("ed25519"),
};
const keys = Object.entries(pairs).map(([alg, { privateKey }]) => ({
  ...privateKey.export({ format: "jwk" }),
  alg,
  use: "sig",
}));
const provider = new Provider(issuer, {
  clients,
  jwks: { keys },
  claims: { email: ["email", "email_verified"] },
  cookies: { keys: ["a key of a test"] },
  enabledJWA: { idTokenSigningAlgValues: Object.keys(pairs) },
  findAccount: (_, name) => ({
    accountId: name,
    claims: () => ({ sub: name, email: `${name}@example.com`, email_verified: true }),
  }),
});
const { hostname, port } = new URL(issuer);
provider.listen(Number(port), hostname);
