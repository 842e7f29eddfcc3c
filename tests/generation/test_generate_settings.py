"""Generation settings: what is refused, and that reading them imports no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loraloom.errors import SettingsError
from loraloom.generation.settings import GenerateSettings
from loraloom.settings import setting_rows


def test_every_setting_is_documented() -> None:
    assert all(row.doc for row in setting_rows(GenerateSettings))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"width": 513}, "multiple of 8"),
        ({"width": 8192, "height": 8192}, "in all"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"sampler": "Eular a"}, "did you mean 'Euler a'"),
        ({"schedule": "karas"}, "did you mean 'Karras'"),
        ({"seed": -2}, "greater than or equal to -1"),
        ({"cfg_scale": float("nan")}, "finite"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"format": "tiff"}, "png"),
    ],
)
def test_wrong_settings_are_told(data: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        GenerateSettings.parse(data)


def test_settings_import_no_torch() -> None:
    code = "import sys, loraloom.generation.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
