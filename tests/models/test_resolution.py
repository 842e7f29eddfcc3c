"""The size a checkpoint was made for: what its file says, and what is no size to paint at."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.formats.tensors import write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import FAMILIES
from loraloom.models.resolution import own_resolution, resolution_metadata
from loraloom.models.saving import save_checkpoint
from toys import toy_tensors

SD1, SD2 = FAMILIES.load("sd1")(), FAMILIES.load("sd2")()


@pytest.mark.parametrize(
    ("said", "size", "setting"),
    [
        ("128x128", (128, 128), 128),
        ("640x384", (640, 384), (640, 384)),
        (" 768 X 768 ", (768, 768), 768),
        ("896×1152", (896, 1152), (896, 1152)),
        ("768", (768, 768), 768),
        ("768,512", (768, 512), (768, 512)),
        ("64x256", (64, 256), (64, 256)),
    ],
)
def test_what_the_file_says(said: str, size: tuple[int, int], setting: object) -> None:
    own = own_resolution(SD1, {"modelspec.resolution": said}, None)
    assert (own.width, own.height, own.is_said, own.remark) == (*size, True, "")
    assert own.setting == setting


@pytest.mark.parametrize(
    "said",
    [
        "0x0",
        "99999x1",
        "64x264",
        "56x56",
        "4104x4104",
        "510x512",
        "-512x512",
        "large",
        "512x",
        "x",
        "5e2x512",
        "1" * 90,
    ],
)
def test_what_is_no_size_is_passed_over_and_said(said: str) -> None:
    own = own_resolution(SD1, {"modelspec.resolution": said}, None)
    assert (own.width, own.height, own.is_said) == (512, 512, False)
    assert repr(said[:40]) in own.remark


def test_a_file_that_says_nothing_has_its_familys() -> None:
    assert str(own_resolution(SD2, {}, "v")) == "768x768"
    assert str(own_resolution(SD2, {"modelspec.resolution": " "}, "epsilon")) == "512x512"
    assert own_resolution(SD2, {}, None).remark == ""


@pytest.mark.parametrize(
    ("sample_size", "said"),
    [(16, "128x128"), ([48, 80], "640x384"), (64, None), ([64, 64], None), (0, None), (None, None), (True, None),
     ("16", None), ([16], None), (10**9, None), (16.0, None)],
)  # fmt: skip
def test_a_diffusers_configuration(sample_size: object, said: str | None) -> None:
    expected = {} if said is None else {"modelspec.resolution": said}
    assert resolution_metadata({"sample_size": sample_size}, SD1) == expected


@pytest.mark.parametrize("said", ["128x128", "640x384", "512x512"])
def test_folders_keep_it(tmp_path: Path, said: str) -> None:
    write_tensors(tmp_path / "a.safetensors", toy_tensors("sd1"), metadata={"modelspec.resolution": said})
    save_checkpoint(open_checkpoint(tmp_path / "a.safetensors"), tmp_path / "folder")
    folder = open_checkpoint(tmp_path / "folder")
    assert str(folder.own_resolution(None)) == said
    save_checkpoint(folder, tmp_path / "b.safetensors")
    assert str(open_checkpoint(tmp_path / "b.safetensors").own_resolution(None)) == said
