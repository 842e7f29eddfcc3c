"""Generating to files: numbers, parameters, errors before the slow work, and the remembered hash."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from loraloom.cli.generate import generate
from loraloom.errors import FileError, OutputError, PromptError, SettingsError
from loraloom.events import Event, Notice
from loraloom.formats import file_hashes
from loraloom.formats.image_info import parse_parameters, read_parameters
from loraloom.formats.tensors import write_tensors
from loraloom.generation.painting import image_size
from loraloom.generation.settings import GenerateSettings
from loraloom.models.family import FAMILIES
from loraloom.studio.images import check_prompts, generate_images, model_hash, say_size
from loraloom.studio.painter import Loading, Painter


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "toy model.safetensors"
    write_tensors(path, FAMILIES.load("sd1")().toy(seed=2))
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "cache_folder", lambda: tmp_path / "cache")


def settings(folder: Path, **changes: object) -> GenerateSettings:
    small = {"prompt": "a cat", "width": 32, "height": 32, "steps": 2, "seed": 5, "output_folder": folder / "out"}
    return GenerateSettings.parse({**small, **changes})


def test_images_are_numbered_and_never_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    first = generate_images(checkpoint, settings(tmp_path, count=2))
    again = generate_images(checkpoint, settings(tmp_path, format="webp"))
    assert [image.path.name for image in [*first, *again]] == ["00000-5.png", "00001-6.png", "00002-5.webp"]
    assert [(image.seed, image.width, image.height) for image in first] == [(5, 32, 32), (6, 32, 32)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"00000-5.png", "00001-6.png", "00002-5.webp"}


def test_the_file_carries_its_parameters(checkpoint: Path, tmp_path: Path) -> None:
    (saved,) = generate_images(checkpoint, settings(tmp_path))
    text = read_parameters(saved.path)
    assert text is not None
    fields = parse_parameters(text).fields
    assert fields["Model"] == "toy model"
    assert fields["Model hash"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:10]
    (plain,) = generate_images(checkpoint, settings(tmp_path, model_hash=False))
    assert "Model hash" not in (read_parameters(plain.path) or "")
    with Image.open(saved.path) as one, Image.open(plain.path) as other:
        assert one.tobytes() == other.tobytes()


def test_low_memory_gives_the_same_picture(checkpoint: Path, tmp_path: Path) -> None:
    (usual,) = generate_images(checkpoint, settings(tmp_path))
    (careful,) = generate_images(checkpoint, settings(tmp_path, low_memory=True, keep_file_precision=True))
    with Image.open(usual.path) as one, Image.open(careful.path) as other:
        difference = max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))
    assert difference <= 1


def test_the_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"one")
    first = model_hash(path)
    assert first == hashlib.sha256(b"one").hexdigest()[:10]
    with monkeypatch.context() as patch:
        patch.delattr(file_hashes, "compute_hashes")
        assert model_hash(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert model_hash(path) == hashlib.sha256(b"two").hexdigest()[:10]
    assert model_hash(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"x": 3})])
def test_a_damaged_hash_cache_does_not_matter(tmp_path: Path, content: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "hashes.json").write_text(content, encoding="utf-8")
    (tmp_path / "model.ckpt").write_bytes(b"one")
    assert model_hash(tmp_path / "model.ckpt") == hashlib.sha256(b"one").hexdigest()[:10]


def test_errors_come_before_the_slow_work(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def begun(*arguments: object, **options: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("loraloom.models.loaded.load_model", begun)
    with pytest.raises(PromptError):
        generate_images(checkpoint, settings(tmp_path, prompt="a <lora:absent:1>"))
    with pytest.raises(FileError):
        generate_images(tmp_path / "absent.safetensors", settings(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        generate_images(checkpoint, settings(tmp_path, output_folder=tmp_path / "file"))


def test_the_command_prints_the_paths_and_takes_overrides(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a [odd] folder"
    generate(checkpoint, "a cat", ["width=32", "height=40", "eta=0.5"], steps=2, seed=3, output=folder)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(folder / "00000-3.png")]
    with Image.open(printed[0]) as image:
        assert image.size == (32, 40)
    assert "Eta: 0.5" in (read_parameters(Path(printed[0])) or "")


def test_the_command_names_the_nearest_setting(checkpoint: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'steps'"):
        generate(checkpoint, "a cat", ["stepz=3"])


def test_tags_with_block_weights_and_masks_are_looked_for(tmp_path: Path) -> None:
    """Before anything is loaded, as every tag: by name alone."""
    (tmp_path / "x.safetensors").touch()
    tags = "<lora:x:1:lbw=BASE=1,MID=0.5> <lora:x:1:mask=left.png>"
    check_prompts(GenerateSettings(prompt=f"a cat {tags}", lora_folders=(tmp_path,), count=2))
    with pytest.raises(PromptError, match="there is no LoRA 'y'"):
        check_prompts(GenerateSettings(prompt="a <lora:y:1:lbw=OUTD>", lora_folders=(tmp_path,)))


def test_a_name_that_other_loras_have_too_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ada.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    events: list[Event] = []
    folders = (Path("one"), Path("two"))
    check_prompts(GenerateSettings(prompt="<lora:ada:0.3>", seed=1, lora_folders=folders), listener=events.append)
    expected = f"<lora:ada> is {Path('one/ada.pt')}; {Path('two/ada.pt')} has the name too and is not used"
    assert [event.text for event in events if isinstance(event, Notice)] == [expected]


@pytest.mark.parametrize(
    ("said", "changes", "size", "words"),
    [
        ("96x64", {}, (96, 64), "96 x 64 pixels: what own.safetensors says of itself"),
        ("96x64", {"width": 72}, (72, 64), "96 x 64 pixels"),
        ("96x64", {"width": 72, "height": 32}, (72, 32), None),
        ("0x0", {"width": 64}, (64, 512), "'0x0', which is not a size to paint at"),
        (None, {"width": 64}, (64, 512), None),
    ],
)
def test_the_checkpoints_own_size(
    tmp_path: Path, said: str | None, changes: dict[str, int], size: tuple[int, int], words: str | None
) -> None:
    path = tmp_path / "own.safetensors"
    metadata = {} if said is None else {"modelspec.resolution": said}
    write_tensors(path, FAMILIES.load("sd1")().toy(seed=2), metadata=metadata)
    events: list[Event] = []
    chosen = GenerateSettings.parse({"device": "cpu", **changes})
    with Painter().job(path, Loading.of(chosen), listener=events.append) as job:
        say_size(job.model, chosen, events.append)
        assert image_size(job.model, chosen) == size
    told = [event.text for event in events if isinstance(event, Notice) and "own.safetensors is" not in event.text]
    assert [words is not None and words in text for text in told] == ([] if words is None else [True])
