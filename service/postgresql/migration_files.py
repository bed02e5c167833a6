"""Which migrations the code was written for: those that lie beside it."""

from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent.parent.parent / "sql" / "migrations"


@cache
def names_of_migrations() -> tuple[str, ...]:
    """Return their names in order, as they are at the first call: later files are of others."""
    files = (file for file in FOLDER.glob("*.sql") if not file.name.endswith(".rollback.sql"))
    return tuple(sorted(file.stem for file in files))
