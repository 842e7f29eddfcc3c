"""What is asked of a run while it prepares is heard in every stage, between two pieces of it."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from loraloom.control import Control, Interrupted, Request, wait_out
from loraloom.events import LatentsCached, ignore
from loraloom.training.settings import TrainSettings
from loraloom.training.state import ResumePoint, find_state
from loraloom.training.team import Team
from loraloom.training.trainer import TrainingRun, train
from loraloom.training.wishes import Wishes

MakeSettings = Callable[..., TrainSettings]
STAGES = {
    "load_dataset": "pictures are read",
    "validation_pictures": "pictures to measure on are read",
    "identity_of": "pictures and tensors are compared with those of the state",
    "load_part": "tensors are loaded",
    "prepare": "pictures are encoded",
    "merge_base_loras": "LoRAs are merged",
    "create_adapters": "adapters are made",
}


def where() -> set[str]:
    return {frame.name for frame in traceback.extract_stack()}


def test_every_stage_asks(make_settings: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (80 * index, 9, 70)).save(tmp_path / "apart" / f"{index}.png")
    (tmp_path / "first" / "weights").mkdir(parents=True)
    lora = train(make_settings("steps=1", "saving.precision=float"), tmp_path / "first")
    assert lora is not None
    asked: Counter[str] = Counter()

    def control() -> Request:
        asked.update(where() & STAGES.keys())
        return Request.GO

    settings = make_settings(
        "steps=3", f"validation.folder='{tmp_path / 'apart'}'", f"adapter.base_loras=['{lora}:0.7']"
    )
    state = find_state(tmp_path / "first" / "state", ignore)
    assert state is not None
    point = ResumePoint(state, force=True)
    run = TrainingRun.prepare(settings, tmp_path / "run", ignore, control, point)
    run.parts.attachment.detach()
    assert set(asked) == set(STAGES)
    assert asked["load_dataset"] == 4 + 3 and asked["validation_pictures"] == 3
    assert asked["identity_of"] >= len(run.parts.model.checkpoint)
    assert asked["create_adapters"] == len(run.parts.adapters)


@pytest.mark.parametrize("stage", ["load_dataset", "load_part", "create_adapters"])
def test_a_stop_is_obeyed_in_the_middle_of_a_stage(stage: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    asked = 0
    encoded: list[LatentsCached] = []

    def control() -> Request:
        nonlocal asked
        asked += stage in where()
        return Request.STOP if asked >= 2 else Request.GO

    def listen(event: object) -> None:
        if isinstance(event, LatentsCached):
            encoded.append(event)

    with pytest.raises(Interrupted):
        train(make_settings(), tmp_path / "run", listener=listen, control=control)
    assert asked == 2
    assert len(encoded) == (4 if stage == "create_adapters" else 0)


def answers(control: Control, times: int) -> list[Request]:
    return [control() for _ in range(times)]


def test_several_processes_ask_together_now_and_then() -> None:
    wishes: Iterator[Request] = iter([Request.GO, Request.PAUSE, Request.PAUSE, Request.GO, Request.STOP])
    alone = Wishes(lambda: Request.STOP, Team(), ignore)
    assert alone.of_one is alone and alone.seldom is alone

    class Leading(Team):
        """One of two processes, whose answers come from here."""

        def from_leader(self, make: Callable[[], object]) -> object:  # type: ignore[override]
            return make()

    together = Wishes(lambda: next(wishes), Leading(0, 2), ignore)
    assert together.of_one() is Request.GO, "nobody was asked"
    seldom = together.seldom
    assert set(answers(seldom, 49)) == {Request.GO}
    slept: list[float] = []
    assert wait_out(seldom, sleep=slept.append) is Request.GO and len(slept) == 2
    assert answers(seldom, 23)[-3:] == [Request.GO, Request.GO, Request.STOP]
