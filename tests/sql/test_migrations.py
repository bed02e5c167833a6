"""The migrations go up, down and up again, and start over wherever they were interrupted."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlparse
from yoyo import get_backend, read_migrations

from service.postgresql.migration_files import FOLDER
from service.postgresql.migrations import MigrationError, apply_migrations
from tests.conftest import Servers

STEPS = sorted(file for file in FOLDER.glob("*.sql") if ".rollback." not in file.name)
NAMES = [step.stem for step in STEPS]
[OF_NAMES] = [name for name in NAMES if name.endswith("_referral_code_names")]

# Everything that a migration can make or change, one row each.
SCHEMA = """
    SELECT 'column', table_name, column_name,
           concat_ws(' ', data_type, is_nullable, column_default)
      FROM information_schema.columns
     WHERE table_schema = 'public'
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
      FROM pg_constraint
     WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index', tablename, indexname, indexdef
      FROM pg_indexes
     WHERE schemaname = 'public'
    UNION ALL
    SELECT 'relation', relname, relkind::text, ''
      FROM pg_class
     WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'function', proname, '', prosrc
      FROM pg_proc
     WHERE pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'type', typname, typtype::text, ''
      FROM pg_type
     WHERE typnamespace = 'public'::regnamespace
"""

Schema = set[tuple[Any, ...]]


def schema_of(url: str) -> Schema:
    """Return what is in the database, without yoyo's own tables."""
    with psycopg.connect(url) as connection:
        return {row for row in connection.execute(SCHEMA) if "yoyo" not in row[1]}


def run(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def applied(url: str) -> list[str]:
    return [name for (name,) in run(url, "SELECT migration_id FROM _yoyo_migration ORDER BY 1")]


def move(url: str, direction: str, name: str) -> None:
    """Apply or roll back one migration, as yoyo does it."""
    migrations = read_migrations(str(FOLDER)).filter(lambda migration: migration.id == name)
    with get_backend(url.replace("postgresql://", "postgresql+psycopg://")) as backend:
        backend.init_database()
        with backend.lock():
            getattr(backend, f"{direction}_migrations")(migrations)


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [name[:4] for name in NAMES] == [f"{number + 1:04}" for number in range(len(NAMES))]


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_a_migration_says_what_it_is_for_and_what_it_needs(step: Path) -> None:
    sentence, depends, *_ = step.read_text().splitlines()
    assert re.fullmatch(r"-- [A-Z].*[.…]", sentence)
    found = re.fullmatch(r"-- depends:((?: [0-9a-z_]+)*)", depends)
    assert found is not None
    assert set(found[1].split()) <= set(NAMES[: NAMES.index(step.stem)])


def test_every_migration_has_a_rollback_and_every_rollback_a_migration() -> None:
    rollbacks = sorted(
        file.name.removesuffix(".rollback.sql") for file in FOLDER.glob("*.rollback.*")
    )
    assert rollbacks == NAMES


def test_each_step_leads_up_down_and_up_again(empty_database: str) -> None:
    nothing = schema_of(empty_database)
    assert nothing == set()
    levels = [nothing]
    for name in NAMES:
        move(empty_database, "apply", name)
        above = schema_of(empty_database)
        assert above != levels[-1], f"{name} changes nothing"
        move(empty_database, "rollback", name)
        assert schema_of(empty_database) == levels[-1], f"the rollback of {name} leaves a rest"
        move(empty_database, "apply", name)
        assert schema_of(empty_database) == above
        levels.append(above)
    for name, below in zip(reversed(NAMES), reversed(levels[:-1]), strict=True):
        move(empty_database, "rollback", name)
        assert schema_of(empty_database) == below
    assert applied(empty_database) == []


def test_all_are_applied_once(empty_database: str) -> None:
    assert apply_migrations(empty_database) == NAMES
    assert applied(empty_database) == NAMES
    assert apply_migrations(empty_database) == []
    assert run(empty_database, "SELECT * FROM yoyo_lock") == []


def test_rolled_back_to_the_ground_nothing_but_yoyos_tables_stays(empty_database: str) -> None:
    apply_migrations(empty_database)
    for name in reversed(NAMES):
        move(empty_database, "rollback", name)
    assert schema_of(empty_database) == set()
    assert apply_migrations(empty_database) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_was_applied_and_not_marked_is_applied_again(
    empty_database: str, name: str
) -> None:
    """A kill between the two, which yoyo does in two transactions."""
    apply_migrations(empty_database)
    whole = schema_of(empty_database)
    run(empty_database, f"DELETE FROM _yoyo_migration WHERE migration_id = '{name}'")
    assert apply_migrations(empty_database) == [name]
    assert schema_of(empty_database) == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_was_rolled_back_and_is_still_marked_is_rolled_back_again(
    empty_database: str, name: str
) -> None:
    for step in NAMES[: NAMES.index(name) + 1]:
        move(empty_database, "apply", step)
    marks = run(empty_database, "SELECT * FROM _yoyo_migration ORDER BY migration_id")
    move(empty_database, "rollback", name)
    below = schema_of(empty_database)
    with psycopg.connect(empty_database) as connection:
        places = ", ".join(["%s"] * len(marks[-1]))
        connection.execute(f"INSERT INTO _yoyo_migration VALUES ({places})", marks[-1])
    move(empty_database, "rollback", name)
    assert schema_of(empty_database) == below
    assert applied(empty_database) == NAMES[: NAMES.index(name)]


def test_a_step_that_fails_leaves_nothing_and_does_not_keep_the_lock(empty_database: str) -> None:
    run(empty_database, "CREATE VIEW sessions AS SELECT 1 AS in_the_way")
    with pytest.raises(MigrationError, match=r"^A migration failed: \S.*$"):
        apply_migrations(empty_database)
    assert applied(empty_database) == ["0001_users"]
    run(empty_database, "DROP VIEW sessions")
    assert apply_migrations(empty_database) == NAMES[1:]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_left_as_it_is(servers: Servers, encoding: str) -> None:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"
            " LOCALE_PROVIDER libc LOCALE 'C'"
        )
        try:
            url = urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()
            with pytest.raises(MigrationError, match=f"the encoding {encoding} instead of UTF8"):
                apply_migrations(url)
            tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            with psycopg.connect(url) as there:
                assert there.execute(tables).fetchone() == (0,)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


