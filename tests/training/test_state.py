"""A run that is stopped, killed or branched and goes on: bit for bit the run that was never interrupted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from loraloom.cli.words import worded
from loraloom.control import Request
from loraloom.errors import FileFormatError, NotFiniteError, OutputError, ResumeError
from loraloom.events import (
    Event,
    Notice,
    PreviewSaved,
    PreviewSheetSaved,
    RunFinished,
    RunPaused,
    RunResumed,
    StateSaved,
    StepFinished,
    ignore,
)
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.tensors import write_tensors
from loraloom.training.identity import Identity, check_identity
from loraloom.training.optimizer_state import load_optimizer, optimizer_options, optimizer_values
from loraloom.training.previews import parse_prompt, preview_prompts
from loraloom.training.saving import remove_older
from loraloom.training.settings import PreviewSettings, TrainSettings
from loraloom.training.state import ResumePoint, find_state, read_state, saved_states, write_state
from loraloom.training.trainer import TrainingRun, train
from toy_runs import toy_settings, write_pictures
from work import HANGS_AFTER_S

MakeSettings = Callable[..., TrainSettings]
WholeRun = Callable[..., tuple[Path, tuple[Event, ...]]]
Stopped = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicting the memory takes longer than a toy run."""
    monkeypatch.setattr("loraloom.training.memory.MemoryWatch.start", lambda *arguments: None)


