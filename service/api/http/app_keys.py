"""Typed keys of what the application and each request carry."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from service.api.http.load_shedding import LoadShedder
from service.domain.rate_limits import RateLimit
from service.redis.rate_limits import Window
from service.services import Services
from service.settings.settings import Settings
from service.telemetry.access_log import AccessLog

SETTINGS: Final = web.AppKey("SETTINGS", Settings)
ACCESS_LOG: Final = web.AppKey("ACCESS_LOG", AccessLog)
LOAD_SHEDDER: Final = web.AppKey("LOAD_SHEDDER", LoadShedder)
STOPPING: Final = web.AppKey("STOPPING", asyncio.Event)
"""Set once the process is told to stop; it still answers for a while."""
RATE_LIMITS: Final = web.AppKey("RATE_LIMITS", Mapping[str, RateLimit | None])
SERVICES: Final = web.AppKey("SERVICES", Services)
"""Present from the application's startup to its cleanup."""


@dataclass(slots=True)
class Context:
    """What is known about a request, besides what it contains."""

    request_id: str
    user_id: str | None = None
    """The caller, for the log."""
    windows: Sequence[Window] = ()
    """The rate limits that the request was counted in."""


CONTEXT: Final = web.RequestKey("CONTEXT", Context)