# The names of referral codes.

BEFORE_NAMES = """
    INSERT INTO users (user_id, email, email_key, role, created_at, erased_at)
    SELECT id::uuid, email, email, 'user', now(), CASE WHEN email IS NULL THEN now() END
      FROM (VALUES
            ('00000000-0000-0000-0000-00000000000a', 'anna@x'),
            ('00000000-0000-0000-0000-00000000000b', 'bert@x'),
            ('00000000-0000-0000-0000-00000000000c', 'carl@x'),
            ('00000000-0000-0000-0000-00000000000d', 'dora@x'),
            ('00000000-0000-0000-0000-00000000000e', NULL)
           ) AS new (id, email);
    INSERT INTO referral_codes
           (referral_code_id, owner_id, code, created_at, expires_at, ended_at)
    SELECT gen_random_uuid(), ('00000000-0000-0000-0000-00000000000' || owner)::uuid, code,
           timestamptz '2026-01-01 00:00Z' + age * interval '1 day', '2099-01-01',
           CASE WHEN ended THEN timestamptz '2026-02-01 00:00Z' END
      FROM (VALUES
            ('b', 'SOLD-1', 2, true), ('a', 'SOLD-1', 1, true), ('b', 'S0LD-I', 3, true),
            ('a', 'LIVE-1', 5, false), ('b', 'L1VE-1', 6, false),
            ('e', 'GONE-1', 1, true), ('b', 'GONE-1', 2, true),
            ('b', 'OWN-1', 1, true), ('b', 'OWN-1', 2, true), ('b', '0WN-L', 3, true)
           ) AS made (owner, code, age, ended)
"""
OWNERS = """
    SELECT name, right(owner_id::text, 1)
      FROM referral_code_names
"""
NEW_CODE = """
    INSERT INTO referral_codes (referral_code_id, owner_id, code, created_at, expires_at)
    VALUES (gen_random_uuid(), '00000000-0000-0000-0000-00000000000{}', '{}', now(), '2099-01-01')
"""
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
OLDEST = {("S01D-1", "a"), ("11VE-1", "a"), ("G0NE-1", None), ("0WN-1", "b")}


