"""Which settings a run may go on with in another value is marked at the setting itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loraloom.errors import ResumeError, SettingsError
from loraloom.events import Event, Notice, ignore
from loraloom.settings import changeable_settings
from loraloom.training.identity import Identity, check_alike, check_identity
from loraloom.training.settings import TrainSettings

FREE = {
    "name": ("a", "b"),
    "epochs": (3, 7),
    "saving.comment": ("", "better"),
    "preview.steps": (20, 7),
    "validation.patience": (0, 3),
    "ema.save": ("ema", "both"),
    "dataset.captions.table": (None, "t.csv"),
    "dataset.folder": ("/here", "/there"),
}
BY_ROUNDING = {"device": ("cpu", "cuda"), "gradient_checkpointing": ("none", "full")}
BOUND = {
    "seed": (0, 3),
    "batch_size": (2, 3),
    "optimizer.lr": (1e-4, 3e-4),
    "ema.decay": (0.9, 0.7),
    "validation.share": (0.1, 0.3),
    "dataset.flip": (False, True),
    "dataset.captions.trigger": ("", "sks"),
}
OWN = ("dataset.folder", "device", "saving.comment", "preview.steps")
"""What each machine may have of its own."""
WAS = Identity("c", "d", {}, {path: before for path, (before, _) in {**FREE, **BY_ROUNDING, **BOUND}.items()})


def changed(path: str, value: object) -> Identity:
    return replace(WAS, settings={**WAS.settings, path: value})


@pytest.mark.parametrize("path", [*FREE, *BY_ROUNDING])
def test_a_run_goes_on_with_another_value(path: str) -> None:
    heard: list[Event] = []
    now = changed(path, {**FREE, **BY_ROUNDING}[path][1])
    assert check_identity(WAS.to_values(), now, heard.append, force=False) == [path]
    texts = [event.text for event in heard if isinstance(event, Notice)]
    assert texts == ([f"{path} changed: results may differ by rounding"] if path in BY_ROUNDING else [])


@pytest.mark.parametrize("path", BOUND)
def test_a_run_does_not_go_on_as_another_one(path: str) -> None:
    with pytest.raises(ResumeError, match=path):
        check_identity(WAS.to_values(), changed(path, BOUND[path][1]), ignore, force=False)


@pytest.mark.parametrize("path", {**FREE, **BY_ROUNDING, **BOUND})
def test_processes_of_one_run_differ_only_in_what_is_their_machines(path: str) -> None:
    now = changed(path, {**FREE, **BY_ROUNDING, **BOUND}[path][1])
    if path in OWN or path == "dataset.captions.table":
        check_alike([(WAS, "no"), (now, "no")])
        return
    with pytest.raises(SettingsError, match=path):
        check_alike([(WAS, "no"), (now, "no")])


def test_marks_are_at_settings_and_at_whole_groups() -> None:
    marks = changeable_settings(TrainSettings)
    assert {"saving.", "preview.", "dataset.cache_folder", "validation.image_losses"} <= set(marks)
    assert not any(path.startswith(("saving.", "preview.")) and path[-1] != "." for path in marks)
    assert not {"optimizer.", "dataset.", "seed"} & set(marks)
