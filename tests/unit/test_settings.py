"""Settings: all faults are reported at once and in words, and no secret with them."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from marshmallow import Schema

from service.domain.clock import utc_now
from service.domain.rate_limits import RateLimit
from service.providers.settings import GitHubSettings, HunterSettings, OidcSettings, SmtpSettings
from service.security.password_hashing import Argon2
from service.security.signing_keys import SigningKey
from service.settings.groups import MAILBOX
from service.settings.risks import risks_of
from service.settings.schema import Group, SettingsError, load, schema_of
from service.settings.settings import (
    DatabaseSettings,
    Settings,
    available_cores,
    read_environment,
    read_settings,
)
from tests.factories import new_secrets

ROOT = Path(__file__).parents[2]


def variables_of(schema: Schema) -> Iterator[str]:
    for field in schema.fields.values():
        if isinstance(field, Group):
            yield from variables_of(field.schema)
        else:
            yield field.data_key or ""


VARIABLES = sorted({*variables_of(schema_of(Settings.__dataclass_fields__))} - {MAILBOX})
GIVEN = {
    **new_secrets(),
    "DATABASE_URL": "postgresql://localhost/referrals",
    "REDIS_URL": "redis://localhost",
}
JWK = json.loads(GIVEN["SIGNING_KEYS"])["keys"][0]


def read(**variables: str) -> Settings:
    return read_settings({**GIVEN, **variables})


def faults(environ: dict[str, str]) -> list[str]:
    """Return the lines in which the faults of the environment are told."""
    with pytest.raises(SettingsError) as caught:
        read_settings(environ)
    return str(caught.value).splitlines()


def keys(*jwks: Any) -> str:
    return json.dumps({"keys": jwks})


def test_what_has_no_default_is_asked_for() -> None:
    assert faults({}) == [
        "DATABASE_URL is not set.",
        "HASH_KEY is not set.",
        "REDIS_URL is not set.",
        "REFRESH_TOKEN_KEYS is not set.",
        "SIGNING_KEYS is not set.",
    ]


def test_what_has_a_default_has_this_one() -> None:
    settings = read()
    assert settings == replace(
        settings,
        host="127.0.0.1",
        port=8080,
        workers=available_cores(),
        public_url="http://localhost:8080",
        service_name="referrals",
        database_pool_size=10,
        log_level="info",
        log_format="auto",
        access_token_ttl=timedelta(minutes=10),
        refresh_token_ttl=timedelta(days=30),
        password_min_length=8,
        argon2=Argon2(memory_kib=19_456, passes=2, lanes=1),
        hashing_threads=1,
        hashing_queue=64,
        cors_origins=frozenset(),
        trusted_proxies=(),
        rate_limit_register=RateLimit(20, 60),
        rate_limit_login=RateLimit(10, 60),
        rate_limit_lookup=RateLimit(120, 60),
        rate_limit_write=RateLimit(60, 60),
    )


def test_all_faults_are_told_at_once_in_one_line_each() -> None:
    without_faults = {"HOST", "SERVICE_NAME"}  # which may be any text
    broken = dict.fromkeys(VARIABLES, "\u2603")
    told = [line.partition(" ")[0] for line in faults(broken)]
    assert told == sorted(set(VARIABLES) - without_faults)


REDIS_URLS = "redis:// or rediss:// or unix://"
HOSTS = "must name each host with its port, HOST:PORT,HOST:PORT."
REDIS_DATABASE = "must have the number of a database after the host, or nothing."
NAME = "must end with the name that the sentinels have for the primary."
CLUSTER = "must not name a cluster: use one server, or a primary with sentinels."


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PORT", "0", "must be between 1 and 65535."),
        ("PORT", "65536", "must be between 1 and 65535."),
        ("PORT", "http", "must be a whole number."),
        ("PORT", "80.5", "must be a whole number."),
        ("WORKERS", "-1", "must be between 1 and 256."),
        ("LOG_LEVEL", "INFO", "must be one of debug, info, warning, error."),
        ("LOG_FORMAT", "xml", "must be one of json, text, auto."),
        ("PASSWORD_MIN_LENGTH", "7", "must be between 8 and 64."),
        ("ACCESS_TOKEN_TTL_SECONDS", "9", "must be between 10 and 86400."),
        ("REFRESH_TOKEN_TTL_SECONDS", "9" * 5000, "must be a whole number."),
        ("RATE_LIMIT_LOGIN", "10", "must be N/second, N/minute, N/hour or off."),
        ("REFRESH_TOKEN_KEYS", "short", "must be 32 characters or more."),
        ("DATABASE_URL", "mysql://localhost", "must be a URL that begins with postgresql://."),
        ("REDIS_URL", "localhost:6379", f"must be a URL that begins with {REDIS_URLS}."),
        ("REDIS_URL", "http+sentinel://a:1/name", f"must be a URL that begins with {REDIS_URLS}."),
        ("REDIS_URL", "redis+cluster://a:1,b:2", CLUSTER),
        ("REDIS_URL", "rediss+cluster://a:1", CLUSTER),
        ("REDIS_URL", "redis+sentinel://a:1,,b:2/name", HOSTS),
        ("REDIS_URL", "redis+sentinel://a:1,b:port/name", HOSTS),
        (
            "REDIS_URL",
            "redis+sentinel://[::1:1/name",
            "must have both brackets around an address, and only there.",
        ),
        ("REDIS_URL", "redis+sentinel:///name", HOSTS),
        ("REDIS_URL", "redis+sentinel://a:1,b/name", HOSTS),
        ("REDIS_URL", "redis+sentinel://a:1,b:2", NAME),
        ("REDIS_URL", "redis+sentinel://a:1/name/word", NAME),
        ("REDIS_URL", "redis://a/word", REDIS_DATABASE),
        ("REDIS_URL", "redis://a/0/1", REDIS_DATABASE),
        ("REDIS_URL", "redis://a?db=word", "db must be a number, or left out."),
        (
            "REDIS_URL",
            "redis://a?socket_timeout=5",
            "has a parameter socket_timeout that this service does not know: leave it out.",
        ),
        (
            "REDIS_URL",
            "redis://a?ssl_cert_reqs=none",
            "has a parameter ssl_cert_reqs that this service does not know: leave it out.",
        ),
        (
            "REDIS_URL",
            "rediss://a?ssl_cert_reqs=never",
            "ssl_cert_reqs must be none, optional or required, or left out.",
        ),
        (
            "REDIS_URL",
            "rediss+sentinel://a:1,b:2/name?ssl_ca_certs=/nowhere",
            "ssl_ca_certs must be a file that this service may read, and /nowhere is not.",
        ),
        (
            "REDIS_URL",
            "redis://:1?hunter=ter2@a",
            "has a parameter that this service does not know: leave it out.",
        ),
        ("PUBLIC_URL", "example.com", "must be a URL that begins with http:// or https://."),
        ("CORS_ORIGINS", "app", "'app' is not an origin such as https://app.example.com."),
        ("TRUSTED_PROXIES", "ten", "'ten' does not appear to be an IPv4 or IPv6 network."),
    ],
)
def test_a_fault_is_told_in_words(variable: str, value: str, words: str) -> None:
    assert faults({**GIVEN, variable: value}) == [f"{variable} {words}"]


def test_metrics_have_another_port_than_the_service() -> None:
    assert read().metrics_port is None
    assert read(METRICS_PORT="9100").metrics_port == 9100
    assert faults({**GIVEN, "METRICS_PORT": "8080"}) == ["METRICS_PORT must differ from PORT."]
    assert faults({**GIVEN, "METRICS_PORT": "0"}) == ["METRICS_PORT must be between 1 and 65535."]


def test_argon2_needs_8_kib_for_each_lane() -> None:
    """Or the first hash would fail, which is the one that the service makes at its start."""
    assert read(ARGON2_MEMORY_KIB="16", ARGON2_LANES="2").argon2.memory_kib == 16
    told = faults({**GIVEN, "ARGON2_MEMORY_KIB": "15", "ARGON2_LANES": "2"})
    assert len(told) == 1
    assert told[0].startswith("ARGON2_MEMORY_KIB ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "postgres//user:hunter2@localhost/db"),
        ("DATABASE_URL", "mysql://user:hunter2@localhost/db"),
        ("DATABASE_URL", "postgresql://user:hunter2@[::1/db"),
        ("DATABASE_URL", "postgresql://user:hunter2@localhost:port/db"),
        ("REDIS_URL", ":hunter2@localhost"),
        ("REDIS_URL", "redis+cluster://:hunter2@localhost"),
        ("REDIS_URL", "redis+sentinel://:hunter2@[localhost:1/name"),
        ("REFRESH_TOKEN_KEYS", "hunter2"),
        ("HASH_KEY", "hunter2"),
        ("SIGNING_KEYS", "hunter2"),
        ("SIGNING_KEYS", keys({**JWK, "d": "hunter2"})),
        ("SIGNING_KEYS", keys({**JWK, "kty": "hunter2"})),
        ("SIGNING_KEYS", keys({**JWK, "crv": "hunter2"})),
    ],
)
def test_a_secret_is_not_told_with_its_fault(variable: str, value: str) -> None:
    [line] = faults({**GIVEN, variable: value})
    assert line.startswith(f"{variable} must ")
    assert "hunter2" not in line


def test_settings_do_not_print_their_secrets() -> None:
    urls = {"DATABASE_URL": "postgresql://u:hunter2@h/d", "REDIS_URL": "redis://:hunter2@h"}
    settings = read(**urls)
    printed = f"{settings!r} {settings}"
    assert "hunter2" not in printed
    assert GIVEN["HASH_KEY"] not in printed
    assert GIVEN["REFRESH_TOKEN_KEYS"] not in printed
    assert JWK["d"] not in printed


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1/second", RateLimit(1, 1)),
        ("20/minute", RateLimit(20, 60)),
        ("999999999/hour", RateLimit(999_999_999, 3600)),
        ("off", None),
    ],
)
def test_a_rate_limit_is_so_many_in_a_time_or_off(text: str, limit: RateLimit | None) -> None:
    settings = read(RATE_LIMIT_REGISTER=text, RATE_LIMIT_LOGIN=text, RATE_LIMIT_LOOKUP=text)
    assert settings.rate_limit_register == limit
    assert settings.rate_limit_login == limit
    assert settings.rate_limit_lookup == limit


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("20", id="no time"),
        pytest.param("/minute", id="no number"),
        pytest.param("0/minute", id="none at all"),
        pytest.param("-1/minute", id="less than none"),
        pytest.param("1.5/minute", id="a fraction"),
        pytest.param("020/minute", id="a zero first"),
        pytest.param("1000000000/hour", id="ten digits"),
        pytest.param("20/day", id="another time"),
        pytest.param("20/minutes", id="plural"),
        pytest.param("20/MINUTE", id="capitals"),
        pytest.param("20 / minute", id="spaces"),
        pytest.param("20/minute,30/hour", id="two"),
        pytest.param("OFF", id="off in capitals"),
        pytest.param("20/minute\n", id="a newline behind it"),
    ],
)
def test_other_rate_limits_are_refused(text: str) -> None:
    assert faults({**GIVEN, "RATE_LIMIT_LOOKUP": text}) == [
        "RATE_LIMIT_LOOKUP must be N/second, N/minute, N/hour or off."
    ]


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", {"*"}),
        ("https://app.example.com", {"https://app.example.com"}),
        ("http://localhost:3000", {"http://localhost:3000"}),
        ("http://[::1]:3000", {"http://[::1]:3000"}),
        ("https://a.example, https://b.example,", {"https://a.example", "https://b.example"}),
        (",", set()),
        ("https://*.example.com", {"https://*.example.com"}),
        ("https://*.Example.com:8443/", {"https://*.example.com:8443"}),
        ("HTTPS://App.Example.COM:443/", {"https://app.example.com"}),
        ("http://app.example.com:80", {"http://app.example.com"}),
        ("https://app.example.com:80", {"https://app.example.com:80"}),
        ("https://m\u00dcnchen.de", {"https://xn--mnchen-3ya.de"}),
        ("https://[2001:DB8:0::1]:443", {"https://[2001:db8::1]"}),
        ("https://my_app.example.com", {"https://my_app.example.com"}),
        ("https://a.example,https://A.example:443", {"https://a.example"}),
    ],
)
def test_origins_stand_between_commas_and_are_read_as_browsers_send_them(
    text: str, origins: set[str]
) -> None:
    assert read(CORS_ORIGINS=text).cors_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("app.example.com", id="no scheme"),
        pytest.param("https://", id="no host"),
        pytest.param("https://app.example.com/path", id="a path"),
        pytest.param("https://app.example.com?query", id="a query"),
        pytest.param("https://app.example.com#fragment", id="a fragment"),
        pytest.param("https://app.example.com//", id="two slashes"),
        pytest.param("https://user@app.example.com", id="a user"),
        pytest.param("https://@app.example.com", id="an empty user"),
        pytest.param("https://*", id="a star alone"),
        pytest.param("https://*.", id="a star and nothing"),
        pytest.param("https://app-*.example.com", id="a star in a label"),
        pytest.param("https://*.*.example.com", id="two stars"),
        pytest.param("https://app.*.com", id="a star in the middle"),
        pytest.param("*.example.com", id="a star without a scheme"),
        pytest.param("https://app.example.com:port", id="a word for a port"),
        pytest.param("https://app..example.com", id="an empty label"),
        pytest.param("https://\u2603\u2024com", id="no name"),
        pytest.param("file://app", id="another scheme"),
        pytest.param("null", id="null, which every sandbox sends"),
        pytest.param("https://a.example https://b.example", id="a space for a comma"),
        pytest.param("https://a.example,b", id="the second"),
        pytest.param("http://[::1", id="half an IPv6 address"),
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    [line] = faults({**GIVEN, "CORS_ORIGINS": text})
    assert re.fullmatch(r"CORS_ORIGINS '.*' is not an origin such as .*", line)
    told = faults({**GIVEN, "CORS_ORIGINS": f"{text},https://a.example,null"})
    assert len(told) == 2


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.0.0.1", ["10.0.0.1/32"]),
        ("10.0.0.0/8, ::1", ["10.0.0.0/8", "::1/128"]),
        ("fd00::/8", ["fd00::/8"]),
        ("0.0.0.0/0,::/0", ["0.0.0.0/0", "::/0"]),
    ],
)
def test_proxies_are_addresses_or_networks(text: str, networks: list[str]) -> None:
    assert read(TRUSTED_PROXIES=text).trusted_proxies == tuple(map(ip_network, networks))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("proxy.example.com", id="a name"),
        pytest.param("*", id="a star"),
        pytest.param("10.0.0.1/8", id="bits behind the mask"),
        pytest.param("10.0.0.0/33", id="too long a mask"),
        pytest.param("10.0.0.1:80", id="a port"),
        pytest.param("10.0.0.1 10.0.0.2", id="a space for a comma"),
    ],
)
def test_what_is_no_network_is_refused(text: str) -> None:
    [line] = faults({**GIVEN, "TRUSTED_PROXIES": text})
    assert line.startswith("TRUSTED_PROXIES ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "postgresql://u@localhost:5432/db?sslmode=require"),
        ("DATABASE_URL", "postgres://localhost"),
        ("DATABASE_URL", "postgresql:///db?host=/var/run/postgresql"),
        ("DATABASE_URL", "postgresql://u:p@a:1,b,[::1]:3/db?target_session_attrs=read-write"),
        ("DATABASE_URL", "postgresql://a,b/db?target_session_attrs=primary"),
        ("DATABASE_REPLICA_URL", "postgresql://a,b/db?target_session_attrs=standby"),
        ("REDIS_URL", "redis://:secret@localhost:6379/0"),
        ("REDIS_URL", "rediss://localhost"),
        ("REDIS_URL", "unix:///run/valkey.sock"),
        ("REDIS_URL", "rediss+sentinel://user:p%40ss@a:1,[::1]:2/referrals"),
        ("REDIS_URL", "redis+sentinel://:secret@a:26379,b:26379/referrals/1"),
        ("PUBLIC_URL", "https://referrals.example.com"),
        ("PUBLIC_URL", "http://localhost:8080"),
    ],
)
def test_a_url_is_taken_as_it_is(variable: str, value: str) -> None:
    assert getattr(read(**{variable: value}), variable.lower()) == value


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("DATABASE_URL", "postgresql:db", id="no slashes"),
        pytest.param(
            "DATABASE_URL",
            "postgresql://a:1,b:port/db?target_session_attrs=read-write",
            id="a word for the second port",
        ),
        pytest.param("DATABASE_URL", "postgresql", id="a word"),
        pytest.param("DATABASE_URL", "postgresql://localhost:port/db", id="a word for a port"),
        pytest.param("REDIS_URL", "redis://localhost:65536", id="a port too high"),
        pytest.param("REDIS_URL", "http://localhost", id="another scheme"),
        pytest.param("PUBLIC_URL", "https://", id="no host"),
        pytest.param("PUBLIC_URL", "https:example.com", id="no slashes before the host"),
    ],
)
def test_what_is_no_url_of_its_kind_is_refused(variable: str, value: str) -> None:
    [line] = faults({**GIVEN, variable: value})
    assert line.startswith(f"{variable} must be a URL ")


@pytest.mark.parametrize(
    ("variable", "query", "wanted"),
    [
        ("DATABASE_URL", "", "read-write"),
        ("DATABASE_URL", "?target_session_attrs=any", "read-write"),
        ("DATABASE_URL", "?target_session_attrs=standby", "read-write"),
        ("DATABASE_REPLICA_URL", "?target_session_attrs=read-write", "standby"),
    ],
)
def test_of_several_hosts_the_kind_wanted_has_to_be_named(
    variable: str, query: str, wanted: str
) -> None:
    assert faults({**GIVEN, variable: f"postgresql://u:hunter2@a,b/db{query}"}) == [
        f"{variable} has several hosts: add target_session_attrs={wanted}."
    ]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("https://example.com?a=b", id="a query"),
        pytest.param("https://example.com/referrals?a=b", id="a query after a path"),
        pytest.param("https://example.com/referrals#a", id="a fragment"),
        pytest.param("https://user@example.com", id="a user"),
        pytest.param("https://user@example.com/referrals", id="a user before a path"),
    ],
)
def test_the_public_address_is_an_origin_and_a_path(value: str) -> None:
    [line] = faults({**GIVEN, "PUBLIC_URL": value})
    assert line == "PUBLIC_URL must have no query and no user."


@pytest.mark.parametrize(
    "path",
    ["/a b", "//a", "/a//b", "/./a", "/a/../b", "/%2e%2e", "/a;b", '/a"b', "/\u00fc", "/a{b}"],
)
def test_the_path_of_the_public_address_is_plain(path: str) -> None:
    """It stands in pages, in cookies and in a route."""
    [line] = faults({**GIVEN, "PUBLIC_URL": f"https://example.com{path}"})
    assert line == "PUBLIC_URL must have a path of plain words, such as /referrals, or none."


@pytest.mark.parametrize(
    ("url", "public_url", "base_path"),
    [
        ("https://example.com", "https://example.com", ""),
        ("https://example.com/", "https://example.com", ""),
        ("https://example.com/referrals/", "https://example.com/referrals", "/referrals"),
        ("http://[::1]:8080/a-b/c_d.e~f", "http://[::1]:8080/a-b/c_d.e~f", "/a-b/c_d.e~f"),
    ],
)
def test_the_path_of_the_public_address_is_what_a_proxy_takes_off(
    url: str, public_url: str, base_path: str
) -> None:
    settings = read(PUBLIC_URL=url)
    assert (settings.public_url, settings.base_path) == (public_url, base_path)


def test_the_public_url_ends_without_a_slash_and_begins_with_the_port_by_default() -> None:
    assert read(PUBLIC_URL="https://example.com/").public_url == "https://example.com"
    assert read(PORT="9000").public_url == "http://localhost:9000"


@pytest.mark.parametrize(
    ("given", "workers", "threads"),
    [
        ({"WORKERS": "1"}, 1, available_cores()),
        ({"WORKERS": "256"}, 256, 1),
        ({"WORKERS": "3", "HASHING_THREADS": "2"}, 3, 2),
    ],
)
def test_the_cores_are_shared_by_the_workers(
    given: dict[str, str], workers: int, threads: int
) -> None:
    settings = read(**given)
    assert (settings.workers, settings.hashing_threads) == (workers, threads)


def test_secrets_stand_between_commas_and_the_first_is_the_one_in_use() -> None:
    old, new = "o" * 32, "n" * 32
    settings = read(REFRESH_TOKEN_KEYS=f"{new}, {old}", HASH_KEY=new)
    assert settings.refresh_token_keys == (new.encode(), old.encode())
    assert settings.hash_key == new.encode()


@pytest.mark.parametrize("variable", ["REFRESH_TOKEN_KEYS", "HASH_KEY"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("s" * 31, id="31 characters"),
        pytest.param("s" * 32 + ",short", id="the second too short"),
        pytest.param(",", id="none"),
        pytest.param(" " * 32, id="spaces"),
        pytest.param("\udcff" * 32, id="bytes that are not UTF-8"),
    ],
)
def test_short_secrets_are_refused(variable: str, value: str) -> None:
    [line] = faults({**GIVEN, variable: value})
    assert line.startswith(f"{variable} must be ")


def test_the_first_signing_key_signs_and_all_verify() -> None:
    new, old = SigningKey.generate(), SigningKey.generate()
    signing_keys = read(SIGNING_KEYS=keys(new.to_jwk(), old.to_jwk())).signing_keys
    assert signing_keys.active(utc_now()).key_id == new.key_id
    assert signing_keys.find(old.key_id) is not None
    assert signing_keys.find("another") is None


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("no JSON", id="no JSON"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="no keys"),
        pytest.param(json.dumps(JWK), id="a key alone"),
        pytest.param(keys(), id="none"),
        pytest.param('{"keys": null}', id="null for keys"),
        pytest.param('{"keys": 5}', id="a number for keys"),
        pytest.param(keys(5), id="a number for a key"),
        pytest.param(keys({}), id="an empty key"),
        pytest.param(keys(JWK, {}), id="an empty key behind a good one"),
        pytest.param(keys({**JWK, "d": None}), id="d null"),
        pytest.param(keys({**JWK, "d": 5}), id="a number for d"),
        pytest.param(keys({**JWK, "d": "AA"}), id="the private key of another"),
        pytest.param(keys({**JWK, "x": "\u2603"}), id="a snowman for x"),
        pytest.param(keys({**JWK, "crv": "P-384"}), id="P-384"),
        pytest.param(keys({**JWK, "kty": "oct", "k": "AA"}), id="a symmetric key"),
        pytest.param(
            keys({name: value for name, value in JWK.items() if name != "d"}), id="a public key"
        ),
        pytest.param("[" * 100_000, id="brackets without end"),
    ],
)
def test_signing_keys_are_private_keys_of_p_256(value: str) -> None:
    [line] = faults({**GIVEN, "SIGNING_KEYS": value})
    assert line.startswith("SIGNING_KEYS must be a JWK set with a private P-256 key")


GOOGLE = {
    "PROVIDER_GOOGLE_ISSUER": "https://accounts.google.com",
    "PROVIDER_GOOGLE_CLIENT_ID": "our id",
}


def test_providers_stand_between_commas_and_have_variables_of_their_own() -> None:
    github = {"PROVIDER_GITHUB_CLIENT_ID": "i", "PROVIDER_GITHUB_CLIENT_SECRET": "hunter2"}
    enterprise = {
        "PROVIDER_GHE_KIND": "github",
        "PROVIDER_GHE_CLIENT_ID": "i",
        "PROVIDER_GHE_TITLE": "Ours",
        "PROVIDER_GHE_API_URL": "https://github.example.com/api/v3",
    }
    settings = read(PROVIDERS="google, github,ghe", **GOOGLE, **github, **enterprise)
    google, hub, ours = settings.providers
    assert google == OidcSettings(
        name="google",
        title="Google",
        client_id="our id",
        client_secret=None,
        scopes="openid email",
        issuer="https://accounts.google.com",
    )
    assert isinstance(hub, GitHubSettings)
    assert (hub.title, hub.scopes) == ("GitHub", "user:email")
    assert hub.api_url == "https://api.github.com"
    assert isinstance(ours, GitHubSettings)
    assert (ours.title, ours.api_url) == ("Ours", "https://github.example.com/api/v3")
    assert "hunter2" not in repr(settings)


def test_all_faults_of_providers_are_told_with_the_others_under_their_own_names() -> None:
    given = {"PORT": "0", "PROVIDERS": "corp,github,x", "PROVIDER_X_KIND": "saml"}
    assert faults({**GIVEN, **given, "PROVIDER_CORP_SCOPES": "email"}) == [
        "PORT must be between 1 and 65535.",
        "PROVIDER_CORP_CLIENT_ID is not set.",
        "PROVIDER_CORP_ISSUER is not set.",
        "PROVIDER_CORP_SCOPES must contain the word openid.",
        "PROVIDER_GITHUB_CLIENT_ID is not set.",
        "PROVIDER_X_KIND must be one of oidc, github.",
    ]


@pytest.mark.parametrize("names", ["Google", "a,a", "a-b", "1a", "a b", "password", "x" * 33])
def test_other_names_of_providers_are_refused(names: str) -> None:
    [line] = faults({**GIVEN, "PROVIDERS": names})
    assert re.fullmatch(
        r"PROVIDERS '.*' occurs twice, or is not a name of lower-case letters and digits\.", line
    )


@pytest.mark.parametrize(
    "issuer",
    [
        "http://accounts.google.com",
        "http://localhost.example.com",
        "http://10.0.0.1",
        "accounts.google.com",
        "https://",
        "https://user:hunter2@accounts.google.com",
        "https://accounts.google.com?a=hunter2",
        "https://accounts.google.com#hunter2",
        "https://accounts.google.com:port",
        "https://[::1",
        "https://accounts.google.com/\n",
        "file:///etc/passwd",
    ],
)
def test_an_issuer_has_an_address_that_is_safe_to_call(issuer: str) -> None:
    [line] = faults({**GIVEN, **GOOGLE, "PROVIDERS": "google", "PROVIDER_GOOGLE_ISSUER": issuer})
    assert line.startswith("PROVIDER_GOOGLE_ISSUER must be a URL that begins with https://")
    assert "hunter2" not in line


@pytest.mark.parametrize("issuer", ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:80"])
def test_an_issuer_on_loopback_needs_no_tls(issuer: str) -> None:
    [google] = read(**{**GOOGLE, "PROVIDERS": "google", "PROVIDER_GOOGLE_ISSUER": issuer}).providers
    assert isinstance(google, OidcSettings)
    assert google.issuer == issuer


MAIL = {"SMTP_URL": "smtp://mail.example.com", "MAIL_FROM": "referrals@example.com"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.com", ("mail.example.com", 587, False, None, None)),
        ("smtps://mail.example.com/", ("mail.example.com", 465, True, None, None)),
        ("smtp://127.0.0.1:25", ("127.0.0.1", 25, False, None, None)),
        (
            "smtp://me%40here:p%23ss%20@mail.example.com:2525",
            ("mail.example.com", 2525, False, "me@here", "p#ss "),
        ),
    ],
)
def test_the_mail_server_is_a_url(url: str, expected: tuple[object, ...]) -> None:
    mail = read(**MAIL | {"SMTP_URL": url}).mail
    assert mail is not None
    smtp = mail.delivery
    assert isinstance(smtp, SmtpSettings)
    assert (smtp.host, smtp.port, smtp.implicit_tls, smtp.user, smtp.password) == expected
    assert "p#ss" not in repr(smtp)


@pytest.mark.parametrize(
    "url",
    [
        "garbage",
        "mail.example.com:25",
        "http://mail.example.com",
        "smtp://",
        "smtp://me:hunter2@",
        "smtp://mail.example.com:port",
        "smtp://mail.example.com:99999",
        "smtp://mail.example.com/hunter2",
        "smtp://mail.example.com?hunter2",
        "smtp://mail.example.com#hunter2",
        "smtp://me@mail.example.com",
        "smtp://:hunter2@mail.example.com",
    ],
)
def test_another_mail_server_is_refused_without_repeating_its_password(url: str) -> None:
    [line] = faults({**GIVEN, **MAIL, "SMTP_URL": url})
    assert line.startswith("SMTP_URL must ")
    assert "hunter2" not in line


def test_a_mail_needs_a_sender_and_confirming_needs_mails_and_that_is_told_with_the_rest() -> None:
    faulty = {"PORT": "0", "HUNTER_URL": "http://hunter.example", "EMAIL_CONFIRMATION": "required"}
    others = [
        "HUNTER_URL must be a URL that begins with https://, without ?, # and @.",
        "PORT must be between 1 and 65535.",
    ]
    confirmation = "EMAIL_CONFIRMATION needs a mail server: set SMTP_URL."
    assert faults({**GIVEN, **faulty}) == [confirmation, *others]
    sender = "MAIL_FROM is not set; mails need a sender."
    no_sender = {**GIVEN, **faulty, "SMTP_URL": MAIL["SMTP_URL"]}
    assert faults(no_sender) == [others[0], sender, others[1]]
    lanes = faults({**GIVEN, "PORT": "0", "ARGON2_MEMORY_KIB": "15", "ARGON2_LANES": "2"})
    assert [line.split()[0] for line in lanes] == ["ARGON2_MEMORY_KIB", "PORT"]


def test_a_faulty_mail_server_is_not_told_to_be_missing_too() -> None:
    [line] = faults({**GIVEN, "SMTP_URL": "garbage", "EMAIL_CONFIRMATION": "required"})
    assert line.startswith("SMTP_URL")
    [line] = faults({**GIVEN, **MAIL, "MAIL_FROM": "nobody"})
    assert line == "MAIL_FROM must be an email address."


def test_domains_of_emails_stand_between_commas_and_hold_for_the_sender_too() -> None:
    assert read().email_domains_allowed == frozenset()
    settings = read(**MAIL | {"MAIL_FROM": "shop@corp.local"}, EMAIL_DOMAINS_ALLOWED=".Local, lan")
    assert settings.email_domains_allowed == {"local", "lan"}
    assert settings.mail is not None
    assert settings.mail.sender == "shop@corp.local"
    for faulty in ("*.local", "a b", "anna@local", "local."):
        told = faults({**GIVEN, "EMAIL_DOMAINS_ALLOWED": faulty})
        assert told == [
            "EMAIL_DOMAINS_ALLOWED must be domains separated by commas, such as local,lan."
        ]


def test_a_local_mailbox_is_a_mail_server_too_and_a_real_one_goes_before_it() -> None:
    folder = Path("/nowhere/mailbox")
    settings = read_settings({**GIVEN, "EMAIL_CONFIRMATION": "required"}, folder)
    assert settings.confirmation_required
    assert settings.mail is not None
    assert settings.mail.delivery == folder
    mail = read_settings({**GIVEN, **MAIL}, folder).mail
    assert mail is not None
    assert isinstance(mail.delivery, SmtpSettings)
    assert read().mail is None


@pytest.mark.parametrize("url", ["https://app.example.com", "https://app.example.com/start/"])
def test_the_front_end_has_an_address_that_paths_are_added_to(url: str) -> None:
    mail = read(**MAIL, APP_URL=url).mail
    assert mail is not None
    assert mail.app_url == url.rstrip("/")


@pytest.mark.parametrize("end", ["?a=b", "#a", "/a b", "/\n"])
def test_another_address_of_the_front_end_is_refused(end: str) -> None:
    [line] = faults({**GIVEN, **MAIL, "APP_URL": f"https://app.example.com{end}"})
    assert line.startswith("APP_URL must ")


def test_nobody_is_asked_about_emails_until_there_is_a_key() -> None:
    urls = {"HUNTER_URL": "https://h.example", "ENRICHMENT_URL": "https://e.example"}
    settings = read(**urls, ENRICHMENT_PROVIDER="clearbit")
    assert (settings.hunter, settings.enrichment) == (None, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "https://api.hunter.io"),
        ({"ENRICHMENT_PROVIDER": "clearbit"}, "https://person.clearbit.com"),
        ({"ENRICHMENT_URL": "https://e.example/"}, "https://e.example"),
    ],
)
def test_who_is_asked_and_where(given: dict[str, str], expected: str) -> None:
    """A slash at the end of an address would make another path, and every answer a 404."""
    settings = read(**given, ENRICHMENT_API_KEY="hunter2", HUNTER_API_KEY="hunter2")
    assert settings.enrichment is not None
    assert settings.enrichment.url == expected
    assert settings.hunter == HunterSettings(api_key="hunter2", url="https://api.hunter.io")
    hunter = read(HUNTER_API_KEY="k", HUNTER_URL="https://h.example/api/").hunter
    assert hunter is not None
    assert hunter.url == "https://h.example/api"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("key", ["a b", "kéy", "a\r\nHost: evil"])
@pytest.mark.parametrize("variable", ["HUNTER_API_KEY", "ENRICHMENT_API_KEY"])
def test_a_key_that_no_header_can_hold_is_refused(variable: str, key: str) -> None:
    assert faults({**GIVEN, variable: key}) == [
        f"{variable} must be printable ASCII without spaces."
    ]


def test_migrating_needs_the_database_alone() -> None:
    settings = load(DatabaseSettings, {"DATABASE_URL": "postgresql://h/d", "PORT": "0"})
    assert settings.database_url == "postgresql://h/d"
    with pytest.raises(SettingsError, match=r"^DATABASE_URL is not set\.$"):
        load(DatabaseSettings, {"PORT": "0"})


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    file = tmp_path / "env"
    file.write_text(
        "# a comment\n"
        "PORT=9000\n"
        "HOST=0.0.0.0\n"
        "WORKERS=\n"
        "LOG_LEVEL='debug'\n"
        "SERVICE_NAME=a$HOST${PORT}\n"
        "LOG_FORMAT\n"
    )
    return file


def test_the_process_environment_lies_above_the_env_file(env_file: Path) -> None:
    read_variables = read_environment({"ENV_FILE": str(env_file), "PORT": "9001"})
    assert read_variables["PORT"] == "9001"
    assert read_variables["HOST"] == "0.0.0.0"


def test_an_env_file_is_read_as_it_is_written(env_file: Path) -> None:
    read_variables = read_environment({"ENV_FILE": str(env_file)})
    assert read_variables["LOG_LEVEL"] == "debug"
    assert read_variables["SERVICE_NAME"] == "a$HOST${PORT}"  # a secret may hold a dollar


def test_set_to_nothing_is_not_set(env_file: Path) -> None:
    read_variables = read_environment({"ENV_FILE": str(env_file), "PORT": ""})
    assert not {"WORKERS", "LOG_FORMAT"} & set(read_variables)
    assert read_variables["PORT"] == "9000"  # of the file: nothing above it is set


def test_without_an_env_file_there_is_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for environ in ({"PORT": "9001"}, {"PORT": "9001", "ENV_FILE": os.devnull}):
        assert read_environment(environ) == environ
    assert read_environment({"PORT": "9001", "ENV_FILE": ""}) == {"PORT": "9001"}


def test_an_env_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "latin-1").write_bytes(b"SERVICE_NAME=Caf\xe9\n")
    for name, words in {
        "nowhere": "names .*/nowhere, which is not a file",
        ".": "names .*, which is not a file",
        "latin-1": "cannot be read: it is not UTF-8",
    }.items():
        with pytest.raises(SettingsError, match=f"^ENV_FILE {words}"):
            read_environment({"ENV_FILE": str(tmp_path / name), "PORT": "9001"})


def test_an_env_file_may_be_a_pipe(tmp_path: Path) -> None:
    """As shells make of `ENV_FILE=<(…)`."""
    reads, writes = os.pipe()
    os.write(writes, b"PORT=9001\n")
    os.close(writes)
    assert read_environment({"ENV_FILE": f"/dev/fd/{reads}"})["PORT"] == "9001"
    os.close(reads)


@pytest.mark.parametrize(
    ("variables", "risks"),
    [
        ({}, []),
        ({"PUBLIC_URL": "https://referrals.example.com"}, []),
        ({"PUBLIC_URL": "http://localhost:1"}, []),
        ({"PUBLIC_URL": "http://shop.localhost"}, []),
        ({"PUBLIC_URL": "http://127.0.0.2"}, []),
        ({"PUBLIC_URL": "http://[::1]:8080"}, []),
        ({"PUBLIC_URL": "http://referrals.example.com"}, ["PUBLIC_URL"]),
        ({"PUBLIC_URL": "http://10.0.0.1"}, ["PUBLIC_URL"]),
        ({"PUBLIC_URL": "http://localhost.example.com"}, ["PUBLIC_URL"]),
        ({"APP_URL": "http://app.example.com", "SMTP_URL": "smtps://a"}, ["APP_URL"]),
        ({"APP_URL": "http://localhost:3000", "SMTP_URL": "smtps://a"}, []),
        ({"ARGON2_MEMORY_KIB": "8"}, ["ARGON2_MEMORY_KIB"]),
        ({"ARGON2_MEMORY_KIB": "19455"}, ["ARGON2_MEMORY_KIB"]),
        ({"ARGON2_PASSES": "1"}, ["ARGON2_MEMORY_KIB"]),
        ({"ARGON2_MEMORY_KIB": "47104", "ARGON2_PASSES": "1"}, []),
        ({"ARGON2_MEMORY_KIB": "7168", "ARGON2_PASSES": "5"}, []),
        ({"SMTP_URL": "smtp://mail.example.com"}, ["SMTP_URL"]),
        ({"SMTP_URL": "smtp://localhost:25"}, []),
        ({"SMTP_URL": "smtp://[::1]:25"}, []),
        ({"SMTP_URL": "smtp://user:secret@mail.example.com"}, []),
        ({"SMTP_URL": "smtps://mail.example.com"}, []),
        ({"WEBHOOK_NETWORKS": "10.1.0.0/16,fd00::/8"}, []),
        ({"WEBHOOK_NETWORKS": "10.1.0.0/16,127.0.0.0/24"}, ["WEBHOOK_NETWORKS"]),
        ({"WEBHOOK_NETWORKS": "0.0.0.0/0"}, ["WEBHOOK_NETWORKS"]),
        ({"WEBHOOK_NETWORKS": "::/0"}, ["WEBHOOK_NETWORKS"]),
        (
            {"PUBLIC_URL": "http://a.example", "ARGON2_PASSES": "1", "SMTP_URL": "smtp://a"},
            ["PUBLIC_URL", "ARGON2_MEMORY_KIB", "SMTP_URL"],
        ),
    ],
)
def test_what_is_a_risk_is_told(variables: dict[str, str], risks: list[str]) -> None:
    """A password makes STARTTLS a condition, without one it is used where the server has it."""
    told = risks_of(read(MAIL_FROM="referrals@example.com", **variables))
    assert [risk.split()[0] for risk in told] == risks
    assert not any("secret" in risk for risk in told)


def test_the_env_file_is_looked_for_in_the_folder(
    env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(env_file.parent)
    env_file.rename(".env")
    assert read_environment({})["PORT"] == "9000"


def test_the_template_names_every_variable_once() -> None:
    template = (ROOT / ".env.template").read_text()
    assert sorted(re.findall(r"^([A-Z_0-9]+)=", template, re.MULTILINE)) == VARIABLES


def test_the_template_shows_the_defaults() -> None:
    shown = {name: value for name, value in dotenv_values(ROOT / ".env.template").items() if value}
    settings = read(**{**shown, **GIVEN})
    defaults = read()
    assert settings == replace(defaults, signing_keys=settings.signing_keys)
