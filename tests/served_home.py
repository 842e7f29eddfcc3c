"""A home for tests of the server: runs as their processes would have told of them, and a server in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from PIL import Image
from starlette.testclient import TestClient

from loraloom.events import (
    Event,
    Notice,
    PreviewSaved,
    RunFinished,
    RunStarted,
    StepFinished,
    ValidationMeasured,
    WeightsSaved,
)
from loraloom.studio.home import Home
from loraloom.studio.runs.creation import create_run
from loraloom.studio.runs.log import EventLog
from loraloom.training.settings import TrainSettings
from loraloom.web.security import Access

SECRET = "the-secret-of-somebody-else"
ADDRESS = "http://127.0.0.1:7865"
STEPS = 37


def step(number: int, loss: float | None = None) -> StepFinished:
    return StepFinished(number, 1 + number // 10, 1 / number if loss is None else loss, 0.3, {"unet": 2e-4}, 0.25)


def train(folder: Path, *events: Event) -> None:
    """Write what a run's process would tell."""
    with EventLog(folder) as log:
        for event in events:
            log(event)


def make_run(home: Home, name: str = "lion", *more: str) -> Path:
    given = ["checkpoint=base.safetensors", "dataset.folder=lions", f"output='{home.runs}'", f"name='{name}'"]
    return create_run(TrainSettings.load(None, [*given, *more])).path


def finish_run(folder: Path) -> None:
    preview, lora = folder / "previews" / "epoch0002-0.png", folder / "weights" / "lion.safetensors"
    Image.new("RGB", (24, 16), "#7a2030").save(preview)
    lora.write_bytes(b"weights" * 300)
    train(
        folder,
        RunStarted(str(folder), STEPS, 10, 4, 3, 1000),
        Notice("two pictures look alike", "warning"),
        *map(step, range(1, STEPS + 1)),
        ValidationMeasured(20, 2, 0.21, {}, True),
        PreviewSaved(str(preview), "a <b>lion</b>", 20, 2),
        WeightsSaved(str(lora), STEPS, 4, True),
        RunFinished(STEPS, 9.5, False, 0.3),
    )


@dataclass(frozen=True)
class Served:
    """A server, and a browser that was let in."""

    home: Home
    app: FastAPI
    access: Access
    client: TestClient

    def stranger(self, **headers: str) -> TestClient:
        """A browser that was not let in."""
        return TestClient(self.app, base_url=ADDRESS, headers=headers, follow_redirects=False)

    def routes(self) -> list[tuple[str, str]]:
        """Every route there is, as (method, path) with something in the place of each parameter."""
        names = {"{run}": "lion", "{dataset}": "lions", "{path:path}": "x.png", "{name}": "x.js", "{job}": "1"}
        found = []
        for context in iter_route_contexts(self.app.routes):
            path = context.path or ""
            for name, value in names.items():
                path = path.replace(name, value)
            assert "{" not in path, f"{path}: what stands for its parameter?"
            found += [(method, path) for method in sorted(context.methods or ())]
        assert len(found) > 25
        return sorted(found, key=lambda route: route[1] == "/api/session/end")  # which ends the session
