"""A form that posts every value gives the same run as one that posts nothing: unset is None, never "was not given"."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loraloom.data.settings import DatasetSettings
from loraloom.events import ignore
from loraloom.generation.settings import GenerateSettings
from loraloom.models.checkpoint import open_checkpoint
from loraloom.settings import Settings
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.sweeps import plan_sweep
from loraloom.training.identity import identity_of
from loraloom.training.opening import open_run, planned_groups
from loraloom.training.optimizer_names import OPTIMIZERS, is_adaptive
from loraloom.training.record import recorded_settings
from loraloom.training.settings import OptimizerSettings, TrainSettings
from loraloom.training.work import count_work

MakeSettings = Callable[..., TrainSettings]
CONCEPT = {"folder": "img/10_cat", "caption": "a cat"}


def posted(settings: Settings) -> dict[str, Any]:
    """Every value as a form sends it."""
    return json.loads(json.dumps(settings.model_dump(mode="json")))  # type: ignore[no-any-return]


def values_of(data: dict[str, Any], *path: str | int) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value with its path; the tables of a list are gone into."""
    for key, value in data.items():
        if isinstance(value, dict) and key not in ("args", "captions"):
            yield from values_of(value, *path, key)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                yield from values_of(item, *path, key, index)
        else:
            yield (*path, key), value


def with_value(data: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The data with one value more."""
    changed = json.loads(json.dumps(data))
    target = changed
    for part in path[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
    target[path[-1]] = value
    return changed  # type: ignore[no-any-return]


def meaning(settings: Settings) -> tuple[object, ...]:
    """The values, and what they come to."""
    if not isinstance(settings, TrainSettings):
        return (settings,)
    dataset, optimizer = settings.dataset, settings.optimizer
    resolved = (dataset.sizes, dataset.latent_folder, dataset.text_folder)
    rates = (optimizer.learning_rate, optimizer.unet_rate, optimizer.text_encoder_rate)
    return settings, recorded_settings(settings), *resolved, *rates


def written(settings: Settings) -> tuple[object, ...]:
    """The same, with what is written down of them (which takes a while)."""
    return *meaning(settings), settings.to_toml()


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (TrainSettings, {"checkpoint": "a.safetensors", "dataset": {"folder": "img"}}),
        (TrainSettings, {"checkpoint": "a.safetensors", "dataset": {"folder": "img", "concepts": [CONCEPT]}}),
        (
            TrainSettings,
            {"checkpoint": "a.safetensors", "dataset": {"folder": "img"}, "optimizer": {"name": "prodigy"}},
        ),
        (GenerateSettings, {}),
        (DatasetSettings, {"folder": "img"}),
    ],
    ids=["train", "train a list of concepts", "train with prodigy", "generate", "dataset"],
)
def test_to_post_a_default_is_to_leave_it_alone(cls: type[Settings], given: dict[str, Any]) -> None:
    alone = cls.parse(given)
    form = posted(alone)
    paths = [path for path, _ in values_of(form)]
    assert len(paths) > 25
    assert written(cls.parse(form)) == written(alone)
    expected = meaning(alone)
    other = [path for path, value in values_of(form) if meaning(cls.parse(with_value(given, path, value))) != expected]
    assert other == []


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_form_that_posts_everything_gives_the_same_run(
    make_settings: MakeSettings, tmp_path: Path, family: str, optimizer: str
) -> None:
    """The resolution is the family's own, the rates are the optimizer's, the record is the same to the letter."""
    given = posted(make_settings(f"optimizer.name={optimizer}", family=family))
    given["dataset"]["resolution"] = given["optimizer"]["lr"] = None
    left_out = json.loads(json.dumps(given))
    del left_out["dataset"]["resolution"], left_out["optimizer"]["lr"], left_out["dataset"]["cache_to_disk"]
    found = []
    for name, data in (("form", given), ("alone", left_out)):
        settings = TrainSettings.parse(data)
        opened = open_run(settings, ignore, device="cpu")
        groups = planned_groups(opened.settings, opened.checkpoint)
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        folder.write_settings(settings)
        again = TrainSettings.load(folder.settings_path)
        assert meaning(again)[1:] == meaning(settings)[1:]
        found.append(
            (
                opened.settings.dataset.resolution,
                [(group.name, group.rate) for group in groups],
                count_work(opened.settings, opened.dataset),
                identity_of(opened.settings, opened.dataset, opened.checkpoint),
                folder.settings_path.read_text(encoding="utf-8"),
            )
        )
    assert found[0] == found[1]
    resolution, groups, *_, text = found[0]
    assert resolution == open_checkpoint(given["checkpoint"]).own_resolution(None).setting
    assert {rate for _, rate in groups} == {1.0 if optimizer == "prodigy" else 1e-4}
    assert "# resolution = (not set)" in text and "# lr = (not set)" in text


def test_what_was_written_before_unset_was_none_means_the_same(make_settings: MakeSettings, tmp_path: Path) -> None:
    """A run's settings.toml held every value but the resolution; a rate of prodigy stood there as 1."""
    text = make_settings("optimizer.name=prodigy", "optimizer.lr=1.0", "dataset.cache_to_disk=false").to_toml()
    assert "lr = 1.0" in text and "cache_to_disk = false" in text
    (tmp_path / "old.toml").write_text(text, encoding="utf-8")
    old = TrainSettings.load(tmp_path / "old.toml")
    assert (old.optimizer.learning_rate, old.dataset.cache_to_disk, old.dataset.latent_folder) == (1.0, False, None)
    (combination, _) = plan_sweep(tmp_path / "old.toml", ["adapter.rank=3,5"])
    assert combination.settings.dataset.latent_folder is None


def test_a_sweep_keeps_latents_unless_told_otherwise(make_settings: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "alone.toml").write_text(make_settings().to_toml(), encoding="utf-8")
    form = {key: value for key, value in posted(make_settings())["dataset"].items() if value is not None}
    assert "cache_to_disk" not in form
    (combination, _) = plan_sweep(tmp_path / "alone.toml", ["adapter.rank=3,5"])
    assert combination.settings.dataset.latent_folder == tmp_path / "runs" / "lora-sweep" / "latents"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_rate_of_an_unset_rate(name: str) -> None:
    for given in ({}, {"lr": None}):
        settings = OptimizerSettings.parse({"name": name, **given})
        assert settings.lr is None
        assert settings.learning_rate == settings.unet_rate == settings.text_encoder_rate
        assert settings.learning_rate == (1.0 if is_adaptive(name) else 1e-4)
    chosen = OptimizerSettings.parse({"name": name, "lr": 3e-3, "text_encoder_lr": [7e-4, 5e-5]})
    assert (chosen.unet_rate, chosen.text_encoder_rate) == (3e-3, (7e-4, 5e-5))
