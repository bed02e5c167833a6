"""What a company reports against a model of it, by stories that Hypothesis makes up."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.e2e.company import new_company
from tests.e2e.processes import service_process

NUMBERS: Final = count()
PRICE: Final = 4900
MOST_BUYERS: Final = 2
CODE: Final = {"code": {"expires_in_days": 7}}


@dataclass
class Buyer:
    """What the model knows of somebody who may have been referred."""

    external_id: str
    orders: list[str] = field(default_factory=list)
    refunded: dict[str, int] = field(default_factory=dict)
    """How much of each order was taken back, also of one that is not reported yet."""
    referral_id: str | None = None
    code: str | None = None
    review: str | None = None
    state: str = "pending"

    def follow(self) -> str:
        """Return what has become of the referral, now that something is reported."""
        stands = any(self.refunded.get(order, 0) < PRICE for order in self.orders)
        if self.review != "reject":
            self.state = "qualified" if stands else "reversed" if self.orders else "pending"
        elif self.state == "pending":
            self.state = "rejected"
        elif self.state == "qualified":
            self.state = "reversed"
        return self.state


class Sales(RuleBasedStateMachine):
    """Referrers share codes; buyers sign up, buy, and give back, before or after one another."""

    url = authorization = ""
    codes = Bundle("codes")
    buyers = Bundle("buyers")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Buyer] = []

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", "Authorization": self.authorization}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["code"]

    @initialize(target=codes)
    def begin(self) -> Any:
        return self.share()

    @rule(target=codes)
    def share(self) -> Any:
        body = {"external_id": f"r-{next(NUMBERS)}", "programme": "shop"} | CODE
        status, made = self.ask("POST", "/participants", body)
        again, shown = self.ask("POST", "/participants", body)
        assert (status, again, shown) == (201, 200, made)
        return made["code"]

    @initialize(target=buyers)
    def begin_with_a_buyer(self) -> Any:
        return self.come()

    @rule(target=buyers)
    def come(self) -> Any:
        """Few, or nothing would ever happen to one of them twice."""
        if len(self.all) == MOST_BUYERS:
            return multiple()
        buyer = Buyer(f"b-{next(NUMBERS)}")
        self.all.append(buyer)
        return buyer

    @rule(buyer=buyers, code=codes)
    def sign_up(self, buyer: Buyer, code: str) -> None:
        body = {"code": code.lower(), "external_id": buyer.external_id, "programme": "shop"}
        status, answer = self.ask("POST", "/referrals", body)
        if buyer.code not in {None, code}:
            assert (status, answer) == (409, "already-referred")
            return
        assert status == (200 if buyer.code else 201)
        buyer.code, buyer.referral_id = code, answer["id"]
        assert answer["state"] == buyer.follow()

    @rule(buyer=buyers, number=st.integers(0, 1))
    def buy(self, buyer: Buyer, number: int) -> None:
        order = f"{buyer.external_id}-{number}"
        body = {"id": order, "type": "purchase", "amount": PRICE, "unit": "EUR"}
        known = order in buyer.orders
        buyer.orders += [] if known else [order]
        self.report(buyer, body, known=known)

    @rule(buyer=buyers, number=st.integers(0, 1), part=st.sampled_from([None, 100, PRICE]))
    def give_back(self, buyer: Buyer, number: int, part: int | None) -> None:
        order = f"{buyer.external_id}-{number}"
        refund: dict[str, Any] = {
            "id": f"refund-{next(NUMBERS)}",
            "type": "refund",
            "refunds": order,
        }
        refund |= {} if part is None else {"amount": part, "unit": "EUR"}
        buyer.refunded[order] = buyer.refunded.get(order, 0) + (PRICE if part is None else part)
        self.report(buyer, refund, known=False)
        self.report(buyer, refund, known=True)

    @rule(buyer=buyers)
    def report_another_under_the_same_id(self, buyer: Buyer) -> None:
        for order in buyer.orders[:1]:
            body = {"id": order, "type": "visit", "external_id": buyer.external_id}
            answer = self.ask("POST", "/events", {**body, "programme": "shop"})
            assert answer == (409, "id-reused")

    def report(self, buyer: Buyer, body: dict[str, Any], *, known: bool) -> None:
        whole = {**body, "external_id": buyer.external_id, "programme": "shop"}
        status, answer = self.ask("POST", "/events", whole)
        assert status == (200 if known else 201)
        if buyer.code is None:
            assert (answer["outcome"], answer["referral"]) == ("no-referral", None)
        else:
            assert answer["referral"]["state"] == buyer.follow()

    @rule(buyer=buyers, decision=st.sampled_from(["approve", "reject"]))
    def review(self, buyer: Buyer, decision: str) -> None:
        if buyer.referral_id is not None:
            body = {"decision": decision, "reason": "Somebody has looked."}
            path = f"/referees/{buyer.referral_id}/decisions"
            status, answer = self.ask("POST", path, body)
            assert status == (200 if buyer.review == decision else 201)
            buyer.review = decision
            assert answer["state"] == buyer.follow()

    @invariant()
    def what_is_shown_is_what_the_model_says(self) -> None:
        for buyer in self.all:
            if buyer.referral_id is not None:
                status, shown = self.ask("GET", f"/referees/{buyer.referral_id}")
                assert (status, shown["state"], shown["code"]) == (200, buyer.state, buyer.code)
                assert len(shown["decisions"]) == shown["sequence"]
                assert shown["decisions"][0]["state"] == buyer.state


def test_every_sale_goes_as_the_model_says(environment: dict[str, str]) -> None:
    with service_process(environment, LOG_LEVEL="warning") as service:

        class Told(Sales):
            url = service.url
            authorization, _ = new_company(service)

        run_state_machine_as_test(
            Told,
            settings=settings(
                max_examples=25,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
