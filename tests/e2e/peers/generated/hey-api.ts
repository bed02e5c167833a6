// The story, as a developer tells it with what @hey-api/openapi-ts has generated.

import {
  createReferralCode,
  deleteReferralCode,
  findReferralCode,
  forgotPassword,
  listReferrals,
  logIn,
  logOut,
  register,
  showMe,
} from "./client";
import { createClient, createConfig } from "./client/client";
import { days, given, tell } from "./told";

tell(async (told) => {
  const anyone = createClient(createConfig({ baseUrl: told.url }));
  const registered = await register({ client: anyone, body: told.anna });
  const anna = given(registered.data, registered.error);
  if (!("id" in anna)) throw new Error(anna.status);
  const signedIn = await logIn({ client: anyone, body: told.anna });
  const tokens = given(signedIn.data, signedIn.error);
  const client = createClient(
    createConfig({ baseUrl: told.url, auth: () => tokens.access_token }),
  );
  const shown = await showMe({ client });
  const me = given(shown.data, shown.error);
  const mailed = await forgotPassword({ client: anyone, body: { email: anna.email } });
  const created = await createReferralCode({ client, body: { expires_in_days: 30 } });
  const code = given(created.data, created.error);
  const again = await createReferralCode({ client, body: { expires_in_days: 30 } });
  const lookUp = { client: anyone, path: { email: anna.email } };
  const lookedUp = await findReferralCode(lookUp);
  const found = given(lookedUp.data, lookedUp.error);
  const referred = await register({
    client: anyone,
    body: { ...told.ben, referral_code: found.code },
  });
  const ben = given(referred.data, referred.error);
  if (!("id" in ben)) throw new Error(ben.status);
  const nobody = { email: "nobody", password: "a long walk by the river" };
  const refused = await register({ client: anyone, body: nobody });
  const listed = await listReferrals({ client, path: { referrer_id: "me" }, query: { limit: 10 } });
  const page = given(listed.data, listed.error);
  const deleted = await deleteReferralCode({ client });
  const missing = await findReferralCode(lookUp);
  const signedOut = await logOut({ client });
  const lockedOut = await showMe({ client });
  return {
    anna, ben, me, tokens, code, found, page,
    mailed: mailed.data,
    days: days(code.created_at, code.expires_at),
    again: again.error,
    refused: refused.error,
    deleted: deleted.response?.status,
    missing: missing.error,
    signedOut: signedOut.response?.status,
    lockedOut: lockedOut.error,
  };
});
