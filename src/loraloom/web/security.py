"""Who may talk to the server: one gate before all routes, so that a route that is added has every check.

In this order: the name that the browser knows the server by (``Host``), where the request comes from (``Origin``, and
what browsers say of it in ``Sec-Fetch-Site``), and whether its sender was let in (a session's cookie, or the password).
Every answer leaves with the headers that keep a browser from doing more with it than was meant.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraloom.errors import SettingsError
from loraloom.plain_data import shown, size_text
from loraloom.web.failures import failure_response
from loraloom.web.plain_page import plain_page

__all__ = ["LOGIN_PATH", "OPEN_PATHS", "Access", "Gate", "Sessions", "check_password", "is_loopback", "sender_of"]

LOGIN_PATH, ENTER_PATH, STYLE_PATH = "/login", "/enter", "/plain.css"
OPEN_PATHS = frozenset({LOGIN_PATH, ENTER_PATH, STYLE_PATH})
"""What a browser gets that has not been let in yet: the way in, and how it looks."""
SESSION_S = 30 * 24 * 3600
LINK_S = 600.0
_MOST_SESSIONS = 100
_SHORTEST_PASSWORD = 8
_TRIES, _TRIES_S = 5, 60.0
_MOST_ADDRESSES = 1000
SMALL_BODY = 4 * 2**20
LARGE_BODY = 5 * 2**30
"""Bytes of a body: a file is that of a PUT and goes to the disk, everything else is read into memory."""
_CHANGE_NOTHING = ("GET", "HEAD")
_LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_SESSIONS, _LINKS = "sessions", "links"
"""Names among what is kept."""

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    # To other sites nothing. "no-referrer" would take the Origin from forms too.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "x-frame-options": "DENY",
}


class Sessions:
    """Who was let in, and who has a link to come in by: checksums of their tokens and when these end.

    Two processes may share what is kept: one that makes links, and the server that they lead to.
    """

    def __init__(self, kept: MutableMapping[str, Any] | None = None) -> None:
        self._kept: MutableMapping[str, Any] = {} if kept is None else kept
        self._lock = threading.Lock()
        self._open = self._read(_SESSIONS)

    def begin(self) -> str:
        """A new session's token."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._open = self._add(_SESSIONS, token, SESSION_S)
        return token

    def is_open(self, token: str) -> bool:
        """Whether this is the token of a session."""
        return self._open.get(_mark(token), 0.0) > time.time()

    def end(self, token: str) -> None:
        """Let the owner of this token in no more."""
        with self._lock:
            self._open = {mark: end for mark, end in self._read(_SESSIONS).items() if mark != _mark(token)}
            self._kept[_SESSIONS] = self._open

    def link(self, address: str, *, seconds: float = LINK_S) -> str:
        """An address that lets one browser in once, at the server with this address."""
        key = secrets.token_urlsafe(24)
        with self._lock:
            self._add(_LINKS, key, seconds)
        return f"{address}{ENTER_PATH}?key={key}"

    def use_key(self, key: str) -> bool:
        """Whether the key of a link lets somebody in; it does so once."""
        with self._lock:
            ends = self._read(_LINKS)
            if ends.pop(_mark(key), 0.0) <= time.time():
                return False
            self._kept[_LINKS] = ends
            return True

    def _add(self, name: str, token: str, seconds: float) -> dict[str, float]:
        """The ends of what is kept under this name, with one more, without those of the past."""
        now = time.time()
        ends = {mark: end for mark, end in self._read(name).items() if end > now}
        newest = sorted(ends, key=lambda mark: ends[mark])[-(_MOST_SESSIONS - 1) :]
        kept = {mark: ends[mark] for mark in newest} | {_mark(token): now + seconds}
        self._kept[name] = kept
        return kept

    def _read(self, name: str) -> dict[str, float]:
        found = self._kept.get(name, {})
        if not isinstance(found, dict):
            return {}
        return {str(mark): float(end) for mark, end in found.items() if isinstance(end, int | float)}


