"""Every setting that names an entry of a registry offers its names: in the schema, in rows, plugins' among them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loraloom.cli.main import app
from loraloom.diffusion.samplers import SAMPLERS, SIGMA_SCHEDULES
from loraloom.formats.adapter_kinds import ADAPTERS, trained_kinds
from loraloom.generation.settings import HIRES_UPSCALERS, GenerateSettings
from loraloom.registry import Entry
from loraloom.settings import Settings, setting_rows
from loraloom.training.lr_schedule_names import LR_SCHEDULES
from loraloom.training.optimizer_names import OPTIMIZERS
from loraloom.training.settings import TrainSettings


def lines_of(table: Mapping[str, Entry]) -> dict[str, str]:
    return {name: entry.summary for name, entry in table.items()}


AUTOMATIC = {"automatic": "the sampler's usual ones"}
CHOICES: dict[tuple[type[Settings], str], Any] = {
    (TrainSettings, "optimizer.name"): lambda: lines_of(OPTIMIZERS),
    (TrainSettings, "lr_schedule.name"): lambda: lines_of(LR_SCHEDULES),
    (TrainSettings, "adapter.kind"): lambda: {name: ADAPTERS[name].summary for name in trained_kinds()},
    (TrainSettings, "preview.sampler"): lambda: lines_of(SAMPLERS),
    (GenerateSettings, "sampler"): lambda: lines_of(SAMPLERS),
    (GenerateSettings, "hires_sampler"): lambda: lines_of(SAMPLERS),
    (GenerateSettings, "schedule"): lambda: AUTOMATIC | lines_of(SIGMA_SCHEDULES),
    (GenerateSettings, "hires_schedule"): lambda: AUTOMATIC | lines_of(SIGMA_SCHEDULES),
    (GenerateSettings, "hires_upscaler"): lambda: dict.fromkeys(HIRES_UPSCALERS, ""),
}


def schema_of(cls: type[Settings], path: str) -> dict[str, Any]:
    """The part of the JSON schema that describes a setting."""
    whole = cls.model_json_schema()
    found = whole
    for name in path.split("."):
        found = found["properties"][name]
        reference = found.get("$ref") or next((one["$ref"] for one in found.get("allOf", ()) if "$ref" in one), None)
        if reference:
            found = whole["$defs"][reference.rpartition("/")[2]]
    return found


@pytest.fixture
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an optimizer and a sampler of its own, installed for as long as the test takes."""
    folder = tmp_path / "gain-0.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: gain\nVersion: 0.3\n", encoding="utf-8")
    points = "[loraloom.optimizer]\ngain = gain:Gain\n[loraloom.sampler]\nGain = gain:sampler\n"
    (folder / "entry_points.txt").write_text(points, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (OPTIMIZERS, SAMPLERS):
        monkeypatch.setattr(registry, "_plugins", None)


@pytest.mark.parametrize(("cls", "path"), CHOICES, ids=lambda value: getattr(value, "__name__", value))
def test_the_schema_and_the_rows_have_the_registry(cls: type[Settings], path: str) -> None:
    wanted = CHOICES[cls, path]()
    schema = schema_of(cls, path)
    assert schema["x-choices"] == wanted
    assert schema["enum" if path == "adapter.kind" else "examples"] == list(wanted)
    (row,) = [row for row in setting_rows(cls) if row.path == path]
    assert row.choices == wanted
    assert len(wanted) > 3


@pytest.mark.usefixtures("_plugin")
def test_plugins_are_offered_too() -> None:
    assert schema_of(TrainSettings, "optimizer.name")["x-choices"]["gain"] == "plugin"
    assert "Gain" in schema_of(GenerateSettings, "hires_sampler")["examples"]


def test_asking_imports_nothing_heavy() -> None:
    code = (
        "import sys; from loraloom.training.settings import TrainSettings as T;"
        "from loraloom.generation.settings import GenerateSettings as G;"
        "assert T.model_json_schema() and G.model_json_schema();"
        "print([name for name in ('torch', 'numpy', 'tokenizers', 'pytorch_optimizer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_explains_the_names_of_one_setting() -> None:
    printed = CliRunner().invoke(app, ["settings", "--search", "lr_schedule.name"]).stdout
    for name, entry in LR_SCHEDULES.items():
        assert f"{name} " in printed and entry.summary in printed
    assert "falls in a straight line" not in CliRunner().invoke(app, ["settings"]).stdout
