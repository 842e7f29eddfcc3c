"""What changes among the runs of the home, as one stream for every page."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.sse import EventSourceResponse, ServerSentEvent

from loraloom.web.events import home_news
from loraloom.web.parts import TheStudio
from loraloom.web.schemas import FAILURES

__all__ = ["router"]

router = APIRouter(prefix="/api/news", tags=["news"], responses=FAILURES)


@router.get("/events", response_class=EventSourceResponse)
async def news(studio: TheStudio) -> AsyncIterator[ServerSentEvent]:
    """Every run as it is now, and then those that change."""
    async for message in home_news(studio.runs, studio.closing):
        yield message