def go(
    settings: TrainSettings,
    folder: Path,
    *,
    stop_at: int | None = None,
    request: Request = Request.STOP,
    resume: bool = False,
    **point: bool,
) -> list[Event]:
    """Train in ``folder``; ``request`` is made after step ``stop_at``."""
    for part in ("weights", "previews"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    events: list[Event] = []

    def control() -> Request:
        steps = [event.step for event in events if isinstance(event, StepFinished)]
        return request if stop_at is not None and steps[-1:] == [stop_at] else Request.GO

    state = find_state(folder / "state", events.append) if resume else None
    train(
        settings,
        folder,
        listener=events.append,
        control=control,
        resume=ResumePoint(state, **point) if state is not None else None,
    )
    return events


def of(events: Sequence[Event], kind: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights" / "lora.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = final(one), final(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def losses(events: Sequence[Event]) -> list[tuple[int, float, float]]:
    return [(event.step, event.loss, event.average_loss) for event in of(events, StepFinished)]


CASES = {
    "adamw": (),
    "dropout": ("adapter.dropout=0.3", "dataset.flip=true"),
    "ema": ("ema.enabled=true", "ema.decay=0.9", "ema.every=2"),
    "accumulation": ("batch_size=1", "gradient_accumulation=2"),
    "sgd": ("optimizer.name=sgd_nesterov", "optimizer.lr=0.1"),
    "prodigy": ("optimizer.name=prodigy", "optimizer.lr=1"),
    "schedule-free": ("optimizer.name=schedule_free_adamw", "lr_schedule.name=constant"),
    "adafactor": ("optimizer.name=adafactor",),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_bit_for_bit(case: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("steps=5", "saving.precision=float", "optimizer.lr=1e-2", *CASES[case])
    whole = go(settings, tmp_path / "whole")
    events = go(settings, tmp_path / "cut", stop_at=2)
    events += go(settings, tmp_path / "cut", resume=True)
    assert losses(events) == losses(whole)
    assert [event.step for event in of(events, RunResumed)] == [2]
    assert same(tmp_path / "whole", tmp_path / "cut")
    rates = [[event.learning_rates for event in of(found, StepFinished)] for found in (whole, events)]
    assert rates[0] == rates[1]


def test_the_loss_scale_goes_on(make_settings: MakeSettings, tmp_path: Path) -> None:
    """What fp16 needs, with a scale that doubles every second step so that each step has its own."""

    def prepared(folder: str) -> TrainingRun:
        (tmp_path / folder / "weights").mkdir(parents=True, exist_ok=True)
        run = TrainingRun.prepare(make_settings("steps=5", "saving.precision=float"), tmp_path / folder, ignore)
        run.parts.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return run

    whole = prepared("whole")
    whole.loop()
    cut = prepared("cut")
    cut.loop(lambda: Request.STOP if cut.progress.step == 3 else Request.GO)
    state = find_state(tmp_path / "cut" / "state", ignore)
    assert state is not None and state.values["scaler"]["scale"] == 8.0
    again = prepared("cut")
    again.restore(ResumePoint(state))
    again.loop()
    assert again.parts.scaler.state_dict() == whole.parts.scaler.state_dict()
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_leaving_keeps_the_state_and_writes_no_lora(
    make_settings: MakeSettings, whole_run: WholeRun, tmp_path: Path
) -> None:
    settings = make_settings("epochs=2", "saving.precision=float")
    whole, _ = whole_run("epochs=2", "saving.precision=float")
    events = go(settings, tmp_path / "run", stop_at=2, request=Request.LEAVE)
    assert of(events, RunPaused) == [RunPaused(2, freed=True)]
    assert not list((tmp_path / "run" / "weights").iterdir()) and not of(events, RunFinished)
    go(settings, tmp_path / "run", resume=True)
    assert same(whole, tmp_path / "run")


def test_discarding_writes_nothing(make_settings: MakeSettings, tmp_path: Path) -> None:
    events = go(make_settings("epochs=2"), tmp_path / "run", stop_at=2, request=Request.DISCARD)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert of(events, RunFinished)[0].stopped


class Clock:
    """Time that passes by 0.01 s a look, and by an hour a sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 3600.0
        self.slept += 1


def test_a_pause_changes_nothing_and_is_not_counted(
    make_settings: MakeSettings, whole_run: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("epochs=2", "saving.precision=float")
    folder, whole = whole_run("epochs=2", "saving.precision=float")
    answers: Iterator[Request] = iter([Request.GO, Request.PAUSE, Request.PAUSE, Request.PAUSE, Request.PAUSE])
    for part in ("weights", "previews"):
        (tmp_path / "run" / part).mkdir(parents=True)
    events: list[Event] = []
    clock = Clock()
    for module in ("trainer", "interludes", "state_keeper"):
        monkeypatch.setattr(f"loraloom.training.{module}.time", clock)

    def control() -> Request:
        return next(answers, Request.GO) if of(events, StepFinished) else Request.GO

    train(settings, tmp_path / "run", listener=events.append, control=control)
    assert losses(events) == losses(whole) and same(folder, tmp_path / "run")
    order = [type(event) for event in events if isinstance(event, (StateSaved, RunPaused, RunResumed))][:3]
    assert order == [StateSaved, RunPaused, RunResumed]
    (finished,) = of(events, RunFinished)
    assert clock.slept == 4  # one behind each look at the control file
    assert finished.seconds == pytest.approx(clock.now - 4 * 3600.0, abs=1.0)  # what lies between the steps


def test_the_state_survives_an_error_between_steps(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=3", "saving.precision=float", "saving.every_epochs=0")
    go(settings, tmp_path / "whole")
    for part in ("weights", "previews"):
        (tmp_path / "run" / part).mkdir(parents=True)

    def fail(event: Event) -> None:
        if isinstance(event, StepFinished) and event.step == 4:
            raise OutputError("the disk is full", "free some space")

    with pytest.raises(OutputError):
        train(settings, tmp_path / "run", listener=fail)
    assert [step for step, _ in saved_states(tmp_path / "run" / "state")] == [4]
    go(settings, tmp_path / "run", resume=True)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_no_state_is_kept_of_a_broken_update(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=2", "saving.every_epochs=0")
    (tmp_path / "run" / "weights").mkdir(parents=True)
    prepared = TrainingRun.prepare(settings, tmp_path / "run", ignore)
    step = prepared.parts.optimizer.step

    def half_a_step(*args: Any, **kwargs: Any) -> None:
        if prepared.progress.step == 3:
            raise RuntimeError("in the middle of an update")
        step(*args, **kwargs)

    prepared.parts.optimizer.step = half_a_step  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError):
        prepared.loop()
    assert saved_states(tmp_path / "run" / "state") == []


def test_the_state_before_nan_is_kept(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=3", "saving.every_epochs=0")
    (tmp_path / "run" / "weights").mkdir(parents=True)
    prepared = TrainingRun.prepare(settings, tmp_path / "run", ignore)

    def poison() -> Request:
        if prepared.progress.step == 2:
            prepared.parts.objective.schedule.signal.fill_(float("nan"))
        return Request.GO

    with pytest.raises(NotFiniteError):
        prepared.loop(poison)
    state = find_state(tmp_path / "run" / "state", ignore)
    assert state is not None and state.step == 2


# -- an explosion ------------------------------------------------------------------------------------------------------

WILD = ("optimizer.lr=1e10", "optimizer.max_grad_norm=0", "saving.every_epochs=0", "validation.image_losses=false")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "float"])
def test_an_explosion_is_called_one(precision: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    """Whatever fails afterwards (a LoRA that fp16 cannot hold) does not take the place of the reason."""
    settings = make_settings(*WILD, "epochs=3", "saving.state_every_steps=1", f"saving.precision={precision}")
    events: list[Event] = []
    (tmp_path / "run" / "weights").mkdir(parents=True)
    with pytest.raises(NotFiniteError, match="the training has exploded: after step 1 its weights reach") as caught:
        train(settings, tmp_path / "run", listener=events.append)
    assert "lower optimizer.lr (it is 1e+10)" in caught.value.hint
    assert "optimizer.max_grad_norm=1" in caught.value.hint
    assert saved_states(tmp_path / "run" / "state") == []
    assert "no state was kept before that" in caught.value.hint
    assert any("was not kept, the training has exploded" in event.text for event in of(events, Notice))


@pytest.mark.parametrize("precision", ["bf16", "float"])
def test_a_result_that_exploded_in_the_last_step_is_a_failure(
    precision: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Types with a large range can hold it, so it is written; nobody should take it for a LoRA that was learned."""
    settings = make_settings(*WILD, "steps=1", f"saving.precision={precision}")
    (tmp_path / "run" / "weights").mkdir(parents=True)
    with pytest.raises(NotFiniteError, match="the training has exploded: after step 1 its weights reach") as caught:
        train(settings, tmp_path / "run")
    (left,) = (tmp_path / "run" / "weights").iterdir()
    assert f"{left}, is useless" in caught.value.problem


def test_the_last_sound_state_stays_and_is_named(make_settings: MakeSettings, tmp_path: Path) -> None:
    sane = make_settings("epochs=3", "saving.every_epochs=0", "saving.state_every_steps=2", "saving.keep_states=1")
    for part in ("weights", "previews"):
        (tmp_path / "run" / part).mkdir(parents=True)
    prepared = TrainingRun.prepare(sane, tmp_path / "run", ignore)

    def jolt() -> Request:
        if prepared.progress.step == 3:
            with torch.no_grad():
                for parameter in prepared.parts.adapters.parameters():
                    parameter.mul_(1e8).add_(1e8)
        return Request.GO

    with pytest.raises(NotFiniteError, match="exploded") as caught:
        prepared.loop(jolt)
    assert [step for step, _ in saved_states(tmp_path / "run" / "state")] == [2]
    assert f"the last sound state is that of step 2, {tmp_path / 'run' / 'state'}" in caught.value.hint
    assert f"`loraloom train --branch {tmp_path / 'run'}@2`" in worded(caught.value.hint)
    go(sane, tmp_path / "run", resume=True)
    assert [step for step, _ in saved_states(tmp_path / "run" / "state")] == [9]


def test_moments_that_are_not_finite_are_no_state(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=3", "saving.every_epochs=0", "saving.state_every_steps=3")
    for part in ("weights", "previews"):
        (tmp_path / "run" / part).mkdir(parents=True)
    prepared = TrainingRun.prepare(settings, tmp_path / "run", ignore)

    def jolt() -> Request:
        if prepared.progress.step == 5:
            for state in prepared.parts.optimizer.state.values():
                state["exp_avg_sq"].fill_(torch.inf)
        return Request.GO

    prepared.loop(jolt)  # Adam stands still from then on: the weights stay finite
    assert [step for step, _ in saved_states(tmp_path / "run" / "state")] == [3]


def test_a_state_is_replaced_only_when_a_step_was_taken_from_the_next(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings("epochs=3", "saving.every_epochs=0", "saving.state_every_steps=3", "saving.keep_states=1")
    for part in ("weights", "previews"):
        (tmp_path / "run" / part).mkdir(parents=True)
    prepared = TrainingRun.prepare(settings, tmp_path / "run", ignore)

    kept: list[list[int]] = []

    def look(event: Event) -> None:
        if isinstance(event, StateSaved):
            kept.append([step for step, _ in saved_states(tmp_path / "run" / "state")])
            if event.step == 6:
                prepared.parts.objective.schedule.signal.fill_(float("nan"))

    prepared.parts.listener = look
    with pytest.raises(NotFiniteError, match="the loss of step 7 is nan") as caught:
        prepared.loop()
    assert kept == [[3], [3, 6]]
    assert [step for step, _ in saved_states(tmp_path / "run" / "state")] == [3, 6]
    assert "the last sound state is that of step 3" in caught.value.hint


def test_an_exploded_state_of_an_earlier_version_is_passed_over(tmp_path: Path) -> None:
    moments = {"state": {"a": {"exp_avg": torch.ones(3)}}}
    write_state(tmp_path, 3, {"adapters": {"a": torch.ones(3)}, "optimizer": moments})
    write_state(tmp_path, 6, {"adapters": {"a": torch.tensor([1.0, 3e10, 1.0])}, "optimizer": moments})
    broken = {"state": {"a": {"exp_avg": torch.tensor([1.0, torch.nan, 0.0])}}}
    write_state(tmp_path, 9, {"adapters": {"a": torch.ones(3)}, "optimizer": broken})
    heard: list[Event] = []
    state = find_state(tmp_path, heard.append)
    assert state is not None and state.step == 3
    assert [event.text.split(" is skipped")[0] for event in of(heard, Notice)] == [
        "the state of step 9",
        "the state of step 6",
    ]
    assert read_state(tmp_path / "step-00000006.safetensors").step == 6  # asked for by its number it is read


@pytest.mark.parametrize(
    ("weights", "moments", "sound"),
    [
        ({"a": [0.5], "b": [0.1, -999.0], "c": [0.2]}, {"exp_avg": [-1e30, 0.5]}, True),
        ({"a": [0.5], "b": [0.1, -1000.0], "c": [0.2]}, {"exp_avg": [0.5, 0.5]}, False),
        ({"a": [0.5], "b": [0.1, 0.3], "c": [1000.5]}, {"exp_avg": [0.5, 0.5]}, False),
        ({"a": [0.5, 0.2]}, {"exp_avg": [0.5, float("-inf")], "d": [0.1]}, False),
        ({"a": [0.5, 0.2]}, {"exp_avg": [0.5, 0.1], "d": [float("inf")]}, True),  # one number: not begun
        ({"a": [float("nan"), 0.2]}, {"exp_avg": [0.5, 0.1]}, False),
        ({"a": [0.5, 0.2], "empty": []}, {}, True),
    ],
)
def test_what_is_sound(
    weights: dict[str, list[float]], moments: dict[str, list[float]], sound: bool, tmp_path: Path
) -> None:
    """A magnitude below 1000, of either sign and in any of the tensors; whole numbers may be as large as they like."""
    write_state(tmp_path, 2, {"adapters": {"a": torch.ones(1)}, "optimizer": {}})
    adapters = {name: torch.tensor(values) for name, values in weights.items()}
    state = {name: torch.tensor(values) for name, values in moments.items()} | {"codes": torch.tensor([70_000, 3])}
    write_state(tmp_path, 7, {"adapters": adapters, "optimizer": {"state": {"p": state}}})
    found = find_state(tmp_path, ignore)
    assert found is not None and found.step == (7 if sound else 2)


def test_of_states_written_again_only_older_ones_go(tmp_path: Path) -> None:
    """After going on from an earlier state there are later ones: they are not of this step, and no older ones."""
    for step in (3, 5, 9, 14):
        write_state(tmp_path, step, VALUES)
    write_state(tmp_path, 9, VALUES, keep=2)
    assert [step for step, _ in saved_states(tmp_path)] == [5, 9, 14]
    write_state(tmp_path, 9, VALUES, keep=1)
    assert [step for step, _ in saved_states(tmp_path)] == [9, 14]


def test_a_state_that_fails_after_a_failure_does_not_hide_it(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Path:
        raise RuntimeError("the state has a fault of its own")

    monkeypatch.setattr("loraloom.training.state_keeper.write_state", broken)

    def fail(event: Event) -> None:
        if isinstance(event, StepFinished) and event.step == 2:
            raise OutputError("the first failure", "what to do")

    (tmp_path / "run" / "weights").mkdir(parents=True)
    with pytest.raises(OutputError, match="the first failure") as caught:
        train(make_settings("epochs=1", "saving.every_epochs=0"), tmp_path / "run", listener=fail)
    assert caught.value.__notes__ == ["the state of step 2: RuntimeError: the state has a fault of its own"]


# -- when states are kept ----------------------------------------------------------------------------------------------


def test_when_states_are_written_and_which_are_kept(make_settings: MakeSettings, tmp_path: Path) -> None:
    def steps(*overrides: str) -> tuple[list[int], list[int]]:
        folder = tmp_path / "-".join(overrides)
        events = go(make_settings("epochs=3", *overrides), folder)
        return [event.step for event in of(events, StateSaved)], [step for step, _ in saved_states(folder / "state")]

    assert steps("saving.every_epochs=1") == ([3, 6, 9], [6, 9])
    assert steps("saving.every_epochs=0", "saving.state_every_steps=4", "saving.keep_states=0") == (
        [4, 8, 9],
        [4, 8, 9],
    )
    assert steps("saving.every_epochs=0", "saving.state_every_minutes=1e-9") == ([1, 2, 3, 4, 5, 6, 7, 8, 9], [8, 9])
    assert steps("saving.state=false") == ([], [])


def test_states_that_cannot_be_written_do_not_end_a_run(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Path:
        raise OutputError("no space left", "free some")

    monkeypatch.setattr("loraloom.training.state_keeper.write_state", full)
    events = go(make_settings("epochs=1"), tmp_path / "run")
    assert any("state of step 3 was not kept" in event.text for event in of(events, Notice))
    assert of(events, RunFinished)


# -- the file ----------------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "numbers": [1, 0.1, -0.0, 1e-323, float("inf"), True, None, "text 猫"],
    "table": {"1": {"a": torch.arange(6).reshape(2, 3)}, "empty": {}},
    "pairs": {0: torch.tensor(2.5, dtype=torch.float64), 1: ("a", [torch.tensor([True, False])])},
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "bytes": torch.tensor([7, 255], dtype=torch.uint8),
    "nothing": torch.empty(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "set": {3, 1},
    "$odd": 1,
    "looks packed": [{"$dtype": "float16"}, {"$set": [5, 2]}, {"$tensor": "half", "on": "cpu"}, {"$pairs": []}],
}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    path = write_state(tmp_path, 12, VALUES)
    assert path.name == "step-00000012.safetensors"
    state = read_state(path)
    assert state.step == 12 and equal(state.values, VALUES)
    with safe_open(path, "pt") as file:  # an ordinary safetensors file, no pickle in it
        assert len(list(file.keys())) == 7
        json.loads(file.metadata()["values"])


def test_a_state_that_the_disk_damages_is_not_taken_for_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_state(tmp_path, 3, VALUES)

    def damaged(path: Path, tensors: dict[str, torch.Tensor], **more: Any) -> None:
        write_tensors(path, tensors, **more)
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)

    monkeypatch.setattr("loraloom.training.state.write_tensors", damaged)
    with pytest.raises(OutputError, match="the written file cannot be read back"):
        write_state(tmp_path, 6, VALUES, keep=1)
    assert good.exists()  # the older one is removed only when the new one is sound
    assert equal(read_state(good).values, VALUES)


def test_a_state_has_the_same_bytes_in_whatever_order_a_set_is(tmp_path: Path) -> None:
    words = ["fig", "pear", "lime", "kiwi", "plum", "date", "lemon", "apple", "quince"]
    path = write_state(tmp_path, 4, {"words": set(words)})
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["values"]) == {"words": {"$set": sorted(words)}}
    assert read_state(path).values == {"words": set(words)}


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    for value in (object(), {"a": [lambda: 1]}, 1j, torch.ones(2).to_sparse()):
        with pytest.raises(ResumeError, match="cannot hold"):
            write_state(tmp_path, 1, {"value": value})


@pytest.mark.parametrize("where", ["header", "data", "end"])
def test_a_damaged_state_falls_back_to_the_one_before(where: str, tmp_path: Path) -> None:
    for step in (3, 6):
        write_state(tmp_path, step, VALUES)
    path = tmp_path / "step-00000006.safetensors"
    raw = bytearray(path.read_bytes())
    if where == "end":
        raw = raw[:-1]
    else:
        position = raw.index(b"text") if where == "header" else len(raw) - 4
        raw[position] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FileFormatError):
        read_state(path)
    heard: list[Event] = []
    state = find_state(tmp_path, heard.append)
    assert state is not None and state.step == 3
    (warning,) = of(heard, Notice)
    assert warning.level == "warning" and "step 6" in warning.text
    (tmp_path / "step-00000003.safetensors").write_bytes(b"")
    with pytest.raises(ResumeError, match="none of its 2 states"):
        find_state(tmp_path, ignore)


def test_states_of_a_step(tmp_path: Path) -> None:
    assert find_state(tmp_path / "none", ignore) is None
    for step in (3, 6, 9):
        write_state(tmp_path, step, VALUES, keep=2)
    state = find_state(tmp_path, ignore, step=6)
    assert state is not None and state.step == 6
    with pytest.raises(ResumeError, match="no state of step 3") as caught:
        find_state(tmp_path, ignore, step=3)
    assert "6, 9" in caught.value.hint


def test_moments_keep_their_own_type_and_changed_options_win() -> None:
    class Odd(torch.optim.Optimizer):
        def __init__(self, groups: list[dict[str, Any]], lr: float, decay: float) -> None:
            super().__init__(groups, {"lr": lr, "decay": decay, "count": 0})

    def make(lr: float, decay: float) -> tuple[Odd, dict[int, str]]:
        parameter = torch.nn.Parameter(torch.zeros(2))
        return Odd([{"params": [parameter], "name": "unet"}], lr, decay), {id(parameter): "p"}

    old, names = make(1.0, 0.5)
    initial = optimizer_options(old)
    (parameter,) = old.param_groups[0]["params"]
    old.state[parameter] = {"codes": torch.tensor([1, 2], dtype=torch.uint8), "half": torch.ones(2).bfloat16()}
    old.param_groups[0].update(lr=0.25, count=7, found=0.125)
    values = optimizer_values(old, names, initial)
    new, names = make(1.0, 0.75)
    assert load_optimizer(new, values, names, torch.device("cpu"))
    (group,) = new.param_groups
    assert (group["lr"], group["decay"], group["count"], group["found"]) == (0.25, 0.75, 7, 0.125)
    state = new.state[group["params"][0]]
    assert state["codes"].dtype == torch.uint8 and state["half"].dtype == torch.bfloat16
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    assert not load_optimizer(other, values, names, torch.device("cpu"))


def test_groups_and_moments_go_by_name_and_not_by_place() -> None:
    """Three groups in another order, one of them new; each parameter has its own moments."""

    def make(*groups: tuple[str, float]) -> tuple[torch.optim.Adam, dict[int, str]]:
        parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name, _ in groups}
        optimizer = torch.optim.Adam([{"params": [parameters[name]], "name": name, "lr": lr} for name, lr in groups])
        return optimizer, {id(parameter): name for name, parameter in parameters.items()}

    old, names = make(("unet", 0.3), ("text", 0.2), ("gone", 0.7))
    initial = optimizer_options(old)
    for number, group in enumerate(old.param_groups, 1):
        group["lr"] *= 0.5
        old.state[group["params"][0]] = {"exp_avg": torch.full((2,), float(number))}
    values = optimizer_values(old, names, initial)
    new, names = make(("new", 0.9), ("text", 0.4), ("unet", 0.3))
    assert load_optimizer(new, values, names, torch.device("cpu"))
    # The rate of the text encoder was changed in the settings since (0.2 to 0.4): that stays.
    assert {group["name"]: group["lr"] for group in new.param_groups} == {"new": 0.9, "text": 0.4, "unet": 0.15}
    moments = {names[id(parameter)]: float(state["exp_avg"][0]) for parameter, state in new.state.items()}
    assert moments == {"text": 2.0, "unet": 1.0}


# -- identity ----------------------------------------------------------------------------------------------------------


BEFORE = Identity(
    checkpoint="c", dataset="d", samples=dict.fromkeys(["a", "b", "c", "gone"], "1"),
    settings={"seed": 4, "device": "cpu", "optimizer.lr": 0.3, "saving.keep": 2, "old": 1},
).to_values()  # fmt: skip
AFTER = Identity(
    checkpoint="c", dataset="e", samples={"a": "1", "b": "2", "c": "2", "n1": "1", "n2": "1", "n3": "1", "n4": "1"},
    settings={"seed": 4, "device": "cuda", "optimizer.lr": 0.7, "saving.keep": 5, "batch_size": 1},
)  # fmt: skip
PICTURES = "pictures or captions: 2 changed (b, c), 4 new (n1, n2, n3, ...), 1 missing (gone)"
RATE = "optimizer.lr = 0.7 (it was 0.3)"
ROUNDING = "device changed: results may differ by rounding"


def test_what_differs_from_a_state_is_counted_and_named() -> None:
    """Settings unknown on a side count as their default; free ones are told as changed and stop nobody."""
    with pytest.raises(ResumeError) as caught:
        check_identity(BEFORE, AFTER, ignore, force=False)
    assert caught.value.problem == f"the run cannot go on exactly: {PICTURES}; {RATE}"
    heard: list[Event] = []
    changed = check_identity(BEFORE, AFTER, heard.append, force=True)
    assert changed == ["device", "optimizer.lr", "saving.keep"]
    told = [(event.text, event.level) for event in of(heard, Notice)]
    assert told == [
        (f"going on although {PICTURES}", "warning"),
        (f"going on although {RATE}", "warning"),
        (ROUNDING, "warning"),
    ]


def test_a_branch_is_told_what_differs_and_needs_the_same_checkpoint() -> None:
    heard: list[Event] = []
    check_identity(BEFORE, AFTER, heard.append, force=False, branch=True)
    assert [event.text for event in of(heard, Notice)] == [
        f"other than in the run it branches from: {PICTURES}",
        f"other than in the run it branches from: {RATE}",
    ]
    other = replace(AFTER, checkpoint="another")
    with pytest.raises(ResumeError) as caught:
        check_identity(BEFORE, other, ignore, force=False, branch=True)
    assert caught.value.problem == "the run cannot go on exactly: the checkpoint is another one"
    three = replace(AFTER, samples={**AFTER.samples, "gone": "1"} | {"b": "1"})
    del three.samples["n4"]  # type: ignore[attr-defined]
    with pytest.raises(ResumeError, match=r"captions: 1 changed \(c\), 3 new \(n1, n2, n3\); opti"):
        check_identity(BEFORE, three, ignore, force=False)
    unknown = replace(AFTER, samples={})
    with pytest.raises(ResumeError, match="the pictures or captions are not the same"):
        check_identity(BEFORE, unknown, ignore, force=False)
    check_identity(BEFORE, replace(unknown, dataset="d", settings=BEFORE["settings"]), ignore, force=False)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, checkpoints: Callable[[str], Path]) -> Stopped:
    """Puts a run of two epochs that was stopped after step 2 into a folder; each is trained once and copied."""

    @cache
    def trained(*overrides: str) -> Path:
        place = tmp_path_factory.mktemp("stopped")
        pictures = write_pictures(place / "pictures")
        settings = toy_settings(checkpoints("sd1"), pictures, place / "runs", "epochs=2", *overrides)
        go(settings, place / "run", stop_at=2)
        return place / "run"

    return lambda folder, *overrides: shutil.copytree(trained(*overrides), folder)


def test_another_picture_caption_or_setting_is_refused_by_name(
    make_settings: MakeSettings, stopped: Stopped, tmp_path: Path, pictures: Path
) -> None:
    folder = tmp_path / "run"
    stopped(folder)
    with pytest.raises(ResumeError, match=r"optimizer\.lr = 0\.5 \(it was 0\.001\)") as caught:
        go(make_settings("epochs=2", "optimizer.lr=0.5", "seed=3"), folder, resume=True)
    assert "seed = 3 (it was 0)" in caught.value.problem and "--force" in worded(caught.value.hint)
    (pictures / "2_red" / "0.txt").write_text("something else", encoding="utf-8")
    Image.new("RGB", (64, 64), "#123456").save(pictures / "2_red" / "new.png")
    (pictures / "1_blue" / "1.png").unlink()
    with pytest.raises(ResumeError, match=r"1 changed .*1 new .*1 missing"):
        go(make_settings("epochs=2"), folder, resume=True)
    events = go(make_settings("epochs=2"), folder, resume=True, force=True)
    assert any("going on although" in event.text for event in of(events, Notice) if event.level == "warning")


def test_another_checkpoint_is_refused(make_settings: MakeSettings, stopped: Stopped, tmp_path: Path) -> None:
    from loraloom.formats.tensors import open_tensors, write_tensors

    folder = tmp_path / "run"
    stopped(folder)
    settings = make_settings("epochs=2")
    with open_tensors(settings.checkpoint) as file:
        tensors = {name: file[name].clone() for name in file}
    write_tensors(tmp_path / "copy.safetensors", tensors)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] *= 1.01
    write_tensors(tmp_path / "other.safetensors", tensors)
    other = settings.model_copy(update={"checkpoint": tmp_path / "other.safetensors"})
    for point in ({}, {"branch": True}):
        with pytest.raises(ResumeError, match="the checkpoint is another one"):
            go(other, folder, resume=True, **point)
    go(settings.model_copy(update={"checkpoint": tmp_path / "copy.safetensors"}), folder, resume=True)


def test_what_may_change_changes_no_number(
    make_settings: MakeSettings, stopped: Stopped, whole_run: WholeRun, tmp_path: Path
) -> None:
    stopped(tmp_path / "run", "saving.precision=float")
    whole, _ = whole_run("epochs=2", "saving.precision=float")
    free = make_settings(
        "epochs=2", "saving.precision=float", "saving.every_steps=1", "preview.prompts=['x']", "preview.steps=1",
        "gradient_checkpointing=full",
    )  # fmt: skip
    events = go(free, tmp_path / "run", resume=True)
    assert any("gradient_checkpointing changed" in event.text for event in of(events, Notice))
    (resumed,) = of(events, RunResumed)
    assert "saving.every_steps" in resumed.changed
    one, other = final(whole), final(tmp_path / "run")
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-6)


def test_concepts_and_their_captions_may_lie_elsewhere(make_settings: MakeSettings, tmp_path: Path) -> None:
    def settings(place: str, *overrides: str) -> TrainSettings:
        folder = tmp_path / place / "cats"
        concept = f"{{folder = '{folder}', caption_table = '{folder.parent / 'captions.jsonl'}', flip = true}}"
        return make_settings(f"dataset.concepts=[{concept}]", "saving.precision=float", *overrides)

    pictures = make_settings().dataset.folder
    shutil.copytree(pictures, tmp_path / "here" / "cats")
    names = [path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*.png")]
    rows = [json.dumps({"file_name": name, "text": f"number {index}"}) for index, name in enumerate(names)]
    (tmp_path / "here" / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    go(settings("here"), tmp_path / "whole")
    go(settings("here"), tmp_path / "run", stop_at=1)
    (tmp_path / "here").rename(tmp_path / "there")
    go(settings("there"), tmp_path / "run", resume=True)
    assert same(tmp_path / "whole", tmp_path / "run")
    captions = tmp_path / "there" / "captions.jsonl"
    captions.write_text(captions.read_text(encoding="utf-8").replace("number 1", "another"), encoding="utf-8")
    with pytest.raises(ResumeError, match="1 changed"):
        go(settings("there", "epochs=2"), tmp_path / "run", resume=True)


def test_a_longer_run_is_told_about_its_learning_rate(
    make_settings: MakeSettings, stopped: Stopped, tmp_path: Path
) -> None:
    stopped(tmp_path / "run")
    events = go(make_settings("epochs=4"), tmp_path / "run", resume=True)
    (told,) = [event.text for event in of(events, Notice) if "steps long" in event.text]
    assert "12 steps long, it was 6" in told and "0.933" in told and "0.75" in told  # cosine at 2/12 and at 2/6
    stopped(tmp_path / "flat", "lr_schedule.name=constant")
    events = go(make_settings("epochs=3", "lr_schedule.name=constant"), tmp_path / "flat", resume=True)
    assert not [event for event in of(events, Notice) if "steps long" in event.text and event.level == "warning"]
    assert of(events, StepFinished)[-1].step == 9


def test_a_state_beyond_the_end_is_refused(make_settings: MakeSettings, stopped: Stopped, tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    with pytest.raises(ResumeError, match="step 2 and the run would have only 1"):
        go(make_settings("steps=1"), tmp_path / "run", resume=True)


def test_a_branch_may_have_other_settings(make_settings: MakeSettings, stopped: Stopped, tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    state = find_state(tmp_path / "run" / "state", ignore)
    assert state is not None
    settings = make_settings(
        "epochs=2", "optimizer.lr=5e-3", "optimizer.weight_decay=0.5", "lr_schedule.name=constant", "branched_from=x@2"
    )
    for part in ("weights", "previews"):
        (tmp_path / "branch" / part).mkdir(parents=True)
    events: list[Event] = []
    run = TrainingRun.prepare(settings, tmp_path / "branch", events.append, resume=ResumePoint(state, branch=True))
    assert [group["weight_decay"] for group in run.parts.optimizer.param_groups] == [0.5, 0.5]
    assert all(
        len(run.parts.optimizer.state[p]) > 0 for group in run.parts.optimizer.param_groups for p in group["params"]
    )
    path = run.loop()
    assert path is not None
    steps = of(events, StepFinished)
    assert [event.step for event in steps] == [3, 4, 5, 6]
    assert steps[0].learning_rates == {"unet": 5e-3, "text_encoder": 5e-3}
    assert of(events, StateSaved)[0].step == 2  # a state of its own from the beginning
    assert any("optimizer.lr = 0.005 (it was 0.001)" in event.text for event in of(events, Notice))
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_branched_from"] == "x@2"
    with pytest.raises(ResumeError, match="other layers or ranks"):
        go(make_settings("epochs=2", "adapter.rank=4"), tmp_path / "run", resume=True, branch=True)


def test_another_optimizer_begins_anew(make_settings: MakeSettings, stopped: Stopped, tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    events = go(make_settings("epochs=2", "optimizer.name=sgd_nesterov"), tmp_path / "run", resume=True, branch=True)
    assert any("the optimizer is a different one" in event.text for event in of(events, Notice))


# -- saving ------------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "weights").iterdir())


def test_only_the_newest_files_are_kept(make_settings: MakeSettings, tmp_path: Path) -> None:
    go(make_settings("epochs=4", "saving.keep_last=2", "saving.every_steps=5"), tmp_path / "run")
    assert names(tmp_path / "run") == [
        "lora-000002.safetensors",
        "lora-000003.safetensors",
        "lora-step00000005.safetensors",
        "lora-step00000010.safetensors",
        "lora.safetensors",
    ]


def test_files_of_later_steps_and_of_others_are_left(tmp_path: Path) -> None:
    for name in (
        "a-000001.pt",
        "a-000001-raw.pt",
        "a-000002.pt",
        "a-000009.pt",
        "a-step00000001.pt",
        "ab-000001.pt",
        "a.pt",
    ):
        (tmp_path / name).write_bytes(b"")
    remove_older(tmp_path / "a-000002.pt", "a", 1)
    left = {"a-000002.pt", "a-000009.pt", "a-step00000001.pt", "ab-000001.pt", "a.pt"}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize(("ratio", "epochs"), [(2, [3]), (3, [2, 4]), (50, [1, 2, 3, 4, 5])])
def test_files_per_run(ratio: int, epochs: list[int], make_settings: MakeSettings, tmp_path: Path) -> None:
    go(make_settings("epochs=6", f"saving.files_per_run={ratio}"), tmp_path / "run")
    assert names(tmp_path / "run")[:-1] == [f"lora-{epoch:06d}.safetensors" for epoch in epochs]


@pytest.mark.parametrize("form", ["ckpt", "pt"])
def test_other_forms(form: str, make_settings: MakeSettings, whole_run: WholeRun, tmp_path: Path) -> None:
    whole, _ = whole_run("steps=2")
    go(make_settings("steps=2", f"saving.format={form}"), tmp_path / "b")
    path = tmp_path / "b" / "weights" / f"lora.{form}"
    expected, found = (
        {
            f"{layer}/{role}": tensor
            for layer, roles in read_adapter_file(file).layers.items()
            for role, tensor in roles.items()
        }
        for file in (whole / "weights" / "lora.safetensors", path)
    )
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_file_that_does_not_read_back_is_an_error(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraloom.formats import adapter_file

    write = adapter_file.write_tensors

    def damaging(path: Path, *args: Any, check: Callable[[Path], None], **kwargs: Any) -> None:
        def damaged(written: Path) -> None:
            raw = bytearray(written.read_bytes())
            raw[-1] ^= 1
            written.write_bytes(raw)
            check(written)

        write(path, *args, check=damaged, **kwargs)

    monkeypatch.setattr(adapter_file, "write_tensors", damaging)
    with pytest.raises(OutputError, match="cannot be read back: its checksum is wrong"):
        go(make_settings("steps=1"), tmp_path / "run")
    assert not list((tmp_path / "run" / "weights").glob("*.safetensors"))


# -- previews ----------------------------------------------------------------------------------------------------------


def test_previews_by_steps_weights_and_their_sheet(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(
        "epochs=2", "preview.prompts=['a red square --d 7 --s 1', 'blue --w 128']", "preview.steps=2",
        "preview.every_steps=2", "preview.weights=[0,1,0.5]", "optimizer.lr=0.1",
    )  # fmt: skip
    events = go(settings, tmp_path / "run")
    folder = tmp_path / "run" / "previews"
    found = {path.name for path in folder.iterdir()}
    times = ("e000000", "s00000002", "e000001", "s00000004", "e000002")
    expected = {f"lora_{when}_{index:02d}{tail}.png" for when in times for index in (0, 1) for tail in ("", "_w0.5")}
    assert found == expected | {"lora_e000000_00_w0.png", "lora_e000000_01_w0.png", "sheet.png"}
    saved = of(events, PreviewSaved)
    assert {(event.index, event.weight) for event in saved} == {(i, w) for i in (0, 1) for w in (0.0, 0.5, 1.0)}

    def pixels(name: str) -> bytes:
        return Image.open(folder / name).tobytes()

    # Before training the LoRA changes nothing; afterwards each weight has its own picture.
    assert pixels("lora_e000000_00.png") == pixels("lora_e000000_00_w0.png") == pixels("lora_e000000_00_w0.5.png")
    assert len({pixels(f"lora_{name}.png") for name in ("e000000_00", "e000002_00", "e000002_00_w0.5")}) == 3
    assert Image.open(folder / "lora_e000002_01.png").size == (128, 64)
    assert "Seed: 7" in Image.open(folder / "lora_e000002_00.png").info["parameters"]
    sheets = of(events, PreviewSheetSaved)
    assert len(sheets) == 5 and Image.open(sheets[-1].path).width > 5 * 64


def test_previews_do_not_touch_training(make_settings: MakeSettings, tmp_path: Path) -> None:
    go(make_settings("epochs=2", "ema.enabled=true"), tmp_path / "without")
    previews = ("preview.prompts=['x']", "preview.steps=1", "preview.every_steps=1", "preview.weights=[0.5]")
    go(make_settings("epochs=2", "ema.enabled=true", *previews), tmp_path / "with")
    assert same(tmp_path / "without", tmp_path / "with")


def test_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(
        "# comment\n\na cat, sitting --n ugly, blurred --w 512 --h 768 --d 12 --l 5.5 --s 30 --ss Euler a\n"
        "plain -- dashes\n",
        encoding="utf-8-sig",
    )
    first, cat, plain = preview_prompts(PreviewSettings(prompts=("first",), file=path))
    assert first.text == "first" and plain.text == "plain -- dashes" and plain.width is None
    assert (cat.text, cat.negative, cat.width, cat.height, cat.seed) == (
        "a cat, sitting",
        "ugly, blurred",
        512,
        768,
        12,
    )
    assert (cat.cfg_scale, cat.steps, cat.sampler) == (5.5, 30, "Euler a")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x --q 3", "--q is not an option"),
        ("x --w wide", "'wide' is not a number"),
        ("x --w 13", "width"),
        ("x --ss nothing", "nothing"),
    ],
)
def test_a_mistake_in_a_prompt_names_its_line(line: str, problem: str, tmp_path: Path) -> None:
    from loraloom.errors import LoraloomError

    path = tmp_path / "prompts.txt"
    path.write_text(f"fine\n{line}\n", encoding="utf-8")
    with pytest.raises(LoraloomError, match=r"prompts\.txt, line 2") as caught:
        preview_prompts(PreviewSettings(file=path))
    assert problem in str(caught.value)
    assert parse_prompt("--n bad", "here").negative == "bad"


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_goes_on_bit_for_bit() -> None:
    """The script kills a real run at random moments; CONTRIBUTING says how to run it with more of them."""
    script = Path(__file__).with_name("kill_test.py")
    result = subprocess.run(
        [sys.executable, script, "--count", "3", "--steps", "60", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "identical" in result.stdout
