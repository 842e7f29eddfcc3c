"""Finding LoRA files by name and path."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from loraloom.errors import PromptError
from loraloom.generation.loras import find_lora, other_loras


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


def test_the_working_folder_does_not_shadow_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "ada.safetensors", "ada", "loras/ada.pt", "loras/people/eve.safetensors")
    monkeypatch.chdir(tmp_path)
    folder = Path("loras")
    assert find_lora("ada", [folder]) == folder / "ada.pt"
    assert find_lora("./ada", [folder]) == Path("ada")
    assert find_lora(".\\ada.safetensors" if os.name == "nt" else "./ada.safetensors", [folder]).parent == Path()
    assert find_lora("ada.safetensors", [folder]) == Path("ada.safetensors")
    assert find_lora("ada", [tmp_path / "absent"]) == Path("ada")
    assert other_loras("ada", [folder]) == (Path("ada"),)
    assert other_loras("eve", [folder]) == other_loras("./ada", [folder]) == ()


def test_a_name_in_two_folders_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "one/ada.pt", "one/ada.ckpt", "two/ada.safetensors", "three/old/ada.pt", "three/new/ada.pt")
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / name for name in ("one", "two", "three")]
    assert find_lora("ada", folders) == tmp_path / "one/ada.pt"
    others = ["two/ada.safetensors", "three/new/ada.pt", "three/old/ada.pt"]
    assert list(other_loras("ada", folders)) == [tmp_path / name for name in others]
    assert other_loras("ada", [tmp_path / "one", tmp_path / "two/../one"]) == ()


def test_a_path_that_means_two_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "people/ada.pt", "loras/people/ada.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptError, match="means two files") as error:
        find_lora("people/ada", [tmp_path / "loras"])
    assert "./people/ada" in error.value.hint
    assert find_lora("./people/ada", [tmp_path / "loras"]) == Path("people/ada.pt")
    assert find_lora("people/ada", [tmp_path]) == tmp_path / "people/ada.pt"
    assert find_lora(str(tmp_path / "people/ada"), [tmp_path / "loras"]) == tmp_path / "people/ada.pt"


@pytest.mark.parametrize("name", ["./absent", "~/absent", "../ada", "/ada", r"C:\ada"])
def test_what_is_written_as_a_path_is_no_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "work/loras/ada.pt", "work/loras/absent.pt")
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(PromptError, match="written as a path"):
        find_lora(name, [Path("loras")])


def test_a_name_may_begin_with_a_tilde(tmp_path: Path) -> None:
    make(tmp_path, "~nobody.pt")
    assert find_lora("~nobody", [tmp_path]) == tmp_path / "~nobody.pt"
    with pytest.raises(PromptError, match="no LoRA"):
        find_lora("~nobody/ada", [tmp_path])
