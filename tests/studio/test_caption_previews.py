"""``dataset captions``: what people are shown is what the model is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from loraloom.cli.dataset import app
from loraloom.data.settings import DatasetSettings
from loraloom.studio.datasets import preview_captions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "2_fox").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), (ord(name), 0, 0)).save(tmp_path / "2_fox" / f"{name}.png")
    (tmp_path / "2_fox" / "a.txt").write_text("fox, long_fur, {red|grey}, tail, [den]", encoding="utf-8")
    return tmp_path


def show(folder: Path, *arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "60", "NO_COLOR": "1"}).invoke(app, ["captions", str(folder), *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_plain_captions_are_told_as_they_are(folder: Path) -> None:
    text = show(folder, "resolution=64")
    assert text.count("tokens: fox, long_fur, {red|grey}, tail, [den]") == 4
    assert text.count("tokens: fox\n") == 4
    assert text.count("epoch 1,") == text.count("epoch 2,") == 4
    assert "no caption file: fox" in text
    assert "Each time: choose the line\n" in text


def test_every_showing_is_listed_with_its_epoch(folder: Path) -> None:
    overrides = ["resolution=64", "captions.shuffle=true", "captions.wildcards=true", "captions.trigger=sks"]
    text = show(folder, *overrides, "captions.keep_tokens=1", "--draws", "6", "--images", "1", "--seed", "3")
    told = [line for line in text.splitlines() if "tokens:" in line]
    assert len(told) == 6
    assert all("tokens: sks, fox, " in line for line in told)
    assert any("red" in line for line in told)
    assert any("grey" in line for line in told)
    assert "\n2_fox/b.png" not in text
    assert show(folder, *overrides, "captions.keep_tokens=1", "-n", "6", "--images", "1", "--seed", "3") == text
    assert show(folder, *overrides, "captions.keep_tokens=1", "-n", "6", "--images", "1", "--seed", "4") != text


def test_nothing_is_called_nothing_and_settings_without_effect_are_said(folder: Path) -> None:
    text = show(folder, "resolution=64", "captions.dropout=1", "captions.keep_tokens=2")
    assert text.count("0 tokens: (nothing)") == 8
    assert "keep_tokens has no effect" in text
    assert "leaves out every caption" in text


def test_warm_up_and_concepts_that_begin_late(folder: Path) -> None:
    settings = DatasetSettings.parse(
        {
            "concepts": [{"folder": folder / "2_fox", "first_epoch": 3, "captions": {"warmup_epochs": 4}}],
            "resolution": 64,
        }
    )
    first, _ = preview_captions(settings, draws=6).pictures
    assert [epoch for epoch, _, _ in first.told] == [3, 3, 4, 4, 5, 5]
    assert [text.count(",") + 1 for _, text, _ in first.told] == [3, 3, 4, 4, 5, 5]
    assert first.lines == ("fox, long_fur, {red|grey}, tail, [den]",)
