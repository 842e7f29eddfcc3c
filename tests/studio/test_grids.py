"""Grids: axes read as people write them, cells that hold what they say, going on, sheets and the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from loraloom.adapters.attach import create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.cli.main import app
from loraloom.errors import LoraloomError, PromptError, SettingsError
from loraloom.events import WeightsSaved
from loraloom.formats.adapter_file import write_adapter_file
from loraloom.formats.image_info import parse_parameters, read_parameters
from loraloom.formats.tensors import write_tensors
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import text_to_image
from loraloom.models.loaded import load_model
from loraloom.studio import grids
from loraloom.studio.grids import Axis, plan_grid, read_axis, run_grid
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import EventLog
from loraloom.training.settings import TrainSettings
from toys import toy_tensors

SIZE = {"width": 64, "height": 48, "steps": 1, "cfg_scale": 2.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "toy.safetensors"
    write_tensors(path, toy_tensors("sd1"))
    return path


@pytest.fixture(scope="module")
def loras(checkpoint: Path) -> Path:
    """A folder with two LoRAs."""
    folder = checkpoint.with_name("loras")
    folder.mkdir()
    targets = load_model(checkpoint, device=torch.device("cpu")).targets
    for seed, name in enumerate(("one", "two")):
        adapters = create_adapters(AdapterSettings(rank=2), targets, seed=seed)
        for _, adapter in adapters.items():
            adapter.up.data += 0.05  # type: ignore[union-attr]
        write_adapter_file(folder / f"{name}.safetensors", adapters.file_tensors(), metadata={}, dtype=torch.float32)
    return folder


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("steps=10, 20,30", "steps", ("10", "20", "30")),
        ("cfg-scale=3-9 [4]", "cfg_scale", ("3", "5", "7", "9")),
        ("weight=0-1 (+0.25)", "weight", ("0", "0.25", "0.5", "0.75", "1")),
        ("seed=3-1", "seed", ("3", "2", "1")),
        ("weight=-1-1 (1)", "weight", ("-1", "0", "1")),
        ("seed=1-2, 7", "seed", ("1", "2", "7")),
        ('prompt="a cat, sitting", a dog', "prompt", ("a cat, sitting", "a dog")),
        ("sampler=Euler a,DPM++ 2M Karras", "sampler", ("Euler a", "DPM++ 2M Karras")),
        ("lora=a-1,b-2.safetensors,none", "lora", ("a-1", "b-2.safetensors", "none")),
    ],
)
def test_axes_are_read(text: str, name: str, values: tuple[str, ...]) -> None:
    assert read_axis(text) == Axis(name, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [("stepz=1", "not an axis"), ("steps", "not an axis"), ("steps=", "no values"), ("count=1,2", "not an axis"),
     ("seed=1-5 (-1)", "holds no number")],
)  # fmt: skip
def test_axes_that_are_wrong(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        read_axis(text)


def test_every_cell_is_the_image_that_its_settings_make(checkpoint: Path, loras: Path, tmp_path: Path) -> None:
    """LoRAs x weights x prompts, painted in batches, against each painted alone."""
    axes = [read_axis("weight=0,0.5,1"), read_axis("lora=one,two,none"), read_axis("replace=cat,dog")]
    given = {**SIZE, "prompt": "a cat", "negative_prompt": "no cat", "lora_folders": [loras], "seed": 3}
    axes, cells = plan_grid(checkpoint, given, axes)
    assert len(cells) == 18
    result = run_grid(tmp_path, axes, cells, batch_size=5)
    assert result.painted == 18 - 2 * 2, "without a LoRA all weights are the same image"
    model = load_model(checkpoint, device=torch.device("cpu"), prediction="epsilon")
    for cell in cells:
        with Image.open(tmp_path / cell.file) as image:
            found = np.asarray(image).astype(int)
        (alone,) = text_to_image(model, cell.settings)
        assert np.abs(found - np.asarray(alone.image)).max() <= 2
        parameters = parse_parameters(read_parameters(tmp_path / cell.file) or "")
        assert (parameters.prompt, parameters.negative_prompt) == (cell.settings.prompt, cell.settings.negative_prompt)
    by_place = {cell.place: cell.settings for cell in cells}
    assert by_place[1, 0, 1].prompt == "a dog <lora:one:0.5:0.5>"
    assert by_place[1, 0, 1].negative_prompt == "no dog"
    assert by_place[2, 2, 0].prompt == "a cat"
    assert [path.name for path in result.sheets] == ["sheet-1.png", "sheet-2.png"]


def test_a_grid_goes_on_and_grows(checkpoint: Path, tmp_path: Path) -> None:
    given = {**SIZE, "prompt": "a cat"}

    def paint(*texts: str) -> grids.GridResult:
        axes, cells = plan_grid(checkpoint, given, [read_axis(text) for text in texts])
        return run_grid(tmp_path, axes, cells)

    first = paint("cfg_scale=1,3", "seed=1,2")
    (tmp_path / first.cells[0].file).unlink()
    kept = (tmp_path / first.cells[1].file).read_bytes()
    assert paint("cfg_scale=1,3", "seed=1,2").painted == 1
    assert paint("cfg_scale=1,3,5", "seed=1,2").painted == 2
    assert (tmp_path / first.cells[1].file).read_bytes() == kept
    assert paint("sampler=Euler,Heun", "cfg_scale=1").painted == 2


def test_weights_of_tags_in_the_prompt(checkpoint: Path, loras: Path) -> None:
    given = {**SIZE, "prompt": "a <lora:one:0.3> b <lora:two:0.2:0.9>", "lora_folders": [loras]}
    _, cells = plan_grid(checkpoint, given, [read_axis("unet_weight=0,1"), read_axis("te_weight=0.5")])
    assert [cell.settings.prompt for cell in cells] == [
        "a <lora:one:0.5:0> b <lora:two:0.5:0>",
        "a <lora:one:0.5:1> b <lora:two:0.5:1>",
    ]


def test_checkpoints_and_files_that_change(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_tensors(other, {name: tensor * 1.01 for name, tensor in toy_tensors("sd1").items()})
    axes = [read_axis(f"checkpoint={checkpoint},{other}")]
    axes, cells = plan_grid(checkpoint, {**SIZE, "prompt": "a"}, axes)
    result = run_grid(tmp_path / "grid", axes, cells)
    assert len({(tmp_path / "grid" / cell.file).read_bytes() for cell in result.cells}) == 2
    write_tensors(other, {name: tensor * 1.02 for name, tensor in toy_tensors("sd1").items()})
    axes, cells = plan_grid(checkpoint, {**SIZE, "prompt": "a"}, axes)
    assert run_grid(tmp_path / "grid", axes, cells).painted == 1


def test_epochs_of_a_run(checkpoint: Path, loras: Path, tmp_path: Path) -> None:
    settings = TrainSettings.parse({"checkpoint": checkpoint, "dataset": {"folder": tmp_path}, "name": "x"})
    run = RunFolder.create(tmp_path / "runs", "x", settings)
    with EventLog(run.path) as record:
        for epoch, name in ((1, "one"), (2, "two")):
            record(WeightsSaved(str(loras / f"{name}.safetensors"), epoch * 10, epoch, False))
    axes, cells = plan_grid(checkpoint, {**SIZE, "prompt": "a"}, [read_axis("epoch=all")], run=run.path)
    assert axes == [Axis("epoch", ("1", "2"))]
    assert cells[1].settings.prompt == f"a <lora:{loras / 'two.safetensors'}:1:1>"
    with pytest.raises(SettingsError, match="no LoRA in epoch 7"):
        plan_grid(checkpoint, {**SIZE, "prompt": "a"}, [read_axis("epoch=1,7")], run=run.path)


def test_what_does_not_go_together(checkpoint: Path, loras: Path) -> None:
    base = {**SIZE, "prompt": "a cat", "lora_folders": [loras]}
    cases: list[tuple[list[str], type[LoraloomError], str]] = [
        ([], SettingsError, "one to three axes"),
        (["steps=1", "steps=2"], SettingsError, "two axes are steps"),
        (["lora=one", "epoch=all"], SettingsError, "both say which LoRA"),
        (["epoch=all"], SettingsError, "needs the run"),
        (["weight=0,1"], SettingsError, "the prompt has none"),
        (["replace=horse,dog"], SettingsError, "is not in the prompt"),
        (["steps=1,0"], SettingsError, "steps"),
        (["lora=absent"], PromptError, "there is no LoRA 'absent'"),
        (["checkpoint=gone.safetensors"], SettingsError, "gone.safetensors does not exist"),
    ]
    for texts, kind, message in cases:
        with pytest.raises(kind, match=re.escape(message)):
            plan_grid(checkpoint, base, [read_axis(text) for text in texts])


def test_huge_sheets_are_made_smaller(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "_LARGEST_SHEET", 400)
    axes, cells = plan_grid(checkpoint, {**SIZE, "prompt": "a"}, [read_axis("seed=1-6")])
    result = run_grid(tmp_path, axes, cells)
    with Image.open(result.sheets[0]) as sheet:
        assert max(sheet.size) < 6 * 64
    with Image.open(tmp_path / cells[0].file) as image:
        assert image.size == (64, 48)


def test_the_command_and_its_page(checkpoint: Path, loras: Path, tmp_path: Path) -> None:
    arguments = [
        "grid", checkpoint, 'a <b> & "cat"', "width=64", "height=48", "steps=1", "-x", "weight=0-1 (+0.5)",
        "-y", "lora=one,two", "-z", "cfg_scale=1,2", "-o", tmp_path, "--lora-folder", loras, "--title", "A & B",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "12 images, 12 of them painted now" in result.output
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<img loading=lazy") == 12
    assert "A &amp; B" in page
    assert "<b>" not in page
    assert all((tmp_path / file).is_file() for file in re.findall(r'src="([^"]+)"', page))
    assert GenerateSettings().count == 1
