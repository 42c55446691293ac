"""An orderly end: whoever asks first is still answered, whoever comes later is told so."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

import uvicorn

_LOOK_SECONDS = 0.05


class DrainingServer(uvicorn.Server):
    """Told to stop, it goes on listening until all requests under way are answered.

    Meanwhile `/readyz` and every new request get 503, so that a balancer sends them elsewhere; a
    closed port would only look like a crash. Told a second time, it stops at once.
    """

    def __init__(self, config: uvicorn.Config, *, drain: Callable[[], None]) -> None:
        """drain: called when it is told to stop."""
        super().__init__(config)
        self._drain = drain
        self._ending: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second."""
        if self._ending is not None or not self.started:
            super().handle_exit(sig, frame)
            return
        self._drain()
        loop = asyncio.get_event_loop()
        loop.call_soon_threadsafe(self._begin_to_end, loop, sig)

    def _begin_to_end(self, loop: asyncio.AbstractEventLoop, sig: int) -> None:
        self._ending = loop.create_task(self._end(sig))

    async def _end(self, sig: int) -> None:
        seconds = self.config.timeout_graceful_shutdown or 0
        for _ in range(int(seconds / _LOOK_SECONDS)):
            if not self.server_state.tasks:  # uvicorn tells nobody when it is empty
                break
            await asyncio.sleep(_LOOK_SECONDS)
        super().handle_exit(signal.Signals(sig), None)
