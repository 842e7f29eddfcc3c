"""``--like``: images made again from what is written in them, LoRAs found by their hash, live previews."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from loraloom.adapters.attach import create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.cli.main import app
from loraloom.errors import FileFormatError, LoraloomError, MissingFileError
from loraloom.events import Event, Notice
from loraloom.formats.adapter_file import content_hash, write_adapter_file
from loraloom.formats.image_info import read_parameters
from loraloom.formats.tensors import write_tensors
from loraloom.models.loaded import load_model
from loraloom.studio.likeness import settings_like
from toys import toy_tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("like") / "toy.safetensors"
    write_tensors(path, toy_tensors("sd1"))
    return path


@pytest.fixture
def lora(checkpoint: Path, tmp_path: Path) -> Path:
    targets = load_model(checkpoint, device=torch.device("cpu")).targets
    adapters = create_adapters(AdapterSettings(rank=2), targets, seed=1)
    tensors = {key: torch.full_like(value, 0.01) for key, value in adapters.file_tensors().items()}
    (tmp_path / "loras").mkdir()
    path = tmp_path / "loras" / "style.safetensors"
    write_adapter_file(path, tensors, metadata={}, dtype=torch.float32)
    return path


def generate(*arguments: object) -> list[Path]:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert result.exit_code == 0, result.output + str(result.exception)
    return [Path(line) for line in result.output.splitlines() if line.endswith((".png", ".jpg", ".webp"))]


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_an_image_is_made_again(checkpoint: Path, lora: Path, tmp_path: Path, form: str) -> None:
    """Through the command line; a LoRA that has another name now is found by its hash."""
    made = generate(
        checkpoint, "a (cat:1.3), [day:night:0.5] <lora:style:0.7>", "steps=3", "width=64", "height=48", "seed=11",
        "-n", "dog", "sampler=DPM++ SDE Karras", "s_noise=1.01", "variation_strength=0.2", "variation_seed=4",
        "emphasis=no_norm", f"format={form}", "--lora-folder", lora.parent, "-o", tmp_path / "first",
    )  # fmt: skip
    lora.rename(lora.with_name("renamed.safetensors"))
    again = generate(
        checkpoint, "--like", made[0], "--lora-folder", lora.parent, "-o", tmp_path / "second", f"format={form}"
    )
    first, second = (np.asarray(Image.open(path).convert("RGB")) for path in (made[0], again[0]))
    assert np.array_equal(first, second)
    texts = [read_parameters(path) or "" for path in (made[0], again[0])]
    assert (
        texts[0].replace("lora:style:", f"lora:{lora.with_name('renamed.safetensors')}:").split("Lora hashes")[0]
        in (texts[1].split("Lora hashes")[0])
    )
    changed = generate(checkpoint, "steps=2", "--like", made[0], "--lora-folder", lora.parent, "-o", tmp_path / "third")
    assert "Steps: 2," in (read_parameters(changed[0]) or "")


def test_previews_are_written_while_it_paints(checkpoint: Path, tmp_path: Path) -> None:
    made = generate(checkpoint, "a cat", "steps=4", "width=64", "height=48", "preview_every=2", "-o", tmp_path)
    assert read_parameters(tmp_path / "preview.png") == "step 4"
    assert made == [tmp_path / f"00000-{made[0].stem.split('-')[1]}.png"]


def test_another_autoencoder(checkpoint: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    vae = {
        key.removeprefix("first_stage_model."): value + torch.randn(value.shape, generator=generator) * 0.05
        for key, value in toy_tensors("sd1").items()
        if key.startswith("first_stage_model.")
    }
    write_tensors(tmp_path / "other.safetensors", vae)
    base = (checkpoint, "a cat", "steps=1", "width=64", "height=48", "seed=1")
    plain = generate(*base, "-o", tmp_path / "plain")
    other = generate(*base, "--vae", tmp_path / "other.safetensors", "-o", tmp_path / "other")
    assert not np.array_equal(*(np.asarray(Image.open(path)) for path in (plain[0], other[0])))
    assert "VAE: other.safetensors" in (read_parameters(other[0]) or "")


def test_a_text_file_does_too(tmp_path: Path, lora: Path) -> None:
    digits = content_hash(lora)[:12]
    text = f'a <lora:old name:0.5>\nSteps: 5, Sampler: Euler, CFG scale: 2, RNG: NV, Lora hashes: "old name: {digits}"'
    (tmp_path / "params.txt").write_text(text, encoding="utf-8")
    events: list[Event] = []
    found = settings_like(tmp_path / "params.txt", [lora.parent], listener=events.append)
    assert found.settings["prompt"] == f"a <lora:{lora}:0.5>"
    assert found.settings["steps"] == 5
    told = [event.text for event in events if isinstance(event, Notice)]
    assert len(told) == 2
    assert "NVIDIA" in told[0]
    assert "known by its hash" in told[1]


def test_files_that_say_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    info = Image.Exif()
    info.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a holiday"
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", exif=info)
    cases: list[tuple[str, type[LoraloomError], str]] = [
        ("plain.png", FileFormatError, "says nothing of how it was made"),
        ("photo.jpg", FileFormatError, "no list of parameters: 'a holiday'"),
        ("gone.png", MissingFileError, "does not exist"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message):
            settings_like(tmp_path / name, [])
