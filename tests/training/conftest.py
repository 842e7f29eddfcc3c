from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from loraloom.events import Event
from loraloom.training.settings import TrainSettings
from loraloom.training.trainer import train
from toy_runs import toy_settings, write_pictures

MakeSettings = Callable[..., TrainSettings]
WholeRun = Callable[..., tuple[Path, tuple[Event, ...]]]


@pytest.fixture
def make_settings(tmp_path: Path, pictures: Path, checkpoints: Callable[[str], Path]) -> MakeSettings:
    """Settings of a tiny run; ``key=value`` overrides go on top."""

    def make(*overrides: str, family: str = "sd1") -> TrainSettings:
        return toy_settings(checkpoints(family), pictures, tmp_path / "runs", *overrides)

    return make


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, checkpoints: Callable[[str], Path]) -> WholeRun:
    """A tiny run that nothing interrupts, by its overrides: its folder, only to be read, and its events.

    Each is trained once a session, by the first test that compares something with it. Its pictures are those of
    ``make_settings`` in another place, which changes no number.
    """

    @cache
    def trained(*overrides: str) -> tuple[Path, tuple[Event, ...]]:
        place = tmp_path_factory.mktemp("whole")
        for part in ("weights", "previews"):
            (place / "run" / part).mkdir(parents=True)
        pictures = write_pictures(place / "pictures")
        events: list[Event] = []
        train(
            toy_settings(checkpoints("sd1"), pictures, place / "runs", *overrides),
            place / "run",
            listener=events.append,
        )
        return place / "run", tuple(events)

    return trained
