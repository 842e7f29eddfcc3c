"""Teaching in three steps: what is proposed fits, has its reasons, and is what learns on the small checkpoint."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import loraloom
from loraloom.cli.main import app
from loraloom.errors import DatasetError, SettingsError, UnknownNameError
from loraloom.models.family import FAMILIES
from loraloom.studio.demo import STYLE, copy_dataset, training_settings
from loraloom.studio.forms import form_of
from loraloom.studio.runs.training import run_training
from loraloom.studio.teach import EMBEDDED, base_checkpoint, check_trigger, presets, propose
from loraloom.training.idle_choices import known_from_settings
from loraloom.training.settings import TrainSettings

FAMILY_NAMES = (*FAMILIES, EMBEDDED)


def folder_of(path: Path, count: int) -> Path:
    path.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (96, 64), (index * 7 % 256, 40, 90)).save(path / f"{index}.png")
    return path


@pytest.mark.parametrize("kind", presets())
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("count", [3, 30, 31])
def test_every_preset_makes_settings_that_fit(kind: str, family: str, count: int, tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "mine", count)
    checkpoint = None if family == EMBEDDED else Path("model.safetensors")
    teaching = propose(kind, checkpoint, pictures, family=family)
    assert (teaching.family, teaching.images) == (family, count)
    assert all(choice.why and not choice.why.endswith(".") for choice in teaching.choices)
    assert not re.search(r"\{(trigger|class)\}", str(teaching.settings))
    assert known_from_settings(teaching.settings) == []
    settings = teaching.settings
    shown = settings.epochs * settings.dataset.repeats
    assert shown == {3: 120, 30: 100, 31: 40}[count]
    assert settings.preview.prompts and settings.saving.trigger == teaching.trigger.word
    assert (teaching.class_images is not None) == (kind in ("person", "character"))


def test_every_choice_is_a_setting_and_can_hold() -> None:
    names = {field.name for field in form_of(TrainSettings).fields}
    for preset in presets().values():
        for choice in preset.choices:
            assert choice["setting"] in names
            assert set(choice.get("families", ())) <= set(FAMILY_NAMES)
            assert set(choice) <= {"setting", "value", "why", "families", "pictures"}
    assert set(presets()) == {"person", "character", "style", "object"}


def test_the_style_of_the_small_checkpoint_is_the_one_that_is_measured(tmp_path: Path) -> None:
    """benchmarks/learning.py measures what the demo's settings learn: these are the same."""
    dataset = copy_dataset(STYLE, tmp_path / "drawings")
    own = propose("style", None, dataset, STYLE.name).settings
    measured = training_settings(STYLE, own.checkpoint, dataset, own.output)
    assert own.optimizer == measured.optimizer.model_copy(update={"lr": own.optimizer.lr})
    assert own.optimizer.learning_rate == measured.optimizer.learning_rate == 2e-3
    for name in ("adapter", "objective", "lr_schedule", "epochs", "batch_size"):
        assert getattr(own, name) == getattr(measured, name), name
    assert own.dataset.resolution == measured.dataset.resolution
    assert own.dataset.repeats == 1, "the folder's name says it"


@pytest.mark.slow
def test_the_style_is_learned(learning: ModuleType, pictures: Any, tmp_path: Path) -> None:
    dataset = copy_dataset(STYLE, tmp_path / "drawings")
    teaching = propose("style", pictures.checkpoint, dataset, "style", family=EMBEDDED, trigger=STYLE.trigger)
    quiet = teaching.settings.preview.model_copy(update={"prompts": ()})
    settings = teaching.settings.model_copy(update={"output": tmp_path / "runs", "preview": quiet, "device": "cpu"})
    lora = run_training(settings).lora
    assert lora is not None
    found = learning.measure_style(pictures, lora, count=12, few=6)
    assert found["share_of_the_way"] >= 0.9, found