@dataclass
class Access:
    """Who may come in, and by which names.

    ``host``, ``port``: where the server listens. ``names``: more names that it is reached by, such as a proxy's. One
    that other machines can reach needs a ``password``: SettingsError without.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    password: str = field(default="", repr=False)
    names: tuple[str, ...] = ()
    sessions: Sessions = field(default_factory=Sessions, repr=False)
    _tries: dict[str, list[float]] = field(default_factory=dict, repr=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, init=False)

    def __post_init__(self) -> None:
        if self.password:
            check_password(self.password)
        elif not is_loopback(self.host):
            raise SettingsError(
                [f"host = {shown(self.host)}: other machines can reach this address, so the server needs a password"],
                "put one into a file and name that with --password-file, or leave --host out",
            )

    @property
    def cookie(self) -> str:
        """The name of the session's cookie. Browsers send cookies to all ports of a machine, so it has the port."""
        return f"loraloom-session-{self.port}"

    def serves(self, host: str) -> bool:
        """Whether the server is called by this ``Host``, with or without a port.

        A page of another site that has its name lead here (DNS rebinding) is known by that name. Numbers are nobody's
        name, so a server for other machines takes any: behind a router its own are not known to it.
        """
        name = _host_name(host)
        if name in _LOCAL_NAMES or name in {known.lower() for known in (self.host, *self.names)}:
            return True
        return not is_loopback(self.host) and _is_address(name)

    def admits(self, password: str, sender: str) -> bool | None:
        """Whether this is the password; None: ``sender`` has tried too often, and has to wait."""
        with self._lock:
            now = time.monotonic()
            tries = [when for when in self._tries.get(sender, []) if when > now - _TRIES_S]
            if len(tries) >= _TRIES:
                return None
            given, right = (sha256(text.encode("utf-8", "replace")).digest() for text in (password, self.password))
            if self.password and hmac.compare_digest(given, right):
                self._tries.pop(sender, None)
                return True
            if len(self._tries) >= _MOST_ADDRESSES:
                self._tries.pop(next(iter(self._tries)))
            self._tries[sender] = [*tries, now]
            return False

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host and host[0] != "[" else f"http://{host}:{self.port}"

    def first_link(self) -> str:
        """The link that is printed when the server starts: nobody knows when it will be followed."""
        return self.sessions.link(self.address, seconds=SESSION_S)


def check_password(password: str) -> None:
    """Raise SettingsError for a password that can be guessed at once."""
    if len(password) < _SHORTEST_PASSWORD:
        raise SettingsError(
            [f"the password has {len(password)} characters, and needs {_SHORTEST_PASSWORD}"],
            "a few words in a row are easy to type and hard to guess",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """The middleware around everything: lets a request through, or answers it."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        most = LARGE_BODY if scope["method"] == "PUT" else SMALL_BODY
        answer = self._refusal(scope) or _too_large(scope, most)
        await (self._app if answer is None else answer)(scope, _bounded(receive, most), send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not let through."""
        headers = Headers(scope=scope)
        if not self._access.serves(headers.get("host", "")):
            problem = f"this server is not called {shown(_host_name(headers.get('host', '')))}"
            hint = "open the address that it printed when it started, or start it with --name and this name"
            return failure_response(403, problem, hint)
        if (foreign := _foreign(scope, headers)) is not None:
            return foreign
        if scope["path"] in OPEN_PATHS or self._is_known(scope, headers):
            return None
        return self._unknown(scope, headers)

    def _is_known(self, scope: Scope, headers: Headers) -> bool:
        token = cookie_parser(headers.get("cookie", "")).get(self._access.cookie, "")
        if token and self._access.sessions.is_open(token):
            return True
        kind, _, password = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self._access.admits(password.strip(), sender_of(scope)) is True

    def _unknown(self, scope: Scope, headers: Headers) -> Response:
        """What somebody is answered who was not let in."""
        if "text/html" not in headers.get("accept", "") or scope["method"] not in _CHANGE_NOTHING:
            hint = "open the address that the server printed when it started"
            return failure_response(401, "this browser has not been let in, or its session has ended", hint)
        if headers.get("sec-fetch-site") == "cross-site":
            # A link on another site: the browser keeps the cookie back. From a page of ours it sends it along.
            return plain_page("Loraloom", ["One moment."], again=True)
        return RedirectResponse(LOGIN_PATH, 303)


def _too_large(scope: Scope, most: int) -> Response | None:
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdecimal() and int(length[:20]) <= most:
        return None
    return failure_response(413, f"the request is larger than {size_text(most)}", "send less at once")


def _bounded(receive: Receive, most: int) -> Receive:
    """A body that says nothing of its length, or too little, ends here too."""
    left = most

    async def receive_bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413)
        return message

    return receive_bounded


def _foreign(scope: Scope, headers: Headers) -> Response | None:
    """The answer to a request that a page of another origin has sent."""
    origin, host = headers.get("origin"), headers.get("host", "")
    site = headers.get("sec-fetch-site", "none")
    is_foreign = origin is not None and not _same_origin(origin, host)
    if origin is None and site not in ("same-origin", "none"):
        # Following a link is allowed: it shows the page, and the page asks for itself.
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        is_foreign = not (is_link and scope["method"] in _CHANGE_NOTHING and not scope["path"].startswith("/api/"))
    if not is_foreign:
        return None
    return failure_response(403, "the request comes from another site", "use the page of this server")


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""


def _host_name(host: str) -> str:
    """A ``Host`` without its port, in small letters."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def sender_of(scope: Scope) -> str:
    """The address that a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _mark(token: str) -> str:
    return sha256(token.encode("utf-8", "replace")).hexdigest()
