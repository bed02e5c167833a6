"""How clients authenticate, and what is sent by hostile and careless ones."""

from urllib.parse import urlencode

import pytest

from service.api.http import app_keys
from service.domain.oauth import Client, Grant, hash_secret
from service.domain.scopes import Scope
from tests.api.oauth_endpoints.forms import (
    ENDPOINTS,
    FORM,
    INVALID_CLIENT,
    INVALID_REQUEST,
    basic,
    valid_form,
)
from tests.factories import Api, Person
from tests.oauth import (
    CALLBACK,
    TOKEN,
    VERIFIER,
    Application,
    Browser,
    insert_client,
    new_application,
    refusal,
)


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_client_authenticates_in_the_header_or_in_the_body(
    api: Api, application: Application, path: str
) -> None:
    form = valid_form(application, path)
    assert application.secret is not None
    header = basic(application.client_id, application.secret)
    assert (await api.post(path, data=form, headers=header)).status == 200
    both_name_it = {**form, "client_id": application.client_id}
    assert (await api.post(path, data=both_name_it, headers=header)).status == 200
    assert (await application.send(path, **form)).status == 200


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"client_secret": "wrong"},
        {"client_secret": ""},
        {"client_secret": None},
        {"client_secret": "é"},
        {"client_secret": "\0"},
        {"client_id": "nobody"},
        {"client_id": "\0"},
        {"client_id": ""},
        {"client_id": None},
        {"client_id": None, "client_secret": None},
        {"client_id": "swagger-ui"},
    ],
)
async def test_a_client_that_does_not_prove_itself_gets_nothing(
    application: Application, path: str, changes: dict[str, str | None]
) -> None:
    answer = await application.send(path, **{**valid_form(application, path), **changes})
    assert refusal(answer) == INVALID_CLIENT
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic ",
        "Basic !",
        "Basic %%%",
        "Basic /w==",
        "Basic Og==",
        "Basic \xff",
        "Basic bm8tY29sb24=",
        "Bearer x",
        "Digest username=x",
    ],
)
async def test_malformed_credentials_are_refused_and_the_scheme_is_named(
    api: Api, header: str
) -> None:
    sent = {"Authorization": header.encode("latin-1").decode("utf-8", "surrogateescape")}
    answer = await api.post(TOKEN, data={"grant_type": "client_credentials"}, headers=sent)
    assert refusal(answer) == INVALID_CLIENT
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


async def test_the_credentials_in_the_header_are_form_encoded(api: Api) -> None:
    client = Client(
        client_id="shop: 1+1=2 100% & more",
        name="Shop",
        secret_hash=hash_secret("p:w+ d%&é"),
        redirect_uris=(),
        scopes=frozenset(),
        grants=frozenset({Grant.CLIENT_CREDENTIALS}),
        own_scopes=frozenset({Scope.REFERRALS_READ}),
    )
    await insert_client(api, client)
    form = {"grant_type": "client_credentials"}
    header = basic(client.client_id, "p:w+ d%&é")
    assert (await api.post(TOKEN, data=form, headers=header)).status == 200
    assert (
        refusal(await api.post(TOKEN, data=form, headers=basic(client.client_id, "p:w  d%&é")))
        == INVALID_CLIENT
    )


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_two_authentications_at_once_are_refused(
    api: Api, application: Application, path: str
) -> None:
    other = await new_application(api)
    assert application.secret is not None
    header = basic(application.client_id, application.secret)
    form = valid_form(application, path)
    for doubled in (
        {"client_id": application.client_id, "client_secret": application.secret},
        {"client_secret": application.secret},
        {"client_id": other.client_id},
        {"client_id": other.client_id, "client_secret": other.secret or ""},
    ):
        answer = await api.post(path, data={**form, **doubled}, headers=header)
        assert refusal(answer) == INVALID_REQUEST


async def test_credentials_in_the_query_are_not_looked_at(
    api: Api, application: Application
) -> None:
    credentials = {"client_id": application.client_id, "client_secret": application.secret or ""}
    answer = await api.post(
        f"{TOKEN}?{urlencode(credentials)}", data={"grant_type": "client_credentials"}
    )
    assert refusal(answer) == INVALID_CLIENT
    grant = f"{TOKEN}?grant_type=client_credentials"
    assert refusal(await api.post(grant, data=credentials)) == INVALID_REQUEST


async def test_a_public_client_has_no_secret_and_speaks_for_users_only(
    api: Api, anna: Person
) -> None:
    public = await new_application(api, public=True)
    tokens = await public.tokens_of(anna)
    assert await public.is_alive(tokens)
    refused = await public.send(TOKEN, grant_type="client_credentials")
    assert refusal(refused) == (400, "unauthorized_client")
    guessed = await public.refresh(tokens["refresh_token"], client_secret="guessed")
    assert refusal(guessed) == INVALID_CLIENT


