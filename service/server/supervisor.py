"""One process a worker, all on one port, until a signal ends them."""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import uvloop
from prometheus_client.multiprocess import mark_process_dead

from service.app import FINISH_SECONDS
from service.domain.operators import OperatorError
from service.server import worker
from service.server.listeners import Listeners
from service.settings.settings import Settings

EARLY_SECONDS: Final = 5.0
"""A worker that dies sooner has died early."""
TRIES: Final = 3
"""After so many early deaths in a row, more would follow, and clients would only wait."""
_HOPELESS: Final = (
    f"{TRIES} workers in a row ended right after they had started; see the lines above."
)
log = logging.getLogger(__name__)


def serve(settings: Settings, listeners: list[Listeners], when_ready: Callable[[], None]) -> None:
    """Serve on these sockets until SIGTERM or SIGINT; raise OperatorError."""
    if len(listeners) == 1:
        uvloop.run(worker.serve(settings, listeners[0], None, when_ready))
    else:
        _Supervisor(settings, listeners, when_ready).run()


@dataclass
class _Slot:
    """The place of one worker, which another takes when it dies."""

    listeners: Listeners
    started_at: float = 0.0
    ready: int = -1
    """The end of a pipe on which the worker reports that it serves."""
    has_served: bool = False
    failures: int = 0
    """How many workers in a row have died early."""

    def note_death(self, status: int) -> None:
        """Count it, unless the worker had served for a while or was killed from outside."""
        served = bool(os.read(self.ready, 1))
        os.close(self.ready)
        self.has_served = self.has_served or served
        lived = time.monotonic() - self.started_at
        ended = status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
        if (ended and self.has_served) or (served and lived > EARLY_SECONDS):
            self.failures = 0
        else:
            self.failures += 1


class _Supervisor:
    """Starts the workers, replaces those that die, and ends all of them."""

    def __init__(
        self, settings: Settings, listeners: list[Listeners], when_ready: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._slots = [_Slot(each) for each in listeners]
        self._when_ready = when_ready
        self._workers: dict[int, _Slot] = {}
        self._stopping = False
        # Closes for the workers when the parent ends, however it ends.
        self._parent_lives, self._kept_open = os.pipe()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        for slot in self._slots:
            self._start(slot)
        self._when_ready()
        while not self._stopping:
            for pid, slot, status in self._reap():
                slot.note_death(status)
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
                if slot.failures >= TRIES:
                    self._end()
                    raise OperatorError(_HOPELESS)
                if not self._stopping:
                    code = os.waitstatus_to_exitcode(status)
                    how = f"status {code}" if code >= 0 else f"signal {-code}"
                    log.error("worker died, starting another: %d, %s", pid, how)
                    self._start(slot)
            time.sleep(0.2)
        self._end()

    def _start(self, slot: _Slot) -> None:
        slot.started_at = time.monotonic()
        slot.ready, says_ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_worker(slot, says_ready)
        os.close(says_ready)
        self._workers[pid] = slot

    def _become_worker(self, slot: _Slot, says_ready: int) -> NoReturn:
        status = 1
        try:
            os.close(self._kept_open)
            for other in self._slots:
                if other is not slot:
                    other.listeners.close()  # or it would take connections and accept none
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor passes Ctrl-C on
            ready = partial(os.write, says_ready, b".")
            uvloop.run(worker.serve(self._settings, slot.listeners, self._parent_lives, ready))
            status = 0
        except BaseException:
            log.exception("worker failed")
            time.sleep(1)  # what fails at start would otherwise fail in a busy loop
        finally:
            logging.shutdown()
            os._exit(status)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _end(self) -> None:
        for slot in self._slots:
            slot.listeners.close()
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        delay = self._settings.shutdown_delay.total_seconds()
        ending = worker.GOODBYE_SECONDS + worker.DRAIN_SECONDS + FINISH_SECONDS
        deadline = time.monotonic() + delay + ending + 1
        while self._workers and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> list[tuple[int, _Slot, int]]:
        """Return the workers that have died, each with its slot and its status."""
        ended = [os.waitpid(pid, os.WNOHANG) for pid in self._workers]
        return [(pid, self._workers.pop(pid), status) for pid, status in ended if pid]