@pytest.mark.parametrize(
    ("word", "is_known", "pieces"),
    [("dog", True, 1), ("red dog", True, 2), ("annazq", False, 2), ("Anna", True, 1), ("openmoji", False, 2)],
)
def test_trigger_words_are_cut_as_the_encoders_do(word: str, is_known: bool, pieces: int) -> None:
    found = check_trigger(word)
    assert found.is_known == is_known and found.remark
    assert len(found.pieces) >= pieces and "".join(found.pieces).replace(" ", "") == word.lower().replace(" ", "")


def test_a_name_that_is_a_word_becomes_one_that_is_free(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "10_dog", 3)
    teaching = propose("object", None, pictures, class_word="toy")
    assert teaching.settings.name == "dog" and teaching.trigger.word.startswith("dog")
    assert not teaching.trigger.is_known
    assert teaching.settings.dataset.captions.sentence == f"photo of {teaching.trigger.word} toy"
    assert propose("object", None, pictures, trigger="dog").trigger.is_known, "what is given is taken"


def test_captions_and_regularization_images_that_are_there_are_used(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "mine", 3)
    series = propose("person", None, pictures, "anna", class_word="woman").class_images
    assert series is not None and (series.count, series.paint.prompt) == (3, "photo of a woman")
    (pictures / "0.txt").write_text("smiling", encoding="utf-8")
    folder_of(pictures / "regularization_images" / "1_woman", 2)
    teaching = propose("person", None, pictures, "anna", class_word="woman")
    assert teaching.class_images is None and teaching.images == 3
    assert teaching.settings.dataset.captions.sentence == ""
    assert teaching.settings.dataset.captions.trigger == teaching.trigger.word


def test_problems_of_single_pictures_are_listed(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "mine", 3)
    shutil.copy(pictures / "0.png", pictures / "again.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    problems = propose("style", None, pictures).problems
    named = {problem.path.name for problem in problems}
    assert "broken.png" in named and {"again.png", "0.png"} & named
    assert problems[0].severity == "error"


def test_pictures_are_judged_by_the_size_of_the_family(tmp_path: Path) -> None:
    pictures = tmp_path / "mine"
    pictures.mkdir()
    Image.new("RGB", (600, 600)).save(pictures / "a.png")

    def kinds(checkpoint: Path | None, family: str) -> set[str]:
        problems = propose("style", checkpoint, pictures, family=family).problems
        return {problem.kind for problem in problems if problem.severity == "warning"}

    assert "enlarged" in kinds(Path("x.safetensors"), "sdxl")
    assert "enlarged" not in kinds(Path("x.safetensors"), "sd1") | kinds(None, "")


def test_what_cannot_be_taught_is_refused(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "mine", 1)
    with pytest.raises(UnknownNameError, match="stile"):
        propose("stile", None, pictures)
    with pytest.raises(SettingsError, match="name"):
        propose("style", None, pictures, "a/b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        propose("style", None, tmp_path / "empty")


def test_proposing_needs_no_torch_and_the_base_is_written_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = folder_of(tmp_path / "mine", 3)
    code = (
        "import sys; from pathlib import Path; from loraloom.studio.teach import propose;"
        f"propose('person', None, Path({str(pictures)!r}), 'anna'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    monkeypatch.setattr(loraloom.studio.teach, "_base_path", lambda: tmp_path / "base" / "small.safetensors")
    written = base_checkpoint()
    assert written.stat().st_size > 10_000_000
    assert base_checkpoint() == written


def test_the_command_says_what_it_chose_and_the_command_that_does_the_same(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "mine", 12)
    ran = CliRunner().invoke(app, ["teach", str(pictures), "--kind", "person", "--name", "anna", "--dry"])
    assert ran.exit_code == 0, ran.output
    assert "Person from 12 pictures" in ran.stdout and "12 regularization images" in ran.stdout
    assert "dataset.repeats = 10: each picture is shown 100 times" in ran.stdout
    assert "loraloom train" in ran.stdout and "name=anna" in ran.stdout
