"""What the routes work with: the open home, and what serves all requests together."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from loraloom.studio.home import Home
from loraloom.studio.jobs.queue import Queue
from loraloom.studio.jobs.watching import Listing
from loraloom.studio.runs.following import FollowedRun, FollowedRuns
from loraloom.studio.uploads import Intake
from loraloom.web.security import Access

__all__ = ["Studio", "TheRun", "TheStudio"]


@dataclass
class Studio:
    """The parts of one server. ``closing``: set when it is to end, so that streams end too."""

    home: Home
    access: Access
    runs: FollowedRuns
    queue: Queue
    listing: Listing
    """The queue's list for all windows that show it."""
    intake: Intake = field(default_factory=Intake)
    started: float = field(default_factory=time.time)
    closing: asyncio.Event = field(default_factory=asyncio.Event)


def _studio(request: Request) -> Studio:
    found: Studio = request.app.state.studio
    return found


TheStudio = Annotated[Studio, Depends(_studio)]


def _run(run: str, studio: TheStudio) -> FollowedRun:
    """The run that the path names."""
    return studio.runs.run(run)


TheRun = Annotated[FollowedRun, Depends(_run)]
