"""Hashes computed from files: what each kind is of, which digits count, and what is remembered."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import torch

from loraloom.errors import FileError, MissingFileError
from loraloom.formats import file_hashes as rooms
from loraloom.formats.file_hashes import compute_hashes, file_hashes, has_hash, is_hash
from loraloom.formats.tensors import write_tensors


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "cache_folder", lambda: tmp_path / "cache")


def lora(path: Path, value: float, **metadata: str) -> Path:
    write_tensors(path, {"a": torch.full((3, 5), value)}, metadata=metadata)
    return path


def test_the_content_is_what_follows_the_header(tmp_path: Path) -> None:
    one, other = lora(tmp_path / "a.safetensors", 0.3), lora(tmp_path / "b.safetensors", 0.3, note="other words")
    data = one.read_bytes()
    assert file_hashes(one).sha256 == sha256(data).hexdigest()
    assert file_hashes(one).content == sha256(data[-60:]).hexdigest() == file_hashes(other).content
    assert file_hashes(one).sha256 != file_hashes(other).sha256


@pytest.mark.parametrize("data", [b"", b"short", b"\x05\0\0\0\0\0\0\0{", b"\xff" * 8 + b"{}" * 20, b"plain " * 300_000])
def test_what_is_no_safetensors_file_is_hashed_whole(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    hashes = compute_hashes(tmp_path / "a.pt")
    assert hashes.sha256 == hashes.content == sha256(data).hexdigest()


def test_only_enough_digits_of_a_true_hash_count(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", 0.3, sshs_model_hash="ab" * 32)
    content, whole = file_hashes(path).content, file_hashes(path).sha256
    assert has_hash(path, content[:12])
    assert has_hash(path, whole[:10].upper())
    assert has_hash(path, content)
    claims = [
        "ab" * 6,
        "ab" * 32,
        content[:9],
        content[:7],
        content[0],
        "",
        "e3b0c442",
        content + "0",
        "blake3:" + whole,
    ]
    assert [claim for claim in claims if has_hash(path, claim)] == []
    assert [is_hash(digits) for digits in ("0123456", "0123abcd", "0123abcde", "0123abcdef", "x" * 12)] == [
        False, True, False, True, False,
    ]  # fmt: skip


def test_the_old_hash_is_of_the_middle_which_small_files_lack(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    path.write_bytes(bytes(0x100000) + b"middle" * 7)
    assert has_hash(path, sha256(b"middle" * 7).hexdigest()[:8])
    assert not has_hash(path, sha256(path.read_bytes()).hexdigest()[:8])


def test_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lora(tmp_path / "a.safetensors", 0.3)
    first = file_hashes(path)
    with monkeypatch.context() as patch:
        patch.setattr(rooms, "compute_hashes", lambda path: pytest.fail("read again"))
        assert file_hashes(path) == first
    lora(path, 0.7)
    assert file_hashes(path) == compute_hashes(path) != first


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        file_hashes(tmp_path / "absent")
    with pytest.raises(FileError):
        file_hashes(tmp_path)
