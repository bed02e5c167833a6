"""`webhooks`: the endpoints that companies listen at, and what they missed."""

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from uuid import UUID

from service.cli.console import Commands, Environment
from service.cli.resources import open_services

if TYPE_CHECKING:
    from service.domain.webhook_deliveries import Endpoint

_LARGEST_PAGE: Final = 100


def add_commands(commands: Commands) -> None:
    webhooks = commands.group("webhooks", "List, test and enable webhook endpoints.")
    webhooks.add("list", _list)
    replay = webhooks.add("replay", _replay)
    for one in (webhooks.add("test", _test), webhooks.add("enable", _enable), replay):
        one.add_argument("endpoint_id", type=UUID, metavar="ENDPOINT_ID")
    replay.add_argument(
        "--since",
        type=_moment,
        required=True,
        metavar="TIME",
        help="messages from this time on, such as 2026-11-26T09:30:00Z; they are kept for 30 days",
    )
    replay.add_argument("--all", action="store_true", help="also messages that were delivered")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("must be a time such as 2026-11-26T09:30:00Z") from error
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("must have a UTC offset, such as Z or +02:00")
    return moment.astimezone(UTC)


async def _list(_: argparse.Namespace, environ: Environment) -> None:
    """List the endpoints: id, host, types, state."""
    async with open_services(environ) as services:
        for endpoint in (await services.webhooks.page(_LARGEST_PAGE, None)).items:
            print(
                endpoint.endpoint_id,
                # The rest of a URL may be a secret.
                urlsplit(endpoint.url).hostname,
                " ".join(endpoint.types) or "all types",
                _state(endpoint),
                sep="\t",
            )


def _state(endpoint: "Endpoint") -> str:
    if endpoint.disabled_at is not None:
        return f"disabled {endpoint.disabled_at:%FT%TZ}: {endpoint.disabled_reason}"
    if endpoint.failing_since is not None:
        return f"failing since {endpoint.failing_since:%FT%TZ}"
    return "live"


async def _test(parsed: argparse.Namespace, environ: Environment) -> None:
    """Send a test message to an endpoint."""
    async with open_services(environ) as services:
        message_id = await services.webhooks.test(parsed.endpoint_id)
    print(f"webhook-id={message_id}")


async def _enable(parsed: argparse.Namespace, environ: Environment) -> None:
    """Enable a disabled endpoint."""
    from service.use_cases.webhooks import EndpointChange

    async with open_services(environ) as services:
        await services.webhooks.change(parsed.endpoint_id, EndpointChange(disabled=False))
    print(f"{parsed.endpoint_id} is enabled. To send what it missed, use `webhooks replay`.")


async def _replay(parsed: argparse.Namespace, environ: Environment) -> None:
    """Send messages again that could not be delivered."""
    async with open_services(environ) as services:
        messages = await services.webhooks.replay(
            parsed.endpoint_id, parsed.since, only_failed=not parsed.all
        )
    print(f"{messages} message{'' if messages == 1 else 's'} will be sent again.")