def test_names_that_are_contested_go_to_their_oldest_owner(empty_database: str) -> None:
    for name in NAMES[: NAMES.index(OF_NAMES)]:
        move(empty_database, "apply", name)
    run(empty_database, BEFORE_NAMES)
    codes = run(empty_database, "SELECT code, ended_at FROM referral_codes ORDER BY 1, 2")
    for _ in range(2):
        move(empty_database, "apply", OF_NAMES)
        assert set(run(empty_database, OWNERS)) == OLDEST
        # What lives lives on, also under a name that has become another's.
        after = run(empty_database, "SELECT code, ended_at FROM referral_codes ORDER BY 1, 2")
        assert after == codes
        run(empty_database, "UPDATE referral_codes SET ended_at = now() WHERE ended_at IS NULL")
        for owner, code in (("b", "SOLD-1"), ("b", "LIVE-1"), ("b", "L1VE-1"), ("a", "G0NE-1")):
            with pytest.raises(psycopg.errors.UniqueViolation):
                run(empty_database, NEW_CODE.format(owner, code))
        with psycopg.connect(empty_database) as connection:
            connection.execute(NEW_CODE.format("a", "L1VE-1"))
            connection.execute(NEW_CODE.format("b", "0WN-I"))
            connection.rollback()
        codes = run(empty_database, "SELECT code, ended_at FROM referral_codes ORDER BY 1, 2")
        move(empty_database, "rollback", OF_NAMES)
        run(empty_database, NEW_CODE.format("b", "SOLD-1"))
        run(empty_database, "DELETE FROM referral_codes WHERE ended_at IS NULL")


def test_a_code_that_is_made_while_names_are_given_out_gets_its_own(empty_database: str) -> None:
    """By the release before, between the steps of the migration: those that come after the lock
    wait for the commit, and meet the trigger."""
    for name in NAMES[: NAMES.index(OF_NAMES)]:
        move(empty_database, "apply", name)
    run(empty_database, BEFORE_NAMES)
    steps = sqlparse.split((FOLDER / f"{OF_NAMES}.sql").read_text())
    [lock] = [number for number, step in enumerate(steps) if "LOCK TABLE" in step]
    with psycopg.connect(empty_database) as migrating, ThreadPoolExecutor() as threads:
        for step in steps[:lock]:
            migrating.execute(step)
        run(empty_database, "UPDATE referral_codes SET ended_at = now() WHERE ended_at IS NULL")
        run(empty_database, NEW_CODE.format("a", "BETWEEN-1"))
        for step in steps[lock:]:
            migrating.execute(step)
        late = [
            threads.submit(run, empty_database, NEW_CODE.format(owner, code))
            for owner, code in (("b", "BETWEEN-1"), ("c", "SOLD-1"), ("d", "LATE-1"))
        ]
        while run(empty_database, WAITING) != [(len(late),)]:
            assert not any(one.done() for one in late)
        migrating.commit()
        for refused in late[:2]:
            with pytest.raises(psycopg.errors.UniqueViolation) as caught:
                refused.result()
            assert caught.value.diag.constraint_name == "referral_codes_live_code_unique"
        late[2].result()
    assert set(run(empty_database, OWNERS)) == {*OLDEST, ("BETWEEN-1", "a"), ("1ATE-1", "d")}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://localhost:1/db", "PostgreSQL cannot be reached: "),
        ("postgresql:///db?host=/nowhere", "PostgreSQL cannot be reached: "),
        ("postgresql://localhost:1/db?nonsense=1", "DATABASE_URL has a parameter nonsense "),
    ],
)
def test_a_database_that_is_not_there_is_one_sentence(url: str, words: str) -> None:
    with pytest.raises(MigrationError) as caught:
        apply_migrations(url)
    assert str(caught.value).startswith(words)
    assert len(str(caught.value).splitlines()) == 1


