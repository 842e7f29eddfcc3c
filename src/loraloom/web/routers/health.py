"""Whether the server is well, and which it is."""

from __future__ import annotations

import time

from fastapi import APIRouter

import loraloom
from loraloom.web.parts import TheStudio
from loraloom.web.schemas import FAILURES, Answer

__all__ = ["router"]

router = APIRouter(prefix="/api/health", tags=["health"], responses=FAILURES)


class HealthAnswer(Answer):
    """``home``: the folder it works in; ``notices``: what had to be mended when it was opened."""

    version: str
    home: str
    up_s: float
    notices: list[str]


@router.get("")
def health(studio: TheStudio) -> HealthAnswer:
    """The server is up."""
    return HealthAnswer(
        version=loraloom.__version__,
        home=str(studio.home.path),
        up_s=time.time() - studio.started,
        notices=[str(notice.text) for notice in studio.home.notices],
    )
