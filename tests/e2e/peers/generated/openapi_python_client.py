"""The story, as a developer tells it with what openapi-python-client has generated."""

import json
import sys
from typing import Any, TypeVar

from client import AuthenticatedClient, Client
from client.api.accounts import register, show_me
from client.api.email import forgot_password
from client.api.referral_codes import create_referral_code, delete_referral_code, find_referral_code
from client.api.referrals import list_referrals
from client.api.sessions import log_in, log_out
from client.models import (
    Accepted,
    Email,
    Login,
    Problem,
    PublicReferralCode,
    ReferralCode,
    ReferralCodeWish,
    Referrals,
    Register,
    Tokens,
    User,
)
from seen import tell

T = TypeVar("T")


def parsed(response: Any, kind: type[T]) -> T:
    """Return what the client has made of a response, which must be of this class."""
    assert isinstance(response.parsed, kind), response
    return response.parsed


told = json.loads(sys.argv[1])
anyone = Client(told["url"], raise_on_unexpected_status=True)


def registered(person: dict[str, str]) -> User:
    return parsed(register.sync_detailed(client=anyone, body=Register.from_dict(person)), User)


anna = registered(told["anna"])
tokens = parsed(log_in.sync_detailed(client=anyone, body=Login.from_dict(told["anna"])), Tokens)
by_anna = AuthenticatedClient(told["url"], tokens.access_token, raise_on_unexpected_status=True)
me = parsed(show_me.sync_detailed(client=by_anna), User)
mailed = parsed(
    forgot_password.sync_detailed(client=anyone, body=Email(told["anna"]["email"])), Accepted
)
wish = ReferralCodeWish(expires_in_days=30)
code = parsed(create_referral_code.sync_detailed(client=by_anna, body=wish), ReferralCode)
again = parsed(create_referral_code.sync_detailed(client=by_anna, body=wish), Problem)
found = parsed(find_referral_code.sync_detailed(anna.email, client=anyone), PublicReferralCode)
ben = registered({**told["ben"], "referral_code": found.code})
nobody = Register("nobody", "a long walk by the river")
refused = parsed(register.sync_detailed(client=anyone, body=nobody), Problem)
page = parsed(list_referrals.sync_detailed("me", client=by_anna, limit=10), Referrals)
deleted = delete_referral_code.sync_detailed(client=by_anna)
missing = parsed(find_referral_code.sync_detailed(anna.email, client=anyone), Problem)
signed_out = log_out.sync_detailed(client=by_anna)
locked_out = parsed(show_me.sync_detailed(client=by_anna), Problem)
tell(globals())