OLD_CLIENT = """
    INSERT INTO oauth_clients (client_id, name, secret_hash, redirect_uris, scopes, created_at)
    VALUES (%s, 'A client', %s, %s, %s, now())
"""
OLD_SESSION = """
    INSERT INTO sessions (session_id, client_id, origin, scopes, created_at, refreshed_at,
                          expires_at)
    VALUES (gen_random_uuid(), %s, 'client_credentials', '{}', now(), now(), now() + '1 day')
    RETURNING 'session:' || session_id
"""
FOR_USERS = ["profile", "codes:read", "codes:write", "referrals:read"]
URIS = ["https://app.example/callback"]
USERS_GRANTS = ["authorization_code", "refresh_token"]
CLIENTS = [
    # What it was, and its grants and own scopes since.
    ("public", None, URIS, FOR_USERS, USERS_GRANTS, []),
    ("for users", b"x", URIS, [*FOR_USERS, "admin"], USERS_GRANTS, []),
    ("for itself", b"x", [], FOR_USERS, ["client_credentials"], ["referrals:read"]),
    (
        "an admin",
        b"x",
        [],
        ["admin", "referrals:read", "profile"],
        ["client_credentials"],
        ["admin", "referrals:read"],
    ),
    ("nothing", b"x", [], ["profile"], ["client_credentials"], []),
]


def test_clients_of_before_there_were_grants_keep_what_they_need(empty_database: str) -> None:
    before = NAMES[: NAMES.index("0018_client_grants")]
    for name in before:
        move(empty_database, "apply", name)
    with psycopg.connect(empty_database) as connection:
        for name, secret, uris, scopes, _, _ in CLIENTS:
            connection.execute(OLD_CLIENT, [name, secret, uris, scopes])
    move(empty_database, "apply", "0018_client_grants")
    found = {
        name: (scopes, grants, set(own), resource_server)
        for name, scopes, grants, own, resource_server in run(
            empty_database,
            "SELECT client_id, scopes, grants, own_scopes, resource_server FROM oauth_clients",
        )
    }
    assert found == {
        name: (scopes, grants, set(own), False) for name, _, _, scopes, grants, own in CLIENTS
    }
    with psycopg.connect(empty_database) as connection:  # as the release before goes on writing
        connection.execute(OLD_CLIENT, ["later", b"x", [], FOR_USERS])
    [(grants, own)] = run(
        empty_database, "SELECT grants, own_scopes FROM oauth_clients WHERE client_id = 'later'"
    )
    assert (grants, own) == (USERS_GRANTS, [])


def test_the_sessions_of_clients_that_were_deleted_before_end(empty_database: str) -> None:
    for name in NAMES[: NAMES.index("0018_client_grants")]:
        move(empty_database, "apply", name)
    with psycopg.connect(empty_database) as connection:
        keys: dict[str, set[str]] = {}
        for client_id, count in (("gone", 1500), ("there", 2), ("first-party", 2)):
            connection.execute(OLD_CLIENT, [client_id, b"x", [], FOR_USERS])
            keys[client_id] = {
                row[0]
                for _ in range(count)
                for row in connection.execute(OLD_SESSION, [client_id]).fetchall()
            }
        connection.execute("UPDATE oauth_clients SET deleted_at = now() WHERE client_id = 'gone'")
    move(empty_database, "apply", "0018_client_grants")
    left = run(
        empty_database, "SELECT 'session:' || session_id FROM sessions WHERE ended_at IS NULL"
    )
    assert {key for (key,) in left} == keys["there"] | keys["first-party"]
    payloads = [payload for (payload,) in run(empty_database, "SELECT payload FROM jobs")]
    assert {key for payload in payloads for key in payload} == keys["gone"]
    assert max(map(len, payloads)) <= 1000


