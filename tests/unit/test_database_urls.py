"""DATABASE_URL: every parameter is met for both drivers, or refused in words."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from service.postgresql.urls import DatabaseUrlError, Host, parse_database_url


def faults(url: str) -> tuple[str, ...]:
    with pytest.raises(DatabaseUrlError) as caught:
        parse_database_url(url)
    return caught.value.faults


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://h/db", [("h", None)]),
        ("postgres://h:5433/db", [("h", 5433)]),
        ("POSTGRESQL://h/db", [("h", None)]),
        ("postgresql:///db", [(None, None)]),
        ("postgresql://:5433/db", [(None, 5433)]),
        ("postgresql://u@[2001:db8::1]:5433/db", [("2001:db8::1", 5433)]),
        ("postgresql://[fe80::1%25eth0]/db", [("fe80::1%eth0", None)]),
        ("postgresql://u@a:1,b,[::1]:3/db", [("a", 1), ("b", None), ("::1", 3)]),
        ("postgresql://%2Frun%2Fpostgresql/db", [("/run/postgresql", None)]),
        ("postgresql:///db?host=/run/postgresql&port=5433", [("/run/postgresql", 5433)]),
        ("postgresql:///db?host=a,b&port=1,2", [("a", 1), ("b", 2)]),
        ("postgresql:///db?host=a,b&port=1", [("a", 1), ("b", 1)]),
    ],
)
def test_hosts_and_ports_are_found(url: str, hosts: list[tuple[str | None, int | None]]) -> None:
    assert parse_database_url(url).hosts == tuple(Host(name, port) for name, port in hosts)


@pytest.mark.parametrize(
    ("url", "user", "password", "database"),
    [
        ("postgresql://", None, None, None),
        ("postgresql://u@h", "u", None, None),
        ("postgresql://u:@h/d", "u", None, "d"),
        ("postgresql://u:p%40ss%3A%2F%3F%25%23@h/d", "u", "p@ss:/?%#", "d"),
        ("postgresql://u:p@ss@h/d", "u", "p@ss", "d"),
        ("postgresql://u:p:s@h/d", "u", "p:s", "d"),
        ("postgresql://u:p+s%2B#@h/d", "u", "p+s+#", "d"),
        ("postgresql://u%40server:%C3%BC@h/a%20b", "u@server", "\u00fc", "a b"),
        ("postgresql:///?user=u&password=p%26s&dbname=d", "u", "p&s", "d"),
    ],
)
def test_user_password_and_database_are_decoded_once(
    url: str, user: str | None, password: str | None, database: str | None
) -> None:
    read = parse_database_url(url)
    assert (read.user, read.password, read.database) == (user, password, database)
    assert "ss" not in repr(read).replace("password", "")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@[::1/d",
        "postgresql://u:hunter2@h:port/d",
        "postgresql://u:hunter2@h:0/d",
        "postgresql://u:hunter2@h:65536/d",
        "postgresql://u:hunter2@h:1:2/d",
        "postgresql://u:hunter2%zz@h/d",
        "postgresql://u:hunter2%00@h/d",
        "postgresql://u:hunter2%ff@h/d",
        "postgresql://u:hun/ter2@h/d",
        "postgresql://u:hun?hunter2@h/d",
        "postgresql://a,b/d?port=1,2,3",
        "postgresql://h/d?sslmode",
    ],
)
def test_what_has_not_the_form_is_told_how_without_repeating_it(url: str) -> None:
    [fault] = faults(url)
    assert fault.startswith("must be a URL of the form postgresql://USER:PASSWORD@HOST")
    assert "%40" in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sslmode=no-verify", "sslmode=no-verify is not PostgreSQL's: write sslmode=require."),
        ("sslmode=REQUIRE", "sslmode must be disable or allow or "),
        ("channel_binding=require", "channel_binding=require cannot be met: leave it out"),
        ("gssencmode=require", "gssencmode=require cannot be met: "),
        ("target_session_attrs=master", "target_session_attrs must be any or "),
        ("connect_timeout=soon", "connect_timeout must be a whole number."),
        ("keepalives=yes", "keepalives must be 1 or 0, or left out."),
        ("keepalives_idle=-1", "keepalives_idle must be a whole number."),
        ("connection_limit=0", "connection_limit must be 1 or more."),
        ("client_encoding=LATIN1", "client_encoding must be UTF8 or "),
        ("ssl=false", "ssl must be true, or left out."),
        ("sslrootcert=/nowhere/ca.pem", "sslrootcert must be a file that this service may read"),
        ("sslkey=/", "sslkey must be a file that this service may read, and / is not."),
        ("passfile=/nowhere", "passfile must be a file that this service may read"),
        ("sslrootcert=system&sslmode=require", "sslrootcert=system needs sslmode=verify-full."),
        ("sslnegotiation=direct", "sslnegotiation=direct needs sslmode=require, "),
        ("requirepeer=postgres", "has a parameter requirepeer that this service does not know"),
        ("service=ours", "has a parameter service that this service does not know"),
        ("pool_timeout=10", "has a parameter pool_timeout that this service does not know"),
        ("search_path=a", "has a parameter search_path that this service does not know"),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(query: str, words: str) -> None:
    [fault] = faults(f"postgresql://u:hunter2@h/d?{query}")
    assert fault.startswith(words)
    assert fault.endswith(".")


def test_all_that_is_wrong_is_told_at_once() -> None:
    told = faults("postgresql://h/d?sslmode=no-verify&channel_binding=require&nonsense=1")
    assert len(told) == 3


@pytest.mark.parametrize("query", ["hunter2%00x=1", "x-hunter2=1", "hunter=ter2@h/d"])
def test_what_may_be_a_part_of_the_password_is_not_repeated(query: str) -> None:
    """`?` in a password that was not encoded begins a query."""
    assert not any("hunter" in fault for fault in faults(f"postgresql://u:12?{query}"))


def test_verifying_needs_certificates_to_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    for mode in ("verify-ca", "verify-full"):
        [fault] = faults(f"postgresql://h/d?sslmode={mode}")
        assert fault.startswith(f"sslmode={mode} needs sslrootcert")
    own = tmp_path / "ca.pem"
    own.touch()
    read = parse_database_url(f"postgresql://h/d?sslmode=verify-full&sslrootcert={own}")
    assert read.parameters == {"sslmode": "verify-full", "sslrootcert": str(own)}
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "root.crt").touch()
    parse_database_url("postgresql://h/d?sslmode=verify-ca")


def test_the_systems_certificates_are_a_file_for_both() -> None:
    read = parse_database_url("postgresql://h/d?sslrootcert=system")
    assert read.parameters["sslmode"] == "verify-full"
    assert Path(read.parameters["sslrootcert"]).is_file()


EVERYTHING = (
    "connect_timeout=10&channel_binding=prefer&gssencmode=disable&sslcompression=0&sslsni=1"
    "&keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3"
    "&tcp_user_timeout=9000&sslmode=prefer&ssl_min_protocol_version=TLSv1.2&application_name=shop"
    "&options=-c%20jit%3Doff&target_session_attrs=read-write&client_encoding=UTF8&schema=a%22%20b"
    "&pgbouncer=true&connection_limit=3&uselibpqcompat=true&load_balance_hosts=disable"
)


def libpq_reads(parameters: dict[str, Any]) -> dict[str, Any]:
    return conninfo_to_dict(psycopg.conninfo.make_conninfo("", **parameters))


def test_libpq_gets_what_it_knows() -> None:
    read = parse_database_url(f"postgresql://h/d?{EVERYTHING}")
    known = libpq_reads(dict(read.parameters))
    assert known["connect_timeout"] == "10"
    assert known["options"] == '-c jit=off -csearch_path="a""\\ b"'
    assert not {"schema", "pgbouncer", "connection_limit", "uselibpqcompat"} & set(known)
    assert libpq_reads(dict(parse_database_url("postgresql://h?ssl=true").parameters)) == {
        "sslmode": "require"
    }


def test_asyncpg_gets_what_it_knows_and_the_rest_is_met_without_it() -> None:
    read = parse_database_url(f"postgresql://u:p@h:1/d?{EVERYTHING}")
    given = read.for_asyncpg(read.hosts[0])
    assert given == {
        "dsn": "postgresql://?sslmode=prefer&ssl_min_protocol_version=TLSv1.2"
        "&target_session_attrs=read-write",
        "host": "h",
        "port": 1,
        "user": "u",
        "password": "p",
        "database": "d",
    }
    assert read.server_settings("referrals") == {
        "application_name": "shop",
        "options": '-c jit=off -csearch_path="a""\\ b"',
    }
    assert read.connect_seconds == 10
    assert (read.connection_limit, read.prepared_statements) == (3, False)
    assert sorted(value for _, _, value in read.socket_options()) == [1, 3, 10, 30, 9000]


def test_without_parameters_the_defaults_are_libpqs() -> None:
    read = parse_database_url("postgresql://h/d?connect_timeout=0&keepalives_idle=0&sslmode=")
    assert read.connect_seconds == float("inf")
    assert read.server_settings("referrals") == {"application_name": "referrals"}
    assert [value for _, _, value in read.socket_options()] == [1]
    assert (read.connection_limit, read.prepared_statements) == (None, True)
    off = parse_database_url("postgresql://h/d?keepalives=0")
    assert [value for _, _, value in off.socket_options()] == [0]
