"""Listen and answer until told to stop."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chiasm import collector
from chiasm.errors import ConfigurationError
from chiasm.server.memory import keep_large_pieces

if TYPE_CHECKING:
    from chiasm.retrieval import Embedder
    from chiasm.settings import Settings

DRAIN_SECONDS = 30
_KEEP_ALIVE_SECONDS = 30  # longer than a console's pauses, shorter than a proxy's patience
_BACKLOG = 2048


def run(
    settings: Settings,
    *,
    embedder: Embedder | None = None,
    sample: bool = False,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are then answered first.

    embedder, sample: as for `create_app`.
    announce: told the server's address once it listens; by default it is logged.

    Raises `ConfigurationError` when the address cannot be listened on.
    """
    # Bound first: a taken port is known before anything slow has begun, and callers queue
    # instead of being refused while the rest is imported.
    keep_large_pieces()
    listener = _bind(settings.server.host, settings.server.port)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("chiasm").setLevel(logging.INFO)

    with collector.paused():
        import uvicorn

        from chiasm.server.app import create_app
        from chiasm.server.draining import DrainingServer

        app = create_app(settings, embedder=embedder, sample=sample)

    url = _url(settings.server.host, listener.getsockname()[1])
    (announce or _log_address)(url)
    server = DrainingServer(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,  # `guard.Envelope` writes one, without queries
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            ws="none",
        ),
        drain=lambda: app.state.runtime.drain(),
    )
    with listener, _asked_to_stop_is_no_failure():
        server.run(sockets=[listener])


@contextmanager
def _asked_to_stop_is_no_failure() -> Iterator[None]:
    """Once it has stopped, uvicorn raises the signal again, for whoever else handles it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"{where} is in use by another program.",
                hint="Choose another port with --port.",
                param="server.port",
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigurationError(
                f"{where}: this user may not listen there.",
                hint="Choose a port above 1023.",
                param="server.port",
            ) from None
        raise ConfigurationError(
            f"{where} is not an address of this machine.", param="server.host"
        ) from None


def _url(host: str, port: int) -> str:
    if host in ("", "0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_address(url: str) -> None:
    logging.getLogger("chiasm.server").info("listening on %s", url)
