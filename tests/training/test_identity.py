"""Which settings a run may go on with in another value is marked at the setting itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loraloom.data.dataset import load_dataset
from loraloom.errors import ResumeError, SettingsError
from loraloom.events import Event, Notice, ignore
from loraloom.formats.tensors import write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.settings import changeable_settings
from loraloom.training.identity import Identity, check_alike, check_identity, checkpoint_fingerprint, identity_of
from loraloom.training.settings import TrainSettings
from loraloom.training.state import ResumePoint, RunState
from toys import toy_tensors

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


def test_the_process_that_has_something_else_is_named() -> None:
    other = replace(changed("seed", 3), checkpoint="another", dataset="e")
    with pytest.raises(SettingsError) as caught:
        check_alike([(WAS, "bf16"), (WAS, "bf16"), (other, "no"), (WAS, "bf16"), (changed("batch_size", 7), "bf16")])
    assert list(caught.value.problems) == [
        "process 2 differs from process 0: the checkpoint is another one",
        "process 2 differs from process 0: the pictures or captions are not the same",
        "process 2 differs from process 0: seed = 3 instead of 0",
        "process 2 differs from process 0: mixed precision is no instead of bf16",
        "process 4 differs from process 0: batch_size = 7 instead of 2",
    ]


def test_another_mixed_precision_is_said_and_refuses_nothing() -> None:
    point = ResumePoint(RunState(Path("state"), 3, {"identity": WAS.to_values(), "precision": "fp16"}))
    heard: list[Event] = []
    point.check(WAS, "fp16", heard.append)
    assert heard == []
    point.check(WAS, "bf16", heard.append)
    (notice,) = (event for event in heard if isinstance(event, Notice))
    assert notice.level == "warning"
    assert notice.text.startswith("mixed precision is bf16 on this device and was fp16")


def test_pictures_are_remembered_one_by_one_unless_they_are_too_many(
    make_settings: Callable[..., TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    dataset, checkpoint = load_dataset(settings.dataset), open_checkpoint(settings.checkpoint)
    whole = identity_of(settings, dataset, checkpoint)
    assert set(whole.samples) == {sample.identity for sample in dataset.samples} and len(whole.samples) == 4
    for limit, listed in ((4, whole.samples), (3, {})):
        monkeypatch.setattr("loraloom.training.identity._LISTED_SAMPLES", limit)
        assert identity_of(settings, dataset, checkpoint) == replace(whole, samples=listed)


def test_of_concepts_only_what_was_set_is_remembered(
    make_settings: Callable[..., TrainSettings], pictures: Path
) -> None:
    """So a setting that a later version has does not make all states of before those of other runs."""
    settings = make_settings(f"dataset.concepts=[{{folder='{pictures / '2_red'}', repeats=3, flip=true}}]")
    kept = identity_of(settings, load_dataset(settings.dataset), open_checkpoint(settings.checkpoint)).settings
    assert kept["dataset.concepts"] == [{"repeats": 3, "flip": True}]


def test_a_checkpoint_is_known_by_its_values_and_their_type(tmp_path: Path) -> None:
    """A copy is the same; one tensor a hundredth larger, or in another precision, makes another of it."""
    tensors = toy_tensors("sd1")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    changes = {"copy": tensors[name].clone(), "larger": tensors[name] * 1.01, "half": tensors[name].half()}
    found = {}
    for kind, tensor in {"itself": tensors[name], **changes}.items():
        write_tensors(tmp_path / f"{kind}.safetensors", {**tensors, name: tensor})
        found[kind] = checkpoint_fingerprint(open_checkpoint(tmp_path / f"{kind}.safetensors"))
    assert found["copy"] == found["itself"]
    assert len(set(found.values())) == 3
