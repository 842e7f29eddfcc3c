"""Metadata edited: the bytes of the tensors, and the hashes that are of them, stay what they were."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from loraloom.errors import FileFormatError, OutputError, SettingsError
from loraloom.formats.adapter_file import content_hash, model_hashes, read_adapter_file, write_adapter_file
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.weights.metadata import edit_metadata, write_sidecars
from random_loras import random_lora

Write = Callable[..., Path]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "ink.safetensors"
    said = {"ss_steps": "10", "ss_base_model_version": "sd_v1", "note": "ä"}
    write_adapter_file(path, random_lora("sd1", 1).file_tensors(), metadata=said, dtype=torch.float16)
    return path


def data_of(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def test_tensors_stay_byte_for_byte(lora: Path, tmp_path: Path) -> None:
    output, before = tmp_path / "out.safetensors", lora.read_bytes()
    edit = edit_metadata(lora, output, {"title": "Inked „lines“", "own.key": "1"}, remove=["note"])
    assert lora.read_bytes() == before
    assert data_of(output) == data_of(lora)
    assert (edit.changed, edit.removed) == (("modelspec.title", "own.key"), ("note",))
    with safe_open(output, "pt") as other:
        said = other.metadata()
        assert said["modelspec.title"] == "Inked „lines“"
        assert "note" not in said
        assert set(other.keys()) == set(open_tensors(lora))
    assert said["sshs_model_hash"] == content_hash(output)
    assert (output.read_bytes().index(b"}", 8) and int.from_bytes(output.read_bytes()[:8], "little")) % 8 == 0


def test_in_place_and_the_legacy_hash(lora: Path) -> None:
    data = data_of(lora)
    edit_metadata(lora, lora, {"ss_steps": "20"})
    tensors = open_tensors(lora)
    assert data_of(lora) == data
    assert tensors.metadata["ss_steps"] == "20"
    assert tensors.metadata["sshs_legacy_hash"] == model_hashes(tensors, tensors.metadata)[1]
    assert not list(lora.parent.glob(".tmp-*"))


def test_a_preview_is_a_small_jpeg(lora: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGBA", (700, 350), (200, 30, 30, 255)).save(picture)
    edit_metadata(lora, lora, {"trigger": "inkd", "weight": "0.8", "notes": "n"}, preview=picture)
    url = open_tensors(lora).metadata["modelspec.thumbnail"]
    head, _, encoded = url.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (256, 128))
    side = lora.with_suffix(".json")
    side.write_text('{"preferred weight": 1, "own": true}', encoding="utf-8")
    assert write_sidecars(lora) == [side, tmp_path / "ink.preview.png"]
    told = json.loads(side.read_text(encoding="utf-8"))
    assert told == {
        "own": True,
        "preferred weight": 0.8,
        "activation text": "inkd",
        "notes": "n",
        "sd version": "SD1",
    }
    with pytest.raises(OutputError, match="exists already"):
        write_sidecars(lora)


def test_what_cannot_be_edited(lora: Path, tmp_path: Path, write_lora: Write) -> None:
    before = lora.read_bytes()
    for changes, remove in (({"sshs_model_hash": "1"}, []), ({}, ["nothing"]), ({"note": "1"}, ["note"])):
        with pytest.raises(SettingsError):
            edit_metadata(lora, lora, changes, remove=remove)
    with pytest.raises(OutputError, match="not valid text"):
        edit_metadata(lora, lora, {"title": "\ud800"})
    with pytest.raises(FileFormatError):
        edit_metadata(write_lora("a.pt", random_lora("sd1", 1)), tmp_path / "b.safetensors", {"title": "x"})
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(FileFormatError, match="picture"):
        edit_metadata(lora, lora, {}, preview=tmp_path / "bad.png")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(before.replace("ä".encode(), b"\xff\xfe"))
    with pytest.raises(FileFormatError, match="not valid JSON"):
        edit_metadata(damaged, tmp_path / "b.safetensors", {"title": "x"})
    assert lora.read_bytes() == before
    assert not (tmp_path / "b.safetensors").exists()


def test_metadata_that_says_the_strength_stays(tmp_path: Path) -> None:
    """diffusers and PEFT keep alphas beside the tensors: in the header, or in a file beside the LoRA."""
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    told, output = {"lora_adapter_metadata": '{"unet.lora_alpha": 0.3}'}, tmp_path / "out.safetensors"
    write_tensors(tmp_path / "a.safetensors", tensors, metadata=told)
    for changes, remove in (({"lora_adapter_metadata": "{}"}, ()), ({}, ("lora_adapter_metadata",))):
        with pytest.raises(SettingsError, match="holds the alphas of the layers"):
            edit_metadata(tmp_path / "a.safetensors", output, changes, remove=remove)
    edit_metadata(tmp_path / "a.safetensors", output, {"title": "x"})
    assert float(next(iter(read_adapter_file(output).layers.values()))["alpha"]) == pytest.approx(0.3)
    peft = tmp_path / "adapter_model.safetensors"
    write_tensors(peft, tensors)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 0.7}', encoding="utf-8")
    with pytest.raises(SettingsError, match=r"the alphas of .* are in the adapter_config\.json beside it"):
        edit_metadata(peft, output, {"title": "x"})
    edit_metadata(peft, peft, {"title": "x"})
    assert float(next(iter(read_adapter_file(peft).layers.values()))["alpha"]) == pytest.approx(0.7)
