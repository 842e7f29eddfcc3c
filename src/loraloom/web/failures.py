"""Every error as one answer: what went wrong, what to do, what the page can make a button of."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraloom.actions import Sentence
from loraloom.errors import (
    HardwareError,
    LoraloomError,
    MissingFileError,
    OutputError,
    ResumeError,
)
from loraloom.plain_data import shown
from loraloom.plain_text import one_line
from loraloom.studio.crash_report import without_secrets, write_report
from loraloom.studio.system_errors import explained

__all__ = ["Failure", "LastNet", "Proposed", "add_failures", "failure_of", "failure_response", "proposed"]


class Proposed(BaseModel):
    """Something that a person can do next: a button. ``values``: what it is to be done with."""

    action: str
    text: str
    values: dict[str, str] = {}


class Failure(BaseModel):
    """What went wrong and what to do. ``field``: what in the request was wrong, where that is one thing."""

    problem: str
    hint: str = ""
    actions: list[Proposed] = []
    field: str | None = None


_STATUS: Mapping[type[BaseException], int] = {
    MissingFileError: 404,
    ResumeError: 409,
    OutputError: 507,
    HardwareError: 503,
    LoraloomError: 422,
    OSError: 503,
    MemoryError: 503,
}
"""The nearest kind counts."""
_HTTP = {
    404: ("there is nothing at this address", "go to the first page"),
    405: ("this address does not take such a request", ""),
    413: ("the request is too large", "send less at once"),
}


def proposed(text: str) -> list[Proposed]:
    """What a sentence proposes, in its order."""
    actions = text.actions if isinstance(text, Sentence) else ()
    return [Proposed(action=one.action.name.lower(), text=one.worded(), values=dict(one.values)) for one in actions]


def failure_of(error: LoraloomError) -> Failure:
    """An error in the form of every answer."""
    notes = "".join(f"\n{one_line(note)}" for note in getattr(error, "__notes__", ()))
    actions = proposed(error.problem) + proposed(error.hint)
    return Failure(problem=f"{error.problem}{notes}", hint=str(error.hint), actions=actions)


def failure_response(status: int, problem: str, hint: str = "", *, field: str | None = None) -> Response:
    """An answer that says what went wrong."""
    return _response(status, Failure(problem=problem, hint=hint, field=field))


def add_failures(app: FastAPI) -> None:
    """Let every error of a route become such an answer."""

    async def known(request: Request, error: Exception) -> Response:
        found = explained(error)
        assert found is not None
        return _response(_status_of(error), failure_of(found))

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        problem, hint = _HTTP.get(error.status_code, (one_line(str(error.detail)), ""))
        answer = _response(error.status_code, Failure(problem=problem, hint=hint))
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _response(422, _of_request(error.errors()))

    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (LoraloomError, OSError, MemoryError):
        app.add_exception_handler(kind, known)


class LastNet:
    """The middleware for faults of the program: a report is written, the answer says where, the server goes on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            if scope["type"] != "http" or begun:
                raise
            path = write_report(error, ["studio", str(scope.get("path", ""))])
            said = without_secrets(" ".join(str(error).split())[:300])
            problem = f"a fault in Loraloom itself: {type(error).__name__}: {said}"
            hint = f"the report is in {path}; please send that file" if path else "please report it"
            await failure_response(500, problem, hint)(scope, receive, send)


def _status_of(error: BaseException) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return _STATUS[OutputError]
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 422)


def _of_request(errors: Sequence[Any]) -> Failure:
    """What pydantic says of a request, each a line; ``field`` where there is only one."""
    lines, names = [], []
    for error in errors:
        name = ".".join(str(part) for part in error["loc"][1:]) or str(error["loc"][0])
        names.append(name)
        given = error.get("input")
        what = "" if error["type"] == "missing" or given is None else f" (given: {shown(given)})"
        lines.append(f"{one_line(name)}: {one_line(error['msg'][:1].lower() + error['msg'][1:])}{one_line(what)}")
    hint = "the description of the requests is at /api/openapi.json"
    return Failure(problem="\n".join(lines), hint=hint, field=one_line(names[0]) if len(set(names)) == 1 else None)


def _response(status: int, failure: Failure) -> Response:
    return JSONResponse(failure.model_dump(mode="json"), status)
