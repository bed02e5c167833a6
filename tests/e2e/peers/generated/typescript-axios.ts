// The story, as a developer tells it with what openapi-generator has generated for axios.

import { isAxiosError } from "axios";
import {
  AccountsApi,
  Configuration,
  EmailApi,
  Problem,
  ReferralCodesApi,
  ReferralsApi,
  SessionsApi,
} from "./client";
import { days, tell } from "./told";

/** Return the problem that a call ends with. */
async function problemOf(call: Promise<unknown>): Promise<Problem> {
  try {
    await call;
  } catch (error) {
    if (isAxiosError<Problem>(error) && error.response) return error.response.data;
    throw error;
  }
  throw new Error("the call was accepted");
}

tell(async (told) => {
  const anyone = new Configuration({ basePath: told.url });
  const anna = (await new AccountsApi(anyone).register(told.anna)).data;
  const tokens = (await new SessionsApi(anyone).logIn(told.anna)).data;
  const byAnna = new Configuration({ basePath: told.url, accessToken: tokens.access_token });
  const codes = new ReferralCodesApi(byAnna);
  const me = (await new AccountsApi(byAnna).showMe()).data;
  const mailed = (await new EmailApi(anyone).forgotPassword({ email: told.anna.email })).data;
  const code = (await codes.createReferralCode({ expires_in_days: 30 })).data;
  const again = await problemOf(codes.createReferralCode({ expires_in_days: 30 }));
  const found = (await new ReferralCodesApi(anyone).findReferralCode(anna.email)).data;
  const withCode = { ...told.ben, referral_code: found.code };
  const ben = (await new AccountsApi(anyone).register(withCode)).data;
  const nobody = { email: "nobody", password: "a long walk by the river" };
  const refused = await problemOf(new AccountsApi(anyone).register(nobody));
  const page = (await new ReferralsApi(byAnna).listReferrals("me", 10)).data;
  const deleted = await codes.deleteReferralCode();
  const missing = await problemOf(new ReferralCodesApi(anyone).findReferralCode(anna.email));
  const signedOut = await new SessionsApi(byAnna).logOut();
  const lockedOut = await problemOf(new AccountsApi(byAnna).showMe());
  return {
    anna, ben, me, tokens, mailed, code, again, found, refused, page, missing, lockedOut,
    days: days(code.created_at, code.expires_at),
    deleted: deleted.status,
    signedOut: signedOut.status,
  };
});
