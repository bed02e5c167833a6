"""Servers that keep their clients waiting."""

import asyncio


class Hanging:
    """A server that can be made to hang, and to go on, while it runs."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._released = asyncio.Event()

    @property
    def hanging(self) -> bool:
        """Whether nobody is answered; waiting clients are, once it is False again."""
        return not self._open.is_set()

    @hanging.setter
    def hanging(self, hanging: bool) -> None:
        if hanging:
            self._open.clear()
        else:
            self._open.set()

    def release(self) -> None:
        """Let those go on whom the step `hang` keeps now."""
        self._released.set()
        self._released = asyncio.Event()

    async def wait_while_hanging(self) -> None:
        await self._open.wait()

    async def wait_for_release(self) -> None:
        await self._released.wait()
