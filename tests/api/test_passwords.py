"""Passwords, wherever they enter: what is typed the same is the same, from whatever keyboard."""

import unicodedata
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from service.api.http import app_keys
from service.domain.errors import PasswordUnacceptable
from service.settings.settings import read_settings
from tests.api.mailing import forgotten, reset
from tests.factories import Api, Person, new_email, running
from tests.oauth import new_application, returned
from tests.stand_ins.smtp import SmtpServer

TYPED = "Übergänge\u00a0im Frühling"
"""As most keyboards type it: composed, and with a space that does not break."""
ON_A_MAC = unicodedata.normalize("NFD", TYPED).replace("\u00a0", "\u2003")
"""The same letters in pieces (NFD), and another space."""
STORED = "Übergänge im Frühling"
FORMS = {"composed": TYPED, "in pieces": ON_A_MAC, "as it is stored": STORED}


def test_the_forms_differ() -> None:
    assert len({TYPED, ON_A_MAC, STORED}) == 3


@pytest.mark.parametrize("registered", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("signed_in", FORMS.values(), ids=FORMS)
async def test_who_registers_on_one_keyboard_signs_in_on_another(
    api: Api, registered: str, signed_in: str
) -> None:
    email = new_email()
    assert (await api.register(email, password=registered)).status == 201
    assert (await api.log_in(email, signed_in)).status == 200
    for wrong in (signed_in.upper(), f"{signed_in[:-1]}x", f"{signed_in} ", "Ubergange"):
        assert (await api.log_in(email, wrong)).status == 401, wrong


@pytest.fixture
async def mailing(
    mail_environment: dict[str, str], database: asyncpg.Connection, redis: object, impatient: None
) -> AsyncIterator[Api]:
    async with running(read_settings(mail_environment)) as mailing:
        yield mailing


async def test_a_password_is_one_wherever_it_is_asked_for(mailing: Api, smtp: SmtpServer) -> None:
    api, email = mailing, new_email()
    await api.register(email, password=TYPED)
    tokens = (await api.log_in(email, ON_A_MAC)).json()
    person = Person(tokens["user_id"], email, tokens["access_token"], "", password=ON_A_MAC)

    application = await new_application(api)
    assert returned(await application.allowed_by(person))["code"], "the sign-in page"

    change = {"new_email": new_email(), "password": ON_A_MAC}
    assert (await api.post("/auth/email/change", change, by=person)).status == 202

    change = {"current_password": ON_A_MAC, "new_password": f"{ON_A_MAC} 2"}
    assert (await api.post("/auth/password/change", change, by=person)).status == 204
    assert (await api.log_in(email, f"{TYPED} 2")).status == 200

    assert (await reset(api, await forgotten(api, smtp, email), f"{ON_A_MAC} 3")).status == 204
    tokens = (await api.log_in(email, f"{TYPED} 3")).json()
    erased = await api.delete("/users/me", {"password": f"{STORED} 3"}, by=tokens["access_token"])
    assert erased.status == 204


async def test_the_password_of_an_admin_is_one_too(api: Api) -> None:
    await api.app[app_keys.SERVICES].users.make_admin("root@example.com", ON_A_MAC)
    assert (await api.log_in("root@example.com", TYPED)).status == 200


async def test_a_hash_of_a_password_as_it_was_sent_goes_on_working_and_is_made_anew(
    api: Api, database: asyncpg.Connection
) -> None:
    """As the releases before this one stored it."""
    email = new_email()
    await api.register(email)
    old = api.app[app_keys.SERVICES].hasher._context.hash(ON_A_MAC)
    await database.execute("UPDATE users SET password_hash = $1", old)
    assert (await api.log_in(email, TYPED)).status == 401, "that is not what was hashed"
    assert await database.fetchval("SELECT password_hash FROM users") == old
    tokens = (await api.log_in(email, ON_A_MAC)).json()
    person = Person(tokens["user_id"], email, tokens["access_token"], "")
    assert await database.fetchval("SELECT password_hash FROM users") != old
    for form in FORMS.values():
        assert (await api.log_in(email, form)).status == 200
    assert (await api.get("/users/me", by=person)).status == 200


async def test_until_then_the_old_hash_proves_who_changes_and_erases(
    api: Api, database: asyncpg.Connection
) -> None:
    person = await api.new_person()
    old = api.app[app_keys.SERVICES].hasher._context.hash(ON_A_MAC)
    await database.execute("UPDATE users SET password_hash = $1", old)
    change = {"current_password": ON_A_MAC, "new_password": f"{ON_A_MAC} 2"}
    assert (await api.post("/auth/password/change", change, by=person)).status == 204
    person = replace(person, password=f"{TYPED} 2")
    await database.execute("UPDATE users SET password_hash = $1", old)
    assert (await api.delete("/users/me", {"password": ON_A_MAC}, by=person)).status == 204


async def test_the_length_of_a_password_is_counted_in_composed_characters(api: Api) -> None:
    in_pieces = unicodedata.normalize("NFD", "ÄÖÜäöüß")
    assert len(in_pieces) > 8
    assert (await api.register(password=in_pieces)).status == 422
    long = unicodedata.normalize("NFD", ("ÄbcÖdeÜfg hij" * 10)[:128])
    assert len(long) > 128
    email = new_email()
    assert (await api.register(email, password=f"{long}x")).status == 422
    assert (await api.log_in(email, long)).status == 401


async def test_what_a_host_is_called_is_no_password_there(
    environment: dict[str, str], database: asyncpg.Connection, redis: object
) -> None:
    named = {"SERVICE_NAME": "Shop of Acme", "PUBLIC_URL": "https://refer.zanzibar.example:8443"}
    async with running(read_settings({**environment, **named})) as api:
        anna = await api.new_person()
        for password in ("Shop-of-Acme", "acmeshop1", "zanzibar2026", "refer.zanzibar.example"):
            answers = [
                await api.register(password=password),
                await api.post(
                    "/auth/password/change",
                    {"current_password": anna.password, "new_password": password},
                    by=anna,
                ),
            ]
            assert [answer.status for answer in answers] == [422, 422], password
            with pytest.raises(PasswordUnacceptable):
                await api.app[app_keys.SERVICES].users.make_admin("root@example.com", password)


@pytest.mark.parametrize("password", ["nul\0within it", "bell\arings here", "right\u202eto left"])
async def test_control_characters_are_characters(api: Api, password: str) -> None:
    """OpaqueString refuses them; passwords with them exist."""
    email = new_email()
    assert (await api.register(email, password=password)).status == 201
    assert (await api.log_in(email, password)).status == 200