def test_a_migration_that_deadlocks_with_the_running_service_is_tried_again(
    empty_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in NAMES[: NAMES.index("0021_programmes")]:
        move(empty_database, "apply", name)
    with ThreadPoolExecutor() as threads, psycopg.connect(empty_database) as request:
        request.execute("SET deadlock_timeout = '1h'")  # so that it is the other one that loses
        request.execute("LOCK TABLE referrals IN ACCESS SHARE MODE")
        migrating = threads.submit(apply_migrations, empty_database)
        while run(empty_database, WAITING) != [(1,)]:
            assert not migrating.done(), migrating.exception()
        request.execute("LOCK TABLE referral_codes IN ACCESS SHARE MODE")
        request.rollback()
        assert migrating.result() == NAMES[NAMES.index("0021_programmes") :]
    assert applied(empty_database) == NAMES
    assert "waited for each other" in caplog.text


def test_the_standing_of_a_referrer_with_many_referrals_is_counted_when_migrating(
    empty_database: str,
) -> None:
    """When it first changes, counting so many could take longer than a statement may."""
    for name in NAMES[: NAMES.index("0021_programmes")]:
        move(empty_database, "apply", name)
    few, many = UUID(int=1), UUID(int=2)
    new_users = """
        INSERT INTO users (user_id, email, email_key, password_hash, role, created_at)
        SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'))::uuid,
               n || '@a.example', n || '@a.example', 'x', 'user', now()
          FROM generate_series(1, 10011) AS n
    """
    new_referrals = f"""
        INSERT INTO referrals (user_id, referrer_id, code, registered_at, email_hash)
        SELECT user_id, CASE WHEN row_number() OVER (ORDER BY user_id) <= 8 THEN '{few}'::uuid
                             ELSE '{many}'::uuid END, 'ANNA', now(), email_key::bytea
          FROM users
         WHERE user_id NOT IN ('{few}', '{many}')
    """
    for statement in (new_users, new_referrals):
        run(empty_database, statement)
    move(empty_database, "apply", "0021_programmes")
    standings = run(empty_database, "SELECT participant_id, qualified FROM standings")
    assert standings == [(many, 10_001)]


def test_of_the_referrals_of_a_mailbox_all_but_the_first_become_self_referrals(
    empty_database: str,
) -> None:
    """Whatever other flags they have: these hid them from the rule."""
    for name in NAMES[: NAMES.index("0024_self_referrals")]:
        move(empty_database, "apply", name)
    statements = (
        """
        INSERT INTO users (user_id, email, email_key, password_hash, role, created_at)
        SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'))::uuid,
               n || '@a.example', n || '@a.example', 'x', 'user', now()
          FROM generate_series(1, 6) AS n
        """,
        """
        INSERT INTO referrals
               (user_id, referrer_id, code, registered_at, email_hash, mailbox_hash, flags)
        SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'))::uuid,
               '00000000-0000-0000-0000-000000000001', 'ANNA', now() + n * interval '1 second',
               n::text::bytea, mailbox::bytea, flags::text[]
          FROM (VALUES (2, 'a', '{velocity}'), (3, 'a', '{velocity}'), (4, 'a', '{self-referral}'),
                       (5, 'b', '{velocity}'), (6, 'a', '{}'))
               AS referral (n, mailbox, flags)
        """,
    )
    for statement in statements:
        run(empty_database, statement)
    move(empty_database, "apply", "0024_self_referrals")
    flags = [flags for (flags,) in run(empty_database, "SELECT flags FROM referrals ORDER BY 1")]
    assert sorted(flags) == [
        ["self-referral"],
        ["self-referral"],
        ["self-referral", "velocity"],
        ["velocity"],
        ["velocity"],
    ]
