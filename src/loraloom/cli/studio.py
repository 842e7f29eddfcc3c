"""``loraloom studio``: the page, and the server behind it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["studio"]


def studio(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The home: datasets, runs, outputs and the queue are in it.")
    ] = Path(),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 7865,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at; 0.0.0.0 lets other machines in, with a password.")
    ] = "127.0.0.1",
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="A file with the password for browsers without the link.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Another name that the server is reached by, such as a proxy's.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
) -> None:
    """Open the studio as a page in the browser. Runs go on when it ends; a second time opens the same one again."""
    from loraloom.cli.jobs import say_notice
    from loraloom.studio.home import Home, HomeLock
    from loraloom.web.security import Access, Sessions, is_loopback
    from loraloom.web.serving import listening, read_password, serve

    password = read_password(password_file) if password_file is not None else ""
    names = tuple(name or ()) if is_loopback(host) else (socket.gethostname(), *(name or ()))
    access = Access(host, port, password, names)
    home = Home.open(folder, listener=say_notice)
    access.sessions = Sessions(home.preferences)
    lock = HomeLock(home.path, "server")
    if (facts := lock.facts()) is None:
        with listening(host, port) as found:
            access.port = found.getsockname()[1]
            if lock.try_enter(address=access.address):
                try:
                    _show(f"the studio of {home.path}", access.first_link(), no_browser=no_browser)
                    serve(home, access, found, say_notice)
                finally:
                    lock.leave()
                return
        facts = lock.facts() or {}
    address = access.sessions.link(_address_of_other(home.path, facts))
    _show(f"the studio of {home.path} is open already", address, no_browser=no_browser)


def _address_of_other(home: Path, facts: dict[str, object]) -> str:
    """Where the server answers that has this home open."""
    from loraloom.errors import FileError

    address, where = facts.get("address"), facts.get("host")
    if isinstance(address, str) and where == socket.gethostname():
        return address
    by = f" by process {facts['pid']} on {where}" if {"pid", "host"} <= set(facts) else ""
    raise FileError(f"{home} is open already{by}", "use that studio, end it, or name another folder")


def _show(what: str, link: str, *, no_browser: bool) -> None:
    """Say where the page is, and open it."""
    import webbrowser

    from loraloom.web.serving import can_show_pages

    typer.echo(f"{what}: {link}")
    if not no_browser and can_show_pages():
        # Some browsers come back only when their window is closed.
        threading.Thread(target=webbrowser.open, args=(link,), name="browser", daemon=True).start()
