// The story, as a developer tells it with the types that openapi-typescript has generated.

import createClient from "openapi-fetch";
import type { paths } from "./client/types";
import { days, given, tell } from "./told";

tell(async (told) => {
  const anyone = createClient<paths>({ baseUrl: told.url });
  const registered = await anyone.POST("/api/v1/auth/register", { body: told.anna });
  const anna = given(registered.data, registered.error);
  if (!("id" in anna)) throw new Error(anna.status);
  const signedIn = await anyone.POST("/api/v1/auth/login", { body: told.anna });
  const tokens = given(signedIn.data, signedIn.error);
  const headers = { Authorization: `Bearer ${tokens.access_token}` };
  const byAnna = createClient<paths>({ baseUrl: told.url, headers });
  const shown = await byAnna.GET("/api/v1/users/me");
  const me = given(shown.data, shown.error);
  const { email } = anna;
  const mailed = await anyone.POST("/api/v1/auth/password/forgot", { body: { email } });
  const wish = { body: { expires_in_days: 30 } };
  const created = await byAnna.POST("/api/v1/referral-code", wish);
  const code = given(created.data, created.error);
  const again = await byAnna.POST("/api/v1/referral-code", wish);
  const lookUp = { params: { path: { email } } };
  const lookedUp = await anyone.GET("/api/v1/referral-code/{email}", lookUp);
  const found = given(lookedUp.data, lookedUp.error);
  const referred = await anyone.POST("/api/v1/auth/register", {
    body: { ...told.ben, referral_code: found.code },
  });
  const ben = given(referred.data, referred.error);
  if (!("id" in ben)) throw new Error(ben.status);
  const nobody = { email: "nobody", password: "a long walk by the river" };
  const refused = await anyone.POST("/api/v1/auth/register", { body: nobody });
  const listed = await byAnna.GET("/api/v1/referrals/{referrer_id}", {
    params: { path: { referrer_id: "me" }, query: { limit: 10 } },
  });
  const page = given(listed.data, listed.error);
  const deleted = await byAnna.DELETE("/api/v1/referral-code");
  const missing = await anyone.GET("/api/v1/referral-code/{email}", lookUp);
  const signedOut = await byAnna.POST("/api/v1/auth/logout");
  const lockedOut = await byAnna.GET("/api/v1/users/me");
  return {
    anna, ben, me, tokens, code, found, page,
    mailed: mailed.data,
    days: days(code.created_at, code.expires_at),
    again: again.error,
    refused: refused.error,
    deleted: deleted.response.status,
    missing: missing.error,
    signedOut: signedOut.response.status,
    lockedOut: lockedOut.error,
  };
});
