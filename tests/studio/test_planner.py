"""Plans asked of the real helper process: answers, errors, newer questions, a helper that ends or hangs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from loraloom.errors import LoraloomError
from loraloom.studio.demo import make_checkpoint
from loraloom.studio.planner import PlanAnswer, Planner
from loraloom.training.settings import TrainSettings
from waiting import until


def settings_for(folder: Path, *overrides: str) -> TrainSettings:
    given = [f"checkpoint='{folder / 'base.safetensors'}'", f"dataset.folder='{folder / 'pictures'}'"]
    given += [f"output='{folder / 'runs'}'", "dataset.resolution=64", "device=cpu"]
    return TrainSettings.load(None, [*given, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    make_checkpoint(folder / "base.safetensors")
    for name, count in (("2_cat", 3), ("1_dog", 2)):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (64, 64), (index * 40, 9, 9)).save(folder / "pictures" / name / f"{index}.png")
    return folder


def test_plans_by_a_process_that_stays(folder: Path) -> None:
    planner = Planner(idle_s=300, patience_s=240)
    assert planner.pid is None
    answer = planner.ask(settings_for(folder, "epochs=3", "ema.decay=0.5"))
    first = planner.pid
    assert answer is not None and first is not None
    assert (answer.work["steps"], answer.work["images_seen"]) == (24, 24)
    shares = {concept["name"]: (concept["shown"], concept["percent"]) for concept in answer.concepts}
    assert shares == {"2_cat": (18, 75.0), "1_dog": (6, 25.0)}
    assert answer.memory["device"] == "cpu" and answer.memory["peak"] > 0 and answer.memory["fits"]
    assert answer.disk["fits"] and answer.seconds > 0 and answer.changes == ()
    assert any("ema.decay has no effect" in text for text in answer.notices)
    assert not (folder / "runs").exists()

    with pytest.raises(LoraloomError) as caught:
        planner.ask(settings_for(folder, "dataset.folder=nowhere"))
    assert "nowhere" in caught.value.problem and caught.value.hint
    assert planner.pid == first, "an error is an answer"

    if sys.platform != "win32":
        _newer_takes_the_place(planner, folder, first)
    planner.close()
    assert planner.pid is None


def _newer_takes_the_place(planner: Planner, folder: Path, first: int) -> None:
    """While the helper stands still, two questions come: only the newer one is answered. One that hangs is ended."""
    os.kill(first, signal.SIGSTOP)
    answers: list[PlanAnswer | None] = []
    older = threading.Thread(target=lambda: answers.append(planner.ask(settings_for(folder, "epochs=5"))))
    older.start()
    time.sleep(0.3)
    newer = threading.Thread(target=lambda: answers.append(planner.ask(settings_for(folder, "epochs=7"))))
    newer.start()
    older.join(60)
    assert answers == [None]
    os.kill(first, signal.SIGCONT)
    newer.join(120)
    assert answers[1] is not None and answers[1].work["epochs"] == 7

    impatient = Planner(patience_s=0.3)
    with pytest.raises(LoraloomError, match="not ready"):
        impatient.ask(settings_for(folder))
    assert impatient.pid is None, "it was ended"

    planner._idle_s = 0.5  # of the next helper
    os.kill(first, signal.SIGKILL)
    again = planner.ask(settings_for(folder, "epochs=2"))
    assert again is not None and again.work["epochs"] == 2 and planner.pid != first
    until(lambda: planner.pid is None)  # nobody asked any more