async def test_a_parameter_without_a_value_counts_as_left_out(api: Api, anna: Person) -> None:
    """RFC 6749, 3.2; Swagger UI and others send a public client's empty secret."""
    public = await new_application(api, public=True)
    code = await public.code_of(anna)
    answer = await public.redeem(code, client_secret="", scope="")
    assert answer.status == 200, answer.body
    refreshed = await public.refresh(answer.json()["refresh_token"], client_secret="", scope="")
    assert refreshed.status == 200, refreshed.body


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("form", ["{}&", "&{}", "&&{}&&"])
async def test_empty_pairs_mean_nothing(
    api: Api, application: Application, path: str, form: str
) -> None:
    body = form.format(urlencode(valid_form(application, path)))
    header = basic(application.client_id, application.secret or "")
    assert (await api.post(path, data=body, headers={**FORM, **header})).status == 200


async def test_a_deleted_client_gets_no_more_tokens(
    api: Api, application: Application, anna: Person
) -> None:
    tokens = await application.tokens_of(anna)
    async with api.app[app_keys.SERVICES].database.transaction() as repositories:
        assert await repositories.oauth_clients.delete(application.client_id, api.clock())
    assert refusal(await application.refresh(tokens["refresh_token"])) == INVALID_CLIENT
    assert (await Browser(api).open(application.wish())).status == 400


# What is sent


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "application/json"}, b'{"grant_type": "client_credentials"}'),
        ({"Content-Type": "text/plain"}, b"grant_type=client_credentials"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--"),
        ({}, b"grant_type=client_credentials"),
        (FORM, b"grant_type=client_credentials&scope=\xff"),
        (FORM, b"grant_type=client_credentials&scope=%ff"),
        (FORM, b"grant_type=client_credentials&%ff=x"),
        (FORM, b"grant_type=client_credentials&scope=%ed%a0%80"),
        (FORM, b"\x00"),
        (FORM, b"&=&"),
        (FORM, b""),
        ({**FORM, "Content-Encoding": "gzip"}, b"grant_type=client_credentials"),
    ],
)
async def test_what_is_no_form_is_refused(
    api: Api, application: Application, path: str, headers: dict[str, str], body: bytes
) -> None:
    header = basic(application.client_id, application.secret or "")
    answer = await api.post(path, data=body, headers={"Content-Type": "", **headers, **header})
    assert answer.status in {400, 415}
    assert refusal(answer)[1] == "invalid_request"


@pytest.mark.parametrize(
    "name",
    ["grant_type", "code", "redirect_uri", "code_verifier", "client_id", "client_secret", "scope"],
)
async def test_a_parameter_that_comes_twice_is_refused(
    api: Api, application: Application, anna: Person, name: str
) -> None:
    code = await application.code_of(anna)
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
        "client_id": application.client_id,
        "client_secret": application.secret or "",
        "scope": "profile",
    }
    doubled = urlencode([*form.items(), (name, form[name])])
    assert refusal(await api.post(TOKEN, data=doubled, headers=FORM)) == INVALID_REQUEST
    assert (await application.redeem(code)).status == 200, "nothing was spent"


@pytest.mark.parametrize(
    ("grant_type", "error"),
    [
        (None, "invalid_request"),
        ("password", "unsupported_grant_type"),
        ("implicit", "unsupported_grant_type"),
        ("Authorization_Code", "unsupported_grant_type"),
        ("urn:ietf:params:oauth:grant-type:jwt-bearer", "unsupported_grant_type"),
        ("\0", "unsupported_grant_type"),
    ],
)
async def test_no_other_grant_is_there(
    application: Application, anna: Person, grant_type: str | None, error: str
) -> None:
    answer = await application.send(
        TOKEN, grant_type=grant_type, username=anna.email, password=anna.password
    )
    assert refusal(answer) == (400, error)


@pytest.mark.parametrize("left_out", ["code", "redirect_uri", "code_verifier"])
async def test_a_grant_without_its_parameter_is_refused(
    application: Application, anna: Person, left_out: str
) -> None:
    form = {
        "grant_type": "authorization_code",
        "code": await application.code_of(anna),
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
    }
    del form[left_out]
    status, error = refusal(await application.send(TOKEN, **form))
    assert status == 400
    assert error in {"invalid_request", "invalid_grant"}


async def test_a_refresh_without_a_token_is_refused(application: Application) -> None:
    status, error = refusal(await application.send(TOKEN, grant_type="refresh_token"))
    assert status == 400
    assert error in {"invalid_request", "invalid_grant"}
