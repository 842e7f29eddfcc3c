"""Save now, paint now: carried out once between two steps or in a pause, and nothing that is learned changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraloom.control import Order, Request
from loraloom.events import (
    Event,
    Notice,
    PreviewSaved,
    RunFinished,
    RunPaused,
    RunResumed,
    StateSaved,
    StepFinished,
    WeightsSaved,
    ignore,
)
from loraloom.training.settings import TrainSettings
from loraloom.training.state import ResumePoint, find_state
from loraloom.training.trainer import train

MakeSettings = Callable[..., TrainSettings]
BOTH = (Order.SAVE, Order.PREVIEW)
RUN = (
    "epochs=2",
    "name=red",
    "saving.precision=float",
    "saving.every_epochs=0",
    "saving.every_steps=2",
    "saving.keep_last=1",
    "adapter.dropout=0.2",
    "preview.prompts=['x', 'y']",
    "preview.steps=2",
    "preview.every_epochs=0",
    "preview.at_start=false",
)


class Ordered:
    """A control that is given orders, and wishes, once so many steps are finished; it hears the run's events."""

    def __init__(self, orders: dict[int, tuple[Order, ...]], wishes: dict[int, list[Request]] | None = None) -> None:
        self._orders = orders
        self._wishes = wishes or {}
        self.events: list[Event] = []

    def listen(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def _step(self) -> int:
        steps = self.of(StepFinished)
        return int(steps[-1].step) if steps else 0

    def __call__(self) -> Request:
        wishes = self._wishes.get(self._step)
        return wishes.pop(0) if wishes else Request.GO

    def take_orders(self) -> tuple[Order, ...]:
        return self._orders.pop(self._step, ())


def go(settings: TrainSettings, folder: Path, control: Ordered, resume: ResumePoint | None = None) -> Path | None:
    for part in ("weights", "previews"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return train(settings, folder, listener=control.listen, control=control, resume=resume)


def same(one: Path | None, other: Path | None) -> bool:
    """Whether two LoRA files hold the same, bit for bit; their metadata tell when they were made."""
    assert one is not None and other is not None
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("extra", [(), ("ema.enabled=true", "optimizer.name=adamw_schedulefree")])
def test_an_order_is_carried_out_once_and_changes_nothing(
    extra: tuple[str, ...], make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(*RUN, *extra)
    whole = go(settings, tmp_path / "whole", Ordered({}))
    control = Ordered({0: BOTH, 1: (Order.SAVE,), 3: BOTH})
    path = go(settings, tmp_path / "run", control)
    assert same(path, whole)
    assert [(event.step, Path(event.path).name) for event in control.of(WeightsSaved)] == [
        (1, "red-kept-step00000001.safetensors"),
        (2, "red-step00000002.safetensors"),
        (3, "red-kept-step00000003.safetensors"),
        (4, "red-step00000004.safetensors"),
        (6, "red.safetensors"),
    ]
    assert {event.epoch for event in control.of(WeightsSaved) if event.step == 3} == {1}
    assert [event.step for event in control.of(StateSaved)] == [1, 2, 3, 4, 6]
    painted = [(event.step, event.epoch, Path(event.path).name) for event in control.of(PreviewSaved)]
    assert painted[:2] == [(3, 1, "red_s00000003_00.png"), (3, 1, "red_s00000003_01.png")]
    assert {step for step, *_ in painted[2:]} == {6}
    kept = sorted(file.name for file in (tmp_path / "run" / "weights").iterdir())
    assert "red-kept-step00000001.safetensors" in kept and "red-step00000002.safetensors" not in kept

    # What was saved is that step, no more and no less.
    stopped = go(settings, tmp_path / "stopped", Ordered({}, {3: [Request.STOP]}))
    assert same(tmp_path / "run" / "weights" / "red-kept-step00000003.safetensors", stopped)


def test_the_state_of_an_order_goes_on_exactly(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(*RUN, "saving.every_steps=0", "saving.keep_states=0")
    whole = go(settings, tmp_path / "whole", Ordered({}))
    go(settings, tmp_path / "run", Ordered({3: (Order.SAVE,)}))
    state = find_state(tmp_path / "run" / "state", ignore, step=3)
    assert state is not None
    assert same(go(settings, tmp_path / "run", Ordered({}), ResumePoint(state)), whole)


def test_a_paused_run_carries_out_orders_and_waits_on(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(*RUN)
    whole = go(settings, tmp_path / "whole", Ordered({}))
    slept: list[int] = []
    control = Ordered({}, {3: [Request.PAUSE] * 40})

    def sleep(seconds: float) -> None:
        slept.append(len(control.of(PreviewSaved)))
        if len(slept) == 2:
            control._orders[3] = BOTH

    monkeypatch.setattr("loraloom.training.interludes.time.sleep", sleep)
    path = go(settings, tmp_path / "run", control)
    assert same(path, whole)
    told = [event for event in control.events if isinstance(event, (RunPaused, RunResumed, WeightsSaved, PreviewSaved))]
    shown = [type(event) for event in told if event.step == 3]
    assert shown == [RunPaused, WeightsSaved, PreviewSaved, PreviewSaved, RunResumed]
    assert slept[:3] == [0, 0, 2] and len(slept) > 4, "painted at once, then it waited on"


@pytest.mark.parametrize("before", [Request.GO, Request.PAUSE])
def test_the_end_leaves_out_what_is_painted_but_not_what_is_to_be_saved(
    before: Request, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.training.interludes.time.sleep", lambda seconds: None)
    wishes = [before] * 3 + [Request.DISCARD] * 99
    control = Ordered({3: BOTH}, {3: wishes})
    assert go(make_settings(*RUN), tmp_path / "run", control) is None
    assert [event.step for event in control.of(WeightsSaved)] == [2, 3]
    assert control.of(PreviewSaved) == []
    (told,) = [event.text for event in control.of(Notice) if "was skipped" in event.text]
    assert "a preview of step 3" in told
    (finished,) = control.of(RunFinished)
    assert (finished.step, finished.stopped) == (3, True)


def test_a_pause_while_an_order_is_painted_leaves_it_for_later(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.training.interludes.time.sleep", lambda seconds: None)
    control = Ordered({3: (Order.PREVIEW,)}, {3: [Request.GO, Request.GO, Request.PAUSE, Request.PAUSE]})
    go(make_settings(*RUN), tmp_path / "run", control)
    told = [event for event in control.events if isinstance(event, (RunPaused, RunResumed, PreviewSaved))]
    assert [type(event) for event in told if event.step == 3] == [RunPaused, RunResumed, PreviewSaved, PreviewSaved]
