// oauth4webapi, the certified building blocks, against the authorization server.
import * as oauth from "oauth4webapi";
import { changed, decide, refusal, run } from "./person.mjs";

const AUTHENTICATION = {
  none: () => oauth.None(),
  client_secret_basic: oauth.ClientSecretBasic,
  client_secret_post: oauth.ClientSecretPost,
};
const HTTP = { [oauth.allowInsecureRequests]: true };

await run(async (told) => {
  const { application, resourceServer, person, redirectUri, scope, resource } = told;
  const issuer = new URL(told.issuer);
  const client = { client_id: application.id };
  const prove = AUTHENTICATION[application.method](application.secret);
  const guard = { client_id: resourceServer.id };
  const proveGuard = AUTHENTICATION[resourceServer.method](resourceServer.secret);
  const server = await oauth.processDiscoveryResponse(
    issuer,
    await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...HTTP }),
  );

  const verifier = oauth.generateRandomCodeVerifier();
  const state = oauth.generateRandomState();
  const url = new URL(server.authorization_endpoint);
  url.search = new URLSearchParams({
    response_type: "code",
    client_id: client.client_id,
    redirect_uri: redirectUri,
    scope,
    state,
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
    code_challenge_method: "S256",
  });
  const redeem = async (callback) => {
    const parameters = oauth.validateAuthResponse(server, client, callback, state);
    const response = await oauth.authorizationCodeGrantRequest(
      server, client, prove, parameters, redirectUri, verifier, HTTP,
    );
    return oauth.processAuthorizationCodeResponse(server, client, response);
  };
  const refresh = async (token) =>
    oauth.processRefreshTokenResponse(
      server,
      client,
      await oauth.refreshTokenGrantRequest(server, client, prove, token, HTTP),
    );
  const introspect = async (token) =>
    oauth.processIntrospectionResponse(
      server,
      guard,
      await oauth.introspectionRequest(server, guard, proveGuard, token, HTTP),
    );
  // RFC 9068, 4: what a resource server checks of a JWT access token.
  const validate = (token, audience) => {
    const request = new Request(resource, { headers: { authorization: `Bearer ${token}` } });
    return oauth.validateJwtAccessToken(server, request, audience, HTTP);
  };
  const call = async (token) => {
    try {
      return (await oauth.protectedResourceRequest(token, "GET", new URL(resource), undefined, null, HTTP)).status;
    } catch (error) {
      return error.status ?? String(error);
    }
  };

  const denied = await refusal(redeem(await decide(url, person, "deny")));
  const callback = await decide(url, person, "allow");
  const mixedUp = [
    await refusal(redeem(changed(callback, "iss", "https://evil.example"))),
    await refusal(redeem(changed(callback, "iss"))),
    await refusal(redeem(changed(callback, "state", "another"))),
  ];
  const tokens = await redeem(callback);
  const refreshed = await refresh(tokens.refresh_token);
  const { access_token: token } = refreshed;
  const seen = {
    supportsPkce: server.code_challenge_methods_supported.includes("S256"),
    denied,
    mixedUp,
    tokens,
    refreshed,
    validated: await validate(token, issuer.href.replace(/\/$/, "")),
    forOthers: await refusal(validate(token, "https://another.example")),
    tampered: await refusal(validate(token.slice(0, -4) + "AAAA", issuer.href.replace(/\/$/, ""))),
    open: await introspect(token),
    called: await call(token),
  };
  await oauth.processRevocationResponse(
    await oauth.revocationRequest(server, client, prove, token, HTTP),
  );
  return {
    ...seen,
    calledWhenRevoked: await call(token),
    closed: await introspect(token),
    refreshedWhenRevoked: await refusal(refresh(refreshed.refresh_token)),
    ownTokens: await oauth.processClientCredentialsResponse(
      server,
      guard,
      await oauth.clientCredentialsGrantRequest(server, guard, proveGuard, {}, HTTP),
    ),
  };
});
