"""Finding LoRA files by name and path."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from loraloom.errors import PromptError
from loraloom.generation.loras import find_lora


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ada", "ada.safetensors"),
        ("ada.safetensors", "ada.safetensors"),
        ("ADA", "ada.safetensors"),
        ("My Style v1.2", "people/My Style v1.2.pt"),
        ("people/My Style v1.2", "people/My Style v1.2.pt"),
        ("people\\My Style v1.2.pt", "people/My Style v1.2.pt"),
        ("猫", "猫.ckpt"),
        (unicodedata.normalize("NFD", "épée"), "épée.safetensors"),
        ("old/twin", "old/twin.safetensors"),
    ],
)
def test_names(tmp_path: Path, name: str, found: str) -> None:
    make(tmp_path, "ada.safetensors", "ada.pt", "people/My Style v1.2.pt", "猫.ckpt", "épée.safetensors", "readme.txt")
    make(tmp_path, "old/twin.safetensors", "new/twin.safetensors")
    assert find_lora(name, [tmp_path]) == tmp_path / found


def test_paths_with_and_without_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "folder/ada.safetensors")
    assert find_lora(str(tmp_path / "folder/ada.safetensors"), []) == tmp_path / "folder/ada.safetensors"
    assert find_lora(str(tmp_path / "folder/ada"), []) == tmp_path / "folder/ada.safetensors"
    monkeypatch.chdir(tmp_path)
    assert find_lora("folder/ada", []) == Path("folder/ada.safetensors")


def test_earlier_folders_win_and_missing_folders_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path, "one/ada.pt", "two/ada.safetensors")
    folders = [tmp_path / "absent", tmp_path / "one", tmp_path / "two"]
    assert find_lora("ada", folders) == tmp_path / "one/ada.pt"


def test_two_files_of_one_name_are_told_apart_by_the_person(tmp_path: Path) -> None:
    make(tmp_path, "old/twin.safetensors", "new/twin.safetensors")
    with pytest.raises(PromptError, match="several LoRAs") as error:
        find_lora("twin", [tmp_path])
    assert "new/twin.safetensors, old/twin.safetensors" in error.value.problem


@pytest.mark.parametrize("name", ["absent", "x" * 5000, "nul\0byte", "../../etc", "readme.txt", "*"])
def test_what_is_not_there_is_told(tmp_path: Path, name: str) -> None:
    make(tmp_path, "readme.txt", "ada.safetensors")
    with pytest.raises(PromptError, match="no LoRA") as error:
        find_lora(name, [tmp_path])
    assert error.value.hint
