"""The server as one object: the gate, the routers, and what they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import loraloom
from loraloom.studio.home import Home
from loraloom.studio.jobs.queue import Queue
from loraloom.studio.jobs.watching import Listing
from loraloom.studio.runs.following import LOOK_S, FollowedRuns
from loraloom.web.failures import LastNet, add_failures
from loraloom.web.parts import Studio
from loraloom.web.routers import datasets, health, jobs, news, page, runs, session
from loraloom.web.security import Access, Gate

__all__ = ["make_app"]

_ROUTERS = (
    session.pages,
    session.router,
    health.router,
    jobs.router,
    runs.router,
    news.router,
    datasets.router,
    page.router,
)
"""In this order: the page answers at every address that is left."""


def make_app(home: Home, *, access: Access) -> FastAPI:
    """The server of an open home, for those whom ``access`` lets in."""
    app = FastAPI(
        title="Loraloom",
        version=loraloom.__version__,
        summary="A LoRA studio for Stable Diffusion.",
        # Swagger's page would load from another host.
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        # A variable of the environment would send traces to a collector.
        telemetry={"auto_configure": False},
        lifespan=_lifespan,
    )
    queue = Queue(home)
    app.state.studio = Studio(home, access, FollowedRuns(home.runs), queue, Listing(queue, LOOK_S))
    add_failures(app)
    app.add_middleware(LastNet)
    app.add_middleware(Gate, access=access)  # the last one added is the first to be asked
    for router in _ROUTERS:
        app.include_router(router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.studio.closing.set()
