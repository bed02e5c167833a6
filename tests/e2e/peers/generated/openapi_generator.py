"""The story, as a developer tells it with what openapi-generator has generated for Python."""

import json
import sys
from collections.abc import Callable
from typing import Any

from openapi_client import (
    AccountsApi,
    ApiClient,
    Configuration,
    Email,
    EmailApi,
    Login,
    Problem,
    ReferralCodesApi,
    ReferralCodeWish,
    ReferralsApi,
    Register,
    SessionsApi,
)
from openapi_client.exceptions import ApiException


def problem_of(call: Callable[..., Any], *about: Any) -> Problem:
    """Return the problem that a call ends with, as the client has parsed it."""
    try:
        call(*about)
    except ApiException as error:
        problem = error.data
    else:
        raise AssertionError("the call was accepted")
    assert isinstance(problem, Problem), problem
    return problem


told = json.loads(sys.argv[1])
anyone = ApiClient(Configuration(told["url"]))
anna = AccountsApi(anyone).register(Register(**told["anna"]))
tokens = SessionsApi(anyone).log_in(Login(**told["anna"]))
by_anna = ApiClient(Configuration(told["url"], access_token=tokens.access_token))
codes = ReferralCodesApi(by_anna)
me = AccountsApi(by_anna).show_me()
mailed = EmailApi(anyone).forgot_password(Email(email=told["anna"]["email"]))
code = codes.create_referral_code(ReferralCodeWish(expires_in_days=30))
again = problem_of(codes.create_referral_code, ReferralCodeWish(expires_in_days=30))
found = ReferralCodesApi(anyone).find_referral_code(anna.email)
ben = AccountsApi(anyone).register(Register(**told["ben"], referral_code=found.code))
nobody = Register(email="nobody", password="a long walk by the river")
refused = problem_of(AccountsApi(anyone).register, nobody)
page = ReferralsApi(by_anna).list_referrals("me", limit=10)
deleted = codes.delete_referral_code_with_http_info()
missing = problem_of(ReferralCodesApi(anyone).find_referral_code, anna.email)
signed_out = SessionsApi(by_anna).log_out_with_http_info()
locked_out = problem_of(AccountsApi(by_anna).show_me)

seen = {
    "anna": anna,
    "ben": ben,
    "me": me,
    "tokens": tokens,
    "mailed": mailed,
    "code": code,
    "days": (code.expires_at - code.created_at).days,
    "again": again,
    "found": found,
    "refused": refused,
    "page": page,
    "deleted": deleted.status_code,
    "missing": missing,
    "signedOut": signed_out.status_code,
    "lockedOut": locked_out,
}
json.dump(seen, sys.stdout, default=lambda it: it.to_dict() if hasattr(it, "to_dict") else str(it))
