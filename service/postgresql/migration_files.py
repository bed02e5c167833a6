"""The migrations that this release was written for."""

from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent.parent.parent / "sql" / "migrations"


@cache
def names_of_migrations() -> tuple[str, ...]:
    """Return their names in order, as of the first call: later files belong to other releases."""
    files = (file for file in FOLDER.glob("*.sql") if not file.name.endswith(".rollback.sql"))
    return tuple(sorted(file.stem for file in files))
