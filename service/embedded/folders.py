"""The folders of a server: their owner, who may enter them, and which process uses them."""

import hashlib
import logging
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from service.embedded.errors import EmbeddedServerError, explained

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder for this process, as long as servers run in it.

    Raises EmbeddedServerError, naming the other process, if the folder is in use.
    """
    with explained(f"The folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise EmbeddedServerError(
                f"{folder} is already in use by process {lock.read() or 'unknown'}:"
                " end that one first."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def package_folder(package: str) -> Path:
    """Find an installed package without importing it; its import has side effects."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        requirements = Path(__file__).with_name("requirements.txt")
        raise EmbeddedServerError(f"{package} is missing: pip install -r {requirements}")
    return Path(spec.origin).resolve().parent


def socket_folder(data: Path) -> Path:
    """Return the empty, private folder for the sockets of the server with that data.

    Its name follows from the data's path and owner, so that a killed run's folder is used again.
    Raises EmbeddedServerError if another user has made a folder of that name.
    """
    owner = data.stat()
    name = hashlib.sha256(f"{owner.st_uid}:{data}".encode()).hexdigest()[:16]
    temporary = str(Path(tempfile.gettempdir()).resolve())
    # A socket's path is limited to about 100 bytes, and this one is part of a URL, unquoted.
    if not re.fullmatch(r"[A-Za-z0-9_./-]{1,60}", temporary):
        temporary = "/tmp"  # noqa: S108 - the folder in it is private, and checked to be
    folder = Path(temporary, f"embedded-{name}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid not in (os.geteuid(), owner.st_uid):
        raise EmbeddedServerError(f"{folder} belongs to another user: remove it first.")
    # A handle, as the name could be exchanged for a link between two calls.
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(handle, 0o700)
        for leftover in os.listdir(handle):  # noqa: PTH208 - pathlib has no handles
            os.unlink(leftover, dir_fd=handle)
        if os.geteuid() == 0:
            os.fchown(handle, owner.st_uid, owner.st_gid)
    finally:
        os.close(handle)
    let_through(owner.st_uid, folder)
    return folder


def let_through(user: int, path: Path) -> None:
    """As root, let another user reach the path: add o+x, no more, to each folder in the way."""
    if os.geteuid() != 0 or user == 0:
        return
    barring = []
    for folder in path.parents:
        status = folder.stat()
        needed = stat.S_IXUSR if status.st_uid == user else stat.S_IXOTH
        if not status.st_mode & needed:
            folder.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)
            barring.append(str(folder))
    if barring:
        logger.warning("Added o+x to %s so that user %s can pass.", ", ".join(barring), user)
