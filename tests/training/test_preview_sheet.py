"""The sheet of a run's previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loraloom.generation.sheets import draw_sheet
from loraloom.training import previews
from loraloom.training.previews import write_sheet


@pytest.mark.parametrize(("best_step", "marked"), [(0, None), (20, "epoch 2"), (15, "step 15"), (17, None)])
def test_the_time_of_the_best_validation_loss_is_marked(
    best_step: int, marked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns: list[str] = []

    def noting(cells: Any, **labels: Any) -> Image.Image:
        columns.extend(labels["columns"])
        return draw_sheet(cells, **labels)

    monkeypatch.setattr(previews, "draw_sheet", noting)
    for time in ("e000000", "e000001", "e000002", "s00000015"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"cat_{time}_00.png")
    sheet = write_sheet(tmp_path, "cat", ["a cat"], [1.0], steps_per_epoch=10, best_step=best_step)
    assert Image.open(sheet).width > 4 * 32
    assert [label.partition("\n")[0] for label in columns] == ["before training", "epoch 1", "step 15", "epoch 2"]
    assert [label for label in columns if "\n" in label] == ([f"{marked}\nbest validation loss"] if marked else [])
