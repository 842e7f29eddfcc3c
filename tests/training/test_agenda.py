"""What a plan counts is what a run does, for rhythms that do not fit into one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from loraloom.data.dataset import load_dataset
from loraloom.events import Event, PreviewSaved, StateSaved, StepFinished, ValidationMeasured, WeightsSaved
from loraloom.training.agenda import Agenda, Counts
from loraloom.training.plan import make_plan
from loraloom.training.previews import count_pictures
from loraloom.training.settings import TrainSettings
from loraloom.training.trainer import train
from loraloom.training.work import count_work

MakeSettings = Callable[..., TrainSettings]
PAINTED = ("preview.prompts=['a red square']", "preview.steps=1", "preview.cfg_scale=1", "preview.sheet=false")
ALWAYS = (*PAINTED, "saving.state_every_minutes=0", "saving.keep_states=0", "validation.save_best=false")


def agenda_of(settings: TrainSettings) -> tuple[Agenda, Counts]:
    work = count_work(settings, load_dataset(settings.dataset))
    agenda = Agenda(settings, work.steps, work.steps_per_epoch)
    return agenda, agenda.count(work.lengths)


def run(settings: TrainSettings, folder: Path) -> list[Event]:
    for name in ("weights", "previews"):
        (folder / name).mkdir(parents=True)
    events: list[Event] = []
    train(settings, folder, listener=events.append)
    return events


def done(events: list[Event], settings: TrainSettings) -> tuple[Counts, int]:
    """How often each came, and the pictures that were painted."""
    kinds = Counter(type(event) for event in events)
    named = [event for event in events if isinstance(event, WeightsSaved) and not event.final]
    of_steps = sum("-step" in Path(event.path).name for event in named)
    painted = {(event.step, Path(event.path).name[len(settings.name) + 1]) for event in events
               if isinstance(event, PreviewSaved)}  # fmt: skip
    counts = Counts(
        validations=kinds[ValidationMeasured],
        weights_of_epochs=len(named) - of_steps,
        weights_of_steps=of_steps,
        states=kinds[StateSaved],
        previews=len(painted),
    )
    return counts, kinds[PreviewSaved]


@pytest.fixture
def eleven(tmp_path: Path) -> str:
    """Eleven pictures, as an override."""
    (tmp_path / "eleven").mkdir()
    for index in range(11):
        Image.new("RGB", (64, 64), (20 * index, 255 - 20 * index, 90)).save(tmp_path / "eleven" / f"{index:02d}.png")
    return f"dataset.folder='{tmp_path / 'eleven'}'"


@pytest.fixture
def measured(tmp_path: Path) -> str:
    """One picture to measure on, as an override."""
    (tmp_path / "measured").mkdir()
    Image.new("RGB", (64, 64), "#808000").save(tmp_path / "measured" / "a.png")
    return f"validation.folder='{tmp_path / 'measured'}'"


SCHEDULES = {
    "by steps that divide no epoch": (
        ("epochs=3", "batch_size=1", "preview.every_epochs=0", "preview.every_steps=7", "validation.every_steps=5",
         "saving.every_epochs=2", "saving.every_steps=9", "saving.state_every_steps=4"),
        Counts(validations=1 + 6 + 1, weights_of_epochs=1, weights_of_steps=3, states=12 + 1, previews=1 + 4 + 1),
    ),
    "every second of five epochs": (
        ("epochs=5", "batch_size=4", "preview.every_epochs=2", "preview.at_start=false", "saving.every_epochs=2",
         "validation.every_epochs=2", "preview.weights=[0, 0.7]"),
        Counts(validations=1 + 2 + 1, weights_of_epochs=2, weights_of_steps=0, states=2 + 1, previews=2 + 1),
    ),
    "three files of seven epochs": (
        ("epochs=7", "batch_size=6", "saving.files_per_run=3", "preview.every_epochs=0"),
        Counts(validations=1 + 6 + 1, weights_of_epochs=3, weights_of_steps=0, states=3 + 1, previews=1 + 1),
    ),
    "steps that fall on the ends of epochs": (
        ("steps=13", "batch_size=3", "preview.every_epochs=2", "preview.every_steps=6", "saving.every_epochs=3",
         "saving.every_steps=4", "saving.state_every_steps=6"),
        Counts(validations=1 + 3 + 1, weights_of_epochs=1, weights_of_steps=3, states=4 + 1, previews=1 + 3 + 1),
    ),
}  # fmt: skip
"""Overrides, and what was counted by hand for eleven pictures."""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_counted_is_what_a_run_does(
    schedule: str, make_settings: MakeSettings, tmp_path: Path, eleven: str, measured: str
) -> None:
    overrides, expected = SCHEDULES[schedule]
    settings = make_settings(*ALWAYS, *overrides, eleven, measured)
    _, counts = agenda_of(settings)
    assert counts == expected
    found, pictures = done(run(settings, tmp_path / "run"), settings)
    assert found == expected
    assert pictures == count_pictures(settings.preview, expected.previews)


def test_a_run_that_ends_early_has_done_what_was_due_until_then(
    make_settings: MakeSettings, tmp_path: Path, eleven: str, measured: str
) -> None:
    """A learning rate of zero brings no better loss, so it ends with the third measurement after the first step."""
    settings = make_settings(
        *ALWAYS, "epochs=9", "batch_size=4", "optimizer.lr=0", "validation.every_steps=4", "validation.patience=2",
        "preview.every_steps=5", "preview.every_epochs=0", "saving.every_steps=3", "saving.every_epochs=0", eleven,
        measured,
    )  # fmt: skip
    events = run(settings, tmp_path / "run")
    last = max(event.step for event in events if isinstance(event, StepFinished))
    assert last == 12
    found, _ = done(events, settings)
    until_then = Agenda(settings, last, 3).count([(3, 4)])
    assert found.validations == until_then.validations
    assert (found.weights_of_steps, found.states, found.previews) == (3, 3 + 1, 1 + 2 + 1)
    assert found == until_then


def test_no_step_is_counted_twice_and_none_left_out(make_settings: MakeSettings) -> None:
    """Against every step of a run asked one by one, with epochs of different lengths."""
    settings = make_settings(
        "validation.share=0.25", "validation.every_epochs=3", "preview.every_epochs=4", "preview.every_steps=6",
        "saving.every_epochs=2", "saving.every_steps=9", "saving.state_every_steps=15",
    )  # fmt: skip
    lengths = [(3, 5), (7, 1), (4, 6), (2, 1)]
    ends = [sum(length * count for length, count in lengths[:index]) for index in range(len(lengths) + 1)]
    agenda = Agenda(settings, ends[-1], 3)
    asked, epoch, step = [], 0, 0
    for length, count in lengths:
        for _ in range(count):
            epoch += 1
            for index in range(length):
                step += 1
                if step < ends[-1]:
                    asked.append(agenda.after(step, epoch, ends_epoch=index == length - 1))
    assert agenda.after(step, epoch, ends_epoch=True) == agenda.at_end
    counted = agenda.count(lengths)
    assert counted == Counts(
        validations=sum(due.validation for due in asked) + 2,
        weights_of_epochs=sum(due.weights_of_epoch for due in asked),
        weights_of_steps=sum(due.weights_of_step for due in asked),
        states=sum(due.state for due in asked) + 1,
        previews=sum(due.preview for due in asked) + 2,
    )
    assert not any(due.preview_of_epoch and due.preview_of_step for due in asked)
    assert agenda.count([(3, 10**9)]).weights_of_epochs == (10**9 - 1) // 2


def test_the_time_of_previews_by_step_and_of_measurements_is_planned(
    make_settings: MakeSettings, measured: str
) -> None:
    """With previews by epoch at 0 none was counted by step, and measuring took no time."""
    base = make_plan(make_settings("epochs=4", *ALWAYS, "preview.at_start=false", "preview.every_epochs=0"), dry=True)
    by_step = make_settings("epochs=4", *ALWAYS, "preview.every_epochs=0", "preview.every_steps=5")
    measuring = make_settings("epochs=4", *ALWAYS, "preview.every_epochs=0", "preview.at_start=false", measured)
    for settings, times in ((by_step, 1 + 2 + 1), (measuring, 1)):
        plan = make_plan(settings, dry=True)
        each = 0.5 * plan.seconds_per_batch / plan.work.largest[2]
        encoded = len(load_dataset(settings.dataset).samples) + (1 if settings is measuring else 0)
        passes = 2 * times + (4 * (1 + 3 + 1) if settings is measuring else 0)
        expected = plan.work.share_of_largest * plan.seconds_per_batch + encoded * 2 * each + passes * each
        assert plan.seconds == pytest.approx(expected, rel=1e-9)
    assert base.disk.previews * 4 == make_plan(by_step, dry=True).disk.previews
