"""``--like``: images made again from what is written in them, LoRAs found by their hash, live previews."""

from __future__ import annotations

from hashlib import sha256
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
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.loaded import load_model
from loraloom.studio.likeness import given_like, settings_like
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
    assert "found by the hash" in told[1]


def test_files_that_say_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    info = Image.Exif()
    info.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a holiday"
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", exif=info)
    cases: list[tuple[str, type[LoraloomError], str]] = [
        ("plain.png", FileFormatError, "does not say how it was made"),
        ("photo.jpg", FileFormatError, "not a list of parameters: 'a holiday'"),
        ("gone.png", MissingFileError, "there is no such file"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message):
            settings_like(tmp_path / name, [])


def noticed(folder: Path, text: str, lora_folder: Path) -> tuple[str, list[str]]:
    """The prompt that ``--like`` makes of an infotext, and what it says of LoRAs."""
    (folder / "params.txt").write_text(text + ", Steps: 5, Seed: 1, RNG: CPU", encoding="utf-8")
    events: list[Event] = []
    found = settings_like(folder / "params.txt", [lora_folder], listener=events.append)
    return found.settings["prompt"], [event.text for event in events if isinstance(event, Notice)]


def with_metadata(lora: Path, name: str, factor: float, metadata: dict[str, str]) -> Path:
    path = lora.with_name(name)
    with open_tensors(lora) as tensors:
        write_tensors(path, {key: tensors[key] * factor for key in tensors}, metadata=metadata)
    return path


def test_a_hash_that_a_file_only_claims_is_not_believed(tmp_path: Path, lora: Path) -> None:
    claim = "ab" * 32
    liar = with_metadata(lora, "liar.safetensors", 0.3, {"sshs_model_hash": claim})
    lora.unlink()
    prompt, told = noticed(tmp_path, f'<lora:gone:0.7>\nSampler: Euler, Lora hashes: "gone: {claim[:12]}"', lora.parent)
    assert prompt == "<lora:gone:0.7>"
    assert len(told) == 1
    assert f"{liar} claims the hash {claim[:12]}" in told[0]
    assert content_hash(liar)[:12] in told[0]


def test_the_true_file_is_found_behind_a_false_claim(tmp_path: Path, lora: Path) -> None:
    digits = content_hash(lora)[:12]
    with_metadata(lora, "liar.safetensors", 0.3, {"sshs_model_hash": content_hash(lora)})
    with_metadata(lora, "plain.safetensors", 1.0, {"sshs_model_hash": "cd" * 32})
    lora.unlink()
    prompt, told = noticed(tmp_path, f'<lora:gone:0.7>\nSampler: Euler, Lora hashes: "gone: {digits}"', lora.parent)
    assert prompt == f"<lora:{lora.with_name('plain.safetensors')}:0.7>"
    assert len(told) == 1
    assert "found by the hash of its content" in told[0]


def test_a_name_with_another_content_is_said(tmp_path: Path, lora: Path) -> None:
    other = with_metadata(lora, "twin.safetensors", 0.3, {})
    hashes = f'Lora hashes: "style: {content_hash(other)[:12]}"'
    prompt, told = noticed(tmp_path, f"<lora:style:0.7>\nSampler: Euler, {hashes}", lora.parent)
    assert prompt == f"<lora:{other}:0.7>"
    assert f"{lora} has the name, but different content" in told[0]
    other.unlink()
    prompt, told = noticed(tmp_path, f"<lora:style:0.7>\nSampler: Euler, {hashes}", lora.parent)
    assert prompt == "<lora:style:0.7>"
    assert "by its name alone" in told[0]


@pytest.mark.parametrize("digits", ["", "0", "e3b0c442", "nonsense", "e3b0c44298fc"])
def test_digits_that_are_no_hash_of_a_file_find_nothing(tmp_path: Path, lora: Path, digits: str) -> None:
    prompt, told = noticed(tmp_path, f'<lora:gone:0.7>\nSampler: Euler, Lora hashes: "gone: {digits}"', lora.parent)
    assert (prompt, told) == ("<lora:gone:0.7>", [])


def test_a_lora_is_known_by_the_hash_of_its_whole_file_too(tmp_path: Path, lora: Path) -> None:
    digits = sha256(lora.read_bytes()).hexdigest()[:10]
    prompt, _ = noticed(tmp_path, f'<lora:gone:0.7>\nSampler: Euler, Lora hashes: "gone: {digits}"', lora.parent)
    assert prompt == f"<lora:{lora}:0.7>"


def test_other_files_than_the_images_are_said(tmp_path: Path) -> None:
    for name in ("model.ckpt", "vae.pt", "odd.pt", "good.pt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "large.ckpt").write_bytes(bytes(0x100000) + b"middle")
    good, old = (sha256(text).hexdigest() for text in (b"good.pt", b"middle"))
    text = 'a\nSteps: 5, Seed: 1, Size: 8x8, RNG: CPU, Model: m, Model hash: {}, VAE hash: 0123456789, TI hashes: "{}"'

    def told(model_hash: str, checkpoint: str) -> list[str]:
        words = f"odd: 0123456789ab, good: {good[:12]}, absent: 0123456789ab"
        (tmp_path / "a.txt").write_text(text.format(model_hash, words), encoding="utf-8")
        events: list[Event] = []
        given = {"steps": 9, "vae": tmp_path / "vae.pt", "embedding_folders": [tmp_path]}
        found = given_like(tmp_path / "a.txt", given, tmp_path / checkpoint, listener=events.append)
        assert (found["steps"], found["seed"]) == (9, 1)
        return [event.text for event in events if isinstance(event, Notice)]

    files = told("0123456789", "model.ckpt")
    assert [words in line for words, line in zip(("not with", "autoencoder", "embedding odd"), files, strict=True)]
    assert len(told(sha256(b"model.ckpt").hexdigest()[:10], "model.ckpt")) == 2
    assert len(told(old[:8], "large.ckpt")) == 2
    assert "not with" in told("925997e9", "large.ckpt")[0]
    assert "is not known" in told("blake3:0123", "model.ckpt")[0]


def test_what_is_no_ordinary_file_and_text_of_nobody_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is a folder, not a file"):
        settings_like(tmp_path, [])
    (tmp_path / "a.txt").write_text('{"prompt": "a cat", "any": "thing"}')
    with pytest.raises(FileFormatError, match=r"a\.txt: the text inside is JSON of a program"):
        settings_like(tmp_path / "a.txt", [])
