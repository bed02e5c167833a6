// openid-client, a certified relying party, against the authorization server.
import * as client from "openid-client";
import { changed, decide, refusal, run } from "./person.mjs";

const AUTHENTICATION = {
  none: () => client.None(),
  client_secret_basic: client.ClientSecretBasic,
  client_secret_post: client.ClientSecretPost,
};

function discover({ issuer }, { id, secret, method }) {
  return client.discovery(new URL(issuer), id, undefined, AUTHENTICATION[method](secret), {
    algorithm: "oauth2",
    execute: [client.allowInsecureRequests],
  });
}

await run(async (told) => {
  const { application, resourceServer, person, redirectUri, scope, resource } = told;
  const config = await discover(told, application);
  const guard = await discover(told, resourceServer);
  const call = async (token) => {
    const url = new URL(resource);
    const refused = (error) => error.status ?? error.response?.status;
    try {
      return (await client.fetchProtectedResource(config, token, url, "GET")).status;
    } catch (error) {
      return refused(error) ?? String(error);
    }
  };

  const verifier = client.randomPKCECodeVerifier();
  const state = client.randomState();
  const url = client.buildAuthorizationUrl(config, {
    redirect_uri: redirectUri,
    scope,
    state,
    code_challenge: await client.calculatePKCECodeChallenge(verifier),
    code_challenge_method: "S256",
  });
  const checks = { pkceCodeVerifier: verifier, expectedState: state };
  const redeem = (callback) => client.authorizationCodeGrant(config, callback, checks);

  const denied = await refusal(redeem(await decide(url, person, "deny")));
  const callback = await decide(url, person, "allow");
  const mixedUp = [
    await refusal(redeem(changed(callback, "iss", "https://evil.example"))),
    await refusal(redeem(changed(callback, "iss"))),
    await refusal(redeem(changed(callback, "state", "another"))),
  ];
  const tokens = await redeem(callback);
  const refreshed = await client.refreshTokenGrant(config, tokens.refresh_token);
  const open = await client.tokenIntrospection(guard, refreshed.access_token);
  const called = await call(refreshed.access_token);
  await client.tokenRevocation(config, refreshed.refresh_token);
  return {
    supportsPkce: config.serverMetadata().supportsPKCE(),
    denied,
    mixedUp,
    tokens,
    refreshed,
    open,
    called,
    calledWhenRevoked: await call(refreshed.access_token),
    closed: await client.tokenIntrospection(guard, refreshed.access_token),
    refreshedWhenRevoked: await refusal(client.refreshTokenGrant(config, refreshed.refresh_token)),
    ownTokens: await client.clientCredentialsGrant(guard, {}),
  };
});
