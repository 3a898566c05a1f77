"""Servers that answer this machine alone, and only under its own names, so that no page of another site reads them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer
from typing import Final, TypeVar

from core.errors import UserError

LOOPBACK: Final = "127.0.0.1"

Server = TypeVar("Server", bound=TCPServer)


def own_names(port: int) -> frozenset[str]:
    """Hosts under which a server of this machine may be asked; any other is a name that was pointed here."""
    return frozenset(f"{host}:{port}" for host in (LOOPBACK, "localhost"))


@contextmanager
def listening(make: Callable[[], Server], *, port: int) -> Iterator[Server]:
    """Let a server answer, in a thread, until the context ends.

    Args:
        make: Makes it, which begins to listen.
        port: Where; any that is free if 0.

    Raises:
        UserError: If the port is taken.
    """
    try:
        server = make()
    except OSError as err:
        raise UserError(
            f"--port {port}: cannot be listened at: {err.strerror}; give another, or leave it out"
        ) from err
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
