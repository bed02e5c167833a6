"""`ledger`: proving that the ledger is right."""

import argparse

from service.cli.console import Commands, Environment
from service.cli.resources import beside_dev
from service.domain.operators import OperatorError
from service.settings.schema import load
from service.settings.settings import DatabaseSettings


def add_commands(commands: Commands) -> None:
    ledger = commands.group("ledger", "Check the ledger.")
    ledger.add("check", _check)


async def _check(parsed: argparse.Namespace, environ: Environment) -> None:
    """Check that balances, rewards, standings and caps are right; exit with status 1 if not.

    Prints a line for each difference: the participant or programme, and what is wrong. Changes
    nothing.
    """
    from service.postgresql import database
    from service.postgresql.startup_check import check_database
    from service.use_cases.ledger_check import LedgerCheck

    settings = load(DatabaseSettings, beside_dev(environ))
    url = settings.database_url
    await check_database(url)
    found = 0
    async with database.connect(url, 1, settings.database_prepared_statements) as opened:
        async for subject_id, difference in LedgerCheck(opened).check_all():
            found += 1
            print(subject_id, difference, sep="\t")
    if found:
        raise OperatorError(f"{found} difference{'' if found == 1 else 's'} found.")
    print("No differences found.")
