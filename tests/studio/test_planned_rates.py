from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from loraloom.cli.main import app
from loraloom.events import StepFinished
from loraloom.formats.tensors import write_tensors
from loraloom.studio.planned_rates import plan_rates, rate_lines, write_rates
from loraloom.training.settings import TrainSettings
from loraloom.training.trainer import train
from toys import toy_tensors


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "pictures" / "1_x").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (64, 64), (80 * index, 40, 90)).save(tmp_path / "pictures" / "1_x" / f"{index}.png")
    write_tensors(tmp_path / "toy.safetensors", toy_tensors("sd1"))
    return [
        f"checkpoint={tmp_path / 'toy.safetensors'}",
        f"dataset.folder={tmp_path / 'pictures'}",
        f"output={tmp_path / 'runs'}",
        "name=drawn",
        "epochs=2",
        "dataset.resolution=64",
        "adapter.rank=2",
        "device=cpu",
        "optimizer.lr=1e-3",
        "optimizer.text_encoder_lr=5e-4",
        "optimizer.text_encoder_stop=4",
        "optimizer.loraplus_unet_ratio=2",
        "lr_schedule.name=linear",
    ]


def test_the_rates_drawn_are_those_of_the_run(arguments: list[str], tmp_path: Path) -> None:
    settings = TrainSettings.load(None, arguments)
    curves = plan_rates(settings)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    told: list[dict[str, float]] = []
    train(
        settings,
        tmp_path / "run",
        listener=lambda event: told.append(dict(event.learning_rates)) if isinstance(event, StepFinished) else None,
    )
    assert curves.steps == (1, 2, 3, 4, 5, 6)
    assert [{name: rates[step] for name, rates in curves.rates.items()} for step in range(6)] == [
        pytest.approx(rates) for rates in told
    ]
    assert set(curves.rates) == {"unet", "unet up", "text_encoder"}


def test_lines_and_drawing(arguments: list[str]) -> None:
    settings = TrainSettings.load(None, [*arguments, "steps=12"])
    curves = plan_rates(settings)
    lines = rate_lines(curves)
    assert lines[0] == "12 steps"
    assert lines[2].startswith("unet up ") and "at most 0.002" in lines[2]
    path = write_rates(settings, curves)
    with Image.open(path) as image:
        assert image.size == (960, 360)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_from_the_command_line_nothing_is_trained(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", *arguments, "--plot-lr"])
    assert result.exit_code == 0, result.output
    assert "text_encoder" in result.output and "drawn-lr.png" in result.output.replace("\n", "")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["drawn-lr.png"]
