"""The API against a model of it, by stories that Hypothesis makes up."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.e2e.processes import Service, service_process
from tests.factories import PASSWORD

NUMBERS: Final = count()
DAYS: Final = {"expires_in_days": 7}


@dataclass
class Account:
    """What the model knows of somebody."""

    email: str
    user_id: str
    password: str = PASSWORD
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """Tokens of those that are open."""
    code: str | None = None
    left: int | None = None
    referrals: list[str] = field(default_factory=list)
    referrer: str | None = None


class Stories(RuleBasedStateMachine):
    """Accounts register, sign in and out, make, replace, delete and use codes, and are erased."""

    url = ""
    accounts = Bundle("accounts")

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[Account] = []
        self.names: dict[str, str] = {}
        """The newest name that each account has had for a code."""

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["code"]

    def look_at(self, account: Account) -> None:
        """Have the invariants look at the account, of which there are many, for a while."""
        self.alive.remove(account)
        self.alive.append(account)

    def signed_in(self, account: Account) -> str:
        self.look_at(account)
        if not account.sessions:
            self.sign_in(account)
        token: str = account.sessions[-1]["access_token"]
        return token

    @rule(target=accounts)
    def register_without_a_code(self) -> Account:
        return self.register(f"person{next(NUMBERS)}@example.com", None)

    def register(self, email: str, code: str | None) -> Account:
        body = {"email": email, "password": PASSWORD, "referral_code": code}
        status, answer = self.ask("POST", "/auth/register", body)
        assert (status, answer["email"]) == (201, email)
        account = Account(email, answer["id"], referrer=answer["referrer_id"])
        self.alive.append(account)
        return account

    @rule(referrer=accounts, uses=st.integers(1, 3))
    def use_up(self, referrer: Account, uses: int) -> None:
        self.make_code(referrer, "PUT", uses, chosen=False)
        code = referrer.code
        for _ in range(uses):
            self.register_by_code(referrer)
        body = {"email": "late@example.com", "password": PASSWORD, "referral_code": code}
        assert self.ask("POST", "/auth/register", body) == (422, "referral-code-unusable")

    @rule(target=accounts, referrer=accounts)
    def register_by_code(self, referrer: Account) -> Any:
        if referrer.code is None:
            return multiple()
        email = f"Person{next(NUMBERS)}@Example.com"
        account = self.register(email, referrer.code.lower())
        assert account.referrer == referrer.user_id
        referrer.referrals.insert(0, account.user_id)
        if referrer.left is not None:
            referrer.left -= 1
            referrer.code = referrer.code if referrer.left else None
        self.look_at(referrer)
        return account

    @rule(account=accounts)
    def register_again(self, account: Account) -> None:
        body = {"email": account.email.upper(), "password": PASSWORD}
        assert self.ask("POST", "/auth/register", body) == (409, "email-taken")

    @rule(account=accounts)
    def sign_in(self, account: Account) -> None:
        body = {"email": account.email, "password": account.password}
        status, tokens = self.ask("POST", "/auth/login", body)
        assert status == 200
        account.sessions.append(tokens)

    @rule(account=accounts, password=st.sampled_from(["another walk by the sea", "x", ""]))
    def sign_in_wrongly(self, account: Account, password: str) -> None:
        body = {"email": account.email, "password": password + "?"}
        assert self.ask("POST", "/auth/login", body) == (401, "invalid-credentials")

    @rule(account=accounts)
    def refresh(self, account: Account) -> None:
        self.signed_in(account)
        old = account.sessions.pop()
        status, new = self.ask("POST", "/auth/refresh", {"refresh_token": old["refresh_token"]})
        assert status == 200
        account.sessions.append(new)

    @rule(account=accounts)
    def sign_out(self, account: Account) -> None:
        token = self.signed_in(account)
        assert self.ask("POST", "/auth/logout", token=token)[0] == 204
        old = account.sessions.pop()
        assert self.ask("GET", "/users/me", token=token) == (401, "invalid-token")
        body = {"refresh_token": old["refresh_token"]}
        assert self.ask("POST", "/auth/refresh", body) == (401, "invalid-token")

    @rule(account=accounts)
    def change_password(self, account: Account) -> None:
        token, new = self.signed_in(account), f"the {next(NUMBERS)} ships in the harbour"
        body = {"current_password": account.password, "new_password": new}
        assert self.ask("POST", "/auth/password/change", body, token)[0] == 204
        account.password, account.sessions = new, account.sessions[-1:]

    @rule(
        account=accounts,
        method=st.sampled_from(["POST", "PUT"]),
        uses=st.none() | st.integers(1, 2),
        chosen=st.booleans(),
    )
    def make_code(self, account: Account, method: str, uses: int | None, chosen: bool) -> None:
        wish = {**DAYS, "max_uses": uses} | ({"code": f"CODE-{next(NUMBERS)}"} if chosen else {})
        status, answer = self.ask(method, "/referral-code", wish, self.signed_in(account))
        if method == "POST" and account.code:
            assert (status, answer) == (409, "referral-code-exists")
            return
        assert status == (200 if account.code else 201)
        assert answer["code"] == wish.get("code", answer["code"])
        account.code, account.left = answer["code"], uses
        self.names[account.user_id] = answer["code"]

    @rule(account=accounts, other=accounts, ended=st.booleans())
    def take_the_code_of_another(self, account: Account, other: Account, ended: bool) -> None:
        name = self.names.get(other.user_id) if ended else other.code
        if name and other is not account:
            wish = {**DAYS, "code": name.replace("O", "0")}
            answer = self.ask("PUT", "/referral-code", wish, self.signed_in(account))
            assert answer == (409, "referral-code-taken")

    @rule(account=accounts, change=st.sampled_from([DAYS, {"expires_in_days": 30.0}]))
    def extend_code(self, account: Account, change: dict[str, float]) -> None:
        status, answer = self.ask("PATCH", "/referral-code", change, self.signed_in(account))
        if account.code:
            assert (status, answer["code"]) == (200, account.code)
        else:
            assert (status, answer) == (404, "referral-code-not-found")

    @rule(account=accounts)
    def delete_code(self, account: Account) -> None:
        status, _ = self.ask("DELETE", "/referral-code", token=self.signed_in(account))
        assert status == (204 if account.code else 404)
        account.code = account.left = None

    @rule(account=consumes(accounts))
    def erase(self, account: Account) -> None:
        token = self.signed_in(account)
        assert self.ask("DELETE", "/users/me", {"password": account.password}, token)[0] == 204
        self.alive.remove(account)
        for session in account.sessions:
            assert self.ask("GET", "/users/me", token=session["access_token"])[0] == 401
        assert self.ask("GET", f"/referral-code/{account.email}")[0] == 404

    @invariant()
    def everybody_sees_what_the_model_says(self) -> None:
        for account in self.alive[-3:]:
            status, answer = self.ask("GET", f"/referral-code/{account.email}")
            assert (status, status == 200 and answer["code"]) == (
                (200, account.code) if account.code else (404, False)
            )
            if account.sessions:
                token = account.sessions[0]["access_token"]
                _, me = self.ask("GET", "/users/me", token=token)
                assert (me["id"], me["referrer_id"]) == (account.user_id, account.referrer)
                _, listed = self.ask("GET", "/referrals/me?limit=100", token=token)
                assert [item["id"] for item in listed["items"]] == account.referrals


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[Service]:
    with service_process(environment, LOG_LEVEL="warning") as service:
        yield service


def test_every_story_goes_as_the_model_says(service: Service) -> None:
    class Told(Stories):
        url = service.url

    run_state_machine_as_test(
        Told,
        settings=settings(
            max_examples=10,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
