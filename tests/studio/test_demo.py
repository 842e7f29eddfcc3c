"""The README's main job, run as the command runs it, in short."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from controls import Asked, unfinished
from loraloom.cli.demo import explanation
from loraloom.control import Interrupted, Request
from loraloom.data.dataset import load_dataset
from loraloom.data.settings import DatasetSettings
from loraloom.errors import OutputError
from loraloom.events import Event, StageReached, from_record, to_record
from loraloom.formats.image_info import read_parameters
from loraloom.models.checkpoint import open_checkpoint
from loraloom.studio.demo import (
    CHARACTER,
    STAGES,
    STYLE,
    DemoPlan,
    DemoResult,
    copy_dataset,
    run_demo,
    training_settings,
)
from loraloom.studio.painter import Painter

# Pictures of four sampler steps: rough, but the same road.
SHORT_STYLE = replace(STYLE, prompts=STYLE.prompts[:2], sampler_steps=4, overrides=("steps=12",))
SHORT_CHARACTER = replace(
    CHARACTER,
    prompts=CHARACTER.prompts[:1],
    control_prompts=CHARACTER.control_prompts[:1],
    regularization_prompts=CHARACTER.regularization_prompts[:10],
    sampler_steps=4,
    overrides=("steps=4",),
)


def run(plan: DemoPlan, folder: Path) -> tuple[DemoResult, list[str], list[Path]]:
    reached: list[StageReached] = []
    painter = Painter()

    def listen(event: Event) -> None:
        if isinstance(event, StageReached):
            reached.append(event)

    result = run_demo(folder, plan=plan, epochs=1, painter=painter, listener=listen)
    assert painter.loads == 2, "the checkpoint and the merged one"
    assert [from_record(json.loads(json.dumps(to_record(event)))) for event in reached] == reached
    assert [event.stage for event in reached] == [
        stage for stage in STAGES if stage != "regularization" or plan.regularization_prompts
    ]
    said = [line for event in reached for line in explanation(event.stage, event.facts)]
    return result, said, [Path(event.facts["folder"]) for event in reached if event.stage == "prepared"]


def test_the_whole_job(tmp_path: Path) -> None:
    result, said, shown = run(SHORT_STYLE, tmp_path / "demo")
    assert [line[0] for line in said if line[:1].isdigit()] == ["1", "2", "3", "4", "5", "6"]
    assert shown == [tmp_path / "demo" / "dataset"]
    assert (shown[0] / "LICENSE.md").exists()
    with safe_open(result.lora, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "openmoji"
        assert file.metadata()["ss_steps"] == "12"
    assert len(result.previews) == 4
    assert result.lora_pixel_difference > 8
    assert result.merge_pixel_difference <= 1
    assert result.merge_latent_difference < 1e-3
    assert open_checkpoint(result.merged_checkpoint).family.name == "sd1"
    for path in (result.image_without, result.image_with, result.image_merged):
        with Image.open(path) as image:
            assert image.size == (128, 128)
    parameters = read_parameters(result.image_with)
    assert parameters is not None and "<lora:openmoji-style:1>" in parameters
    for path in (result.curves, result.epochs_sheet, result.weights_sheet, result.merge_sheet):
        assert path.is_relative_to(result.folder)
        with Image.open(path) as image:
            assert image.width > 3 * 128
    assert len(result.changes) == 2
    assert any("▁" in line for line in said), "the small curve"
    mentioned = [word for line in said for word in line.split() if str(tmp_path) in word]
    assert all(Path(word.rstrip(":")).exists() for word in mentioned)


def test_a_character_with_regularization_images(tmp_path: Path) -> None:
    result, said, _ = run(SHORT_CHARACTER, tmp_path / "demo")
    dataset = load_dataset(DatasetSettings(folder=result.folder / "dataset", resolution=128))
    own = [sample for sample in dataset.samples if sample.is_regularization]
    training = [sample for sample in dataset.samples if not sample.is_regularization]
    assert len(own) >= len(training) == 10, "as the guide says: at least as many"
    assert all("mewo cat" in sample.caption for sample in training)
    assert {sample.caption for sample in own} == set(SHORT_CHARACTER.regularization_prompts)
    assert len(result.changes) == 2
    assert any("without it by" in line for line in said)
    with safe_open(result.lora, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "mewo cat"


@pytest.mark.parametrize("plan", [STYLE, CHARACTER], ids=lambda plan: plan.name)
def test_the_plans(plan: DemoPlan, tmp_path: Path) -> None:
    dataset = copy_dataset(plan, tmp_path / "dataset")
    captions = {path.read_text(encoding="utf-8").strip() for path in dataset.glob("*/*.txt")}
    assert captions
    assert all(plan.trigger in caption for caption in captions)
    prompts = (*plan.prompts, *plan.control_prompts)
    assert not captions & set(prompts), "every row of the sheet is new to the LoRA"
    assert all(plan.trigger in prompt for prompt in plan.prompts)
    others = (*plan.control_prompts, *plan.regularization_prompts)
    assert not any(plan.trigger in prompt for prompt in others)
    settings = training_settings(plan, tmp_path / "a.safetensors", dataset, tmp_path / "runs")
    assert (settings.epochs, settings.adapter.rank, settings.optimizer.lr) == (plan.epochs, plan.rank, plan.lr)
    assert settings.preview.prompts == ()


def test_the_style_is_shown_on_subjects_that_were_not_drawn(tmp_path: Path) -> None:
    dataset = copy_dataset(STYLE, tmp_path / "dataset")
    drawn = [path.stem.replace("_", " ") for path in dataset.glob("*/*.txt")]
    assert not [(d, p) for d in drawn for p in STYLE.prompts if re.search(rf"\b{re.escape(d)}\b", p)]


def test_the_drawings_that_are_shipped_are_small() -> None:
    from importlib.resources import as_file, files

    with as_file(files("loraloom.studio") / "character") as folder:
        pictures = sorted(folder.glob("*/*.png"))
        assert len(pictures) == 10
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 300_000
        assert "Apache-2.0" in (folder / "LICENSE.md").read_text(encoding="utf-8")
        assert all(path.with_suffix(".txt").exists() for path in pictures)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists already"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_demo_is_left_while_it_paints(tmp_path: Path) -> None:
    heard: list[Event] = []
    # A pause; then the three stages before pictures are painted, and the third question after them.
    control = Asked(Request.PAUSE, *[Request.GO] * 7, Request.STOP)
    with pytest.raises(Interrupted):
        run_demo(tmp_path / "demo", plan=SHORT_CHARACTER, listener=heard.append, control=control)
    assert [event.stage for event in heard if isinstance(event, StageReached)][-1] == "regularization"
    assert (tmp_path / "demo" / "dataset").is_dir()
    assert unfinished(tmp_path) == []
