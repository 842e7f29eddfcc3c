"""The way in: a link that works once, a password where other machines can reach the server, and the way out."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from loraloom.web.parts import Studio, TheStudio
from loraloom.web.plain_page import STYLE, plain_page
from loraloom.web.schemas import FAILURES, Answer
from loraloom.web.security import ENTER_PATH, LOGIN_PATH, SESSION_S, STYLE_PATH, sender_of

__all__ = ["pages", "router"]

pages = APIRouter(include_in_schema=False)
"""What a browser is shown before it is let in."""
router = APIRouter(prefix="/api/session", tags=["session"], responses=FAILURES)

_HOW = "Open the link that the server printed when it started, or give its command again: it prints a new one."


class SessionAnswer(Answer):
    """``password``: whether the server has one, with which another browser can come in."""

    password: bool


class LinkAnswer(Answer):
    """An address that lets one browser in, once, within ten minutes."""

    link: str


@router.get("")
def session(studio: TheStudio) -> SessionAnswer:
    """How this server lets browsers in."""
    return SessionAnswer(password=bool(studio.access.password))


@router.post("/link")
def link(request: Request, studio: TheStudio) -> LinkAnswer:
    """A link for another browser."""
    return LinkAnswer(link=studio.access.sessions.link(str(request.base_url).rstrip("/")))


@router.post("/end", status_code=204)
def end(request: Request, studio: TheStudio) -> Response:
    """End the session of this browser."""
    studio.access.sessions.end(request.cookies.get(studio.access.cookie, ""))
    answer = Response(status_code=204)
    answer.delete_cookie(studio.access.cookie, path="/", httponly=True, samesite="strict")
    return answer


@pages.get(STYLE_PATH)
def style() -> Response:
    """How the plain pages look."""
    return Response(STYLE, media_type="text/css", headers={"cache-control": "max-age=3600"})


@pages.get(ENTER_PATH)
def enter(request: Request, studio: TheStudio, key: str = "") -> Response:
    """Where the link leads."""
    # A browser that fetches pages ahead would use the link up before anybody follows it.
    is_ahead = "prefetch" in request.headers.get("sec-purpose", request.headers.get("purpose", ""))
    if not is_ahead and studio.access.sessions.use_key(key):
        return _let_in(studio)
    if studio.access.sessions.is_open(request.cookies.get(studio.access.cookie, "")):
        return RedirectResponse("/", 303)
    return plain_page("Loraloom", [_HOW], problem="This link was used already, or is too old.", status=403)


@pages.get(LOGIN_PATH)
def login_page(studio: TheStudio) -> Response:
    """Where the password is asked for."""
    if not studio.access.password:
        return plain_page("Loraloom", [_HOW], problem="This browser has not been let in yet.", status=401)
    return plain_page("Loraloom", ["This studio has a password."], asks_password=True)


@pages.post(LOGIN_PATH)
async def login(request: Request, studio: TheStudio) -> Response:
    """Let a browser in that knows the password."""
    given = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    found = studio.access.admits(given.get("password", [""])[0], sender_of(request.scope))
    if found:
        return _let_in(studio)
    if found is None:
        problem, status = "That was wrong too often. Wait a minute.", 429
    else:
        problem, status = "That is not the password.", 403
    return plain_page("Loraloom", [], problem=problem, asks_password=True, status=status)


def _let_in(studio: Studio) -> Response:
    answer = RedirectResponse("/", 303)
    token = studio.access.sessions.begin()
    answer.set_cookie(studio.access.cookie, token, max_age=SESSION_S, path="/", httponly=True, samesite="strict")
    return answer
