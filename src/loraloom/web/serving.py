"""The server at its address, from the first request it can take to the last."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn

from loraloom.control import Interrupted, Request
from loraloom.errors import LoraloomError, SettingsError
from loraloom.events import Listener, ignore
from loraloom.plain_data import shown
from loraloom.reading import read_text
from loraloom.studio.home import Home
from loraloom.studio.jobs.dispatcher import Dispatcher
from loraloom.web.app import make_app
from loraloom.web.parts import Studio
from loraloom.web.security import Access

__all__ = ["can_show_pages", "listening", "read_password", "serve"]

_LONGEST_PASSWORD = 4096
_WAITING = 128
_LAST_ANSWERS_S = 3
"""How long answers that are on their way may take after the server was asked to end."""


def read_password(path: Path) -> str:
    """The password in a file: its first line. Raises FileError, SettingsError for one that is empty."""
    password = read_text(path, limit=_LONGEST_PASSWORD).partition("\n")[0].strip()
    if not password:
        raise SettingsError([f"{path}: there is no password in it"], "write one into its first line")
    return password


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at an address, so that whoever is told of it is heard. ``port`` 0: one that is free.

    Raises SettingsError for an address that is none or none of this machine, LoraloomError where it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise SettingsError([f"host = {shown(host)}: there is no such address"], "127.0.0.1 is this machine") from error
    with found:
        if sys.platform == "win32":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # a server that has just ended leaves its port behind for a minute
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(_WAITING)
        except OSError as error:
            raise _refused(host, port, error) from error
        yield found


def serve(home: Home, access: Access, found: socket.socket, listener: Listener = ignore) -> None:
    """Answer requests and work through the queue until a signal asks for the end; KeyboardInterrupt then.

    ``listener`` hears what keeps the queue from being worked through. Jobs that run go on.
    """
    app = make_app(home, access=access)
    config = uvicorn.Config(
        app,
        access_log=False,  # addresses may hold the key of a link
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
    with _working(home, listener):
        _Server(config, app.state.studio).run(sockets=[found])


@contextmanager
def _working(home: Home, listener: Listener) -> Iterator[None]:
    """Inside, a thread starts what waits in the queue, unless another process does."""
    over = threading.Event()

    def work() -> None:
        with suppress(Interrupted), Dispatcher(home, listener=listener) as dispatcher:
            dispatcher.run(lambda: Request.STOP if over.is_set() else Request.GO)

    thread = threading.Thread(target=work, name="queue")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Server(uvicorn.Server):
    """uvicorn, which lets streams of events end before it waits for the last answers."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self._studio = studio

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal."""
        self._studio.closing.set()
        super().handle_exit(sig, frame)


def _refused(host: str, port: int, error: OSError) -> LoraloomError:
    if error.errno == errno.EADDRINUSE or getattr(error, "winerror", 0) in (10013, 10048):
        hint = f"--port {port + 1 if port < 65535 else 0} takes another one; 0 takes any that is free"
        return LoraloomError(f"port {port} of {host} is taken by another program", hint)
    if error.errno == errno.EACCES:
        return LoraloomError(f"port {port} is not for everybody", "ports from 1024 on are")
    if error.errno == errno.EADDRNOTAVAIL:
        return SettingsError([f"host = {shown(host)}: is no address of this machine"], "127.0.0.1 is this machine")
    return LoraloomError(f"{host}:{port}: {error.strerror or error}", "try another --port")


def can_show_pages() -> bool:
    """Whether a browser that is opened here is likely to be seen by anybody."""
    if "SSH_CONNECTION" in os.environ:
        return False
    has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return has_screen or sys.platform in ("win32", "darwin")
