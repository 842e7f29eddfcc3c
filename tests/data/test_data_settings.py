"""Dataset settings: forms that are understood, forms that are refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loraloom.data.settings import DatasetSettings
from loraloom.errors import SettingsError
from loraloom.settings import setting_rows


def parse(**values: object) -> DatasetSettings:
    return DatasetSettings.parse({"folder": "x", **values})


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (512, (512, 512)),
        ("768", (768, 768)),
        ("512,768", (512, 768)),
        ("512x768", (512, 768)),
        ([640, 384], (640, 384)),
    ],
)
def test_resolution(given: object, size: tuple[int, int]) -> None:
    assert parse(resolution=given).size == size


@pytest.mark.parametrize("given", ["large", "512,768,1024", 16, [512], -1, 100_000, 512.5])
def test_resolution_refused(given: object) -> None:
    if given == [512]:
        assert parse(resolution=given).size == (512, 512)
        return
    with pytest.raises(SettingsError, match="resolution"):
        parse(resolution=given)


def test_caption_extensions() -> None:
    assert parse().caption_extensions == (".txt", ".caption")
    assert parse(caption_extensions=".Caption").caption_extensions == (".caption",)
    assert parse(caption_extensions=["txt", ".cap"]).caption_extensions == (".txt", ".cap")
    for bad in ("", [], ["."], ["../x"]):
        with pytest.raises(SettingsError, match="caption_extensions"):
            parse(caption_extensions=bad)


def test_background() -> None:
    assert parse(background="grey").background_rgb == (128, 128, 128)
    assert parse(background="#102030").background_rgb == (16, 32, 48)
    with pytest.raises(SettingsError, match="background"):
        parse(background="greyish")


def test_bucket_limits() -> None:
    assert parse(resolution=128).bucket_limits == (64, 256)
    assert parse(resolution=512, bucket_min=250, bucket_max=1030, bucket_step=64).bucket_limits == (256, 1024)
    with pytest.raises(SettingsError, match="bracket"):
        parse(resolution=128, bucket_min=256)
    with pytest.raises(SettingsError, match="bucket_step"):
        parse(bucket_step=12)


def test_kohya_names_are_suggested() -> None:
    with pytest.raises(SettingsError, match="'reg_data_dir' is called 'regularization_folder' here"):
        parse(reg_data_dir="y")
    names = {name for row in setting_rows(DatasetSettings) for name in row.kohya}
    assert {"train_data_dir", "num_repeats", "bucket_reso_steps", "flip_aug", "cache_latents_to_disk"} <= names
    assert all(row.doc for row in setting_rows(DatasetSettings))


def test_latents_stay_out_of_the_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert parse().latent_folder is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert parse(cache_to_disk=True).latent_folder == tmp_path / "loraloom" / "latents"
    assert parse(cache_to_disk=True, cache_folder="here").latent_folder == Path("here")


def test_settings_and_command_import_no_torch() -> None:
    code = "import sys, loraloom.data.settings, loraloom.cli.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
