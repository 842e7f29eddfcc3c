"""The index of models: what is new, changed, moved or broken is found, and nothing is read twice."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from loraloom.cli.words import worded
from loraloom.errors import FileError, MissingFileError
from loraloom.events import Event, Notice
from loraloom.formats import unfinished
from loraloom.formats.tensors import write_tensors
from loraloom.studio import library
from loraloom.weights import identify
from random_loras import random_lora
from toys import toy_tensors


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "deep" / "er").mkdir(parents=True)
    tags = '{"2_x": {"a cat": 4, "ink_100%": 9}}'
    said = {"modelspec.title": "Inked Lines", "modelspec.trigger_phrase": "inkd", "ss_tag_frequency": tags}
    write_tensors(folder / "ink.safetensors", random_lora("sd1", 1).file_tensors(), metadata=said)
    write_tensors(folder / "deep" / "er" / "xl.safetensors", random_lora("sdxl", 1, conv=False).file_tensors())
    write_tensors(folder / "base.ckpt", toy_tensors("sd1"))
    (folder / "bad.safetensors").write_bytes(b"not at all")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "data" / "library.sqlite"


def names(entries: list[library.LibraryEntry]) -> list[str]:
    return [Path(entry.path).name for entry in entries]


def test_scan_and_search(models: Path, index: Path) -> None:
    report = library.scan([models], index=index)
    assert (report.files, report.read, report.added) == (4, 4, 4)
    assert [Path(path).name for path, _ in report.broken] == ["bad.safetensors"]
    assert names(library.search(["INKD"], index=index)) == ["ink.safetensors"]
    assert names(library.search(["ink_100%"], index=index)) == ["ink.safetensors"]
    assert library.search(["ink_200%"], index=index) == []
    assert names(library.search([], family="sdxl", index=index)) == ["xl.safetensors"]
    assert names(library.search([], family="sd1", kind="checkpoint", index=index)) == ["base.ckpt"]
    assert names(library.search([], kind="LoRA", index=index)) == ["xl.safetensors", "ink.safetensors"]
    assert names(library.search([], kind="broken", index=index)) == ["bad.safetensors"]
    (entry,) = library.show("ink", index=index)
    assert (entry.rank, entry.title, entry.tags) == ("2", "Inked Lines", "ink_100%, a cat")


def test_nothing_is_read_twice(models: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.scan([models], index=index)
    monkeypatch.setattr(identify, "identify", lambda path: pytest.fail(f"{path} was read again"))
    report = library.scan([models], index=index)
    assert (report.files, report.read, len(report.broken)) == (4, 0, 1)


def test_moved_overwritten_and_gone(models: Path, index: Path) -> None:
    library.scan([models], index=index)
    (models / "ink.safetensors").rename(models / "deep" / "lines.safetensors")
    old = (models / "deep" / "er" / "xl.safetensors").stat()
    tensors = {name: tensor + 1 for name, tensor in random_lora("sdxl", 1, conv=False).file_tensors().items()}
    write_tensors(models / "deep" / "er" / "xl.safetensors", tensors)
    os.utime(models / "deep" / "er" / "xl.safetensors", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (models / "deep" / "er" / "xl.safetensors").stat().st_size == old.st_size
    (models / "base.ckpt").unlink()
    report = library.scan([models], index=index)
    assert [tuple(Path(path).name for path in pair) for pair in report.moved] == [
        ("ink.safetensors", "lines.safetensors")
    ]
    assert (report.read, report.added, report.changed, report.removed) == (2, 0, 1, 1)
    assert names(library.search(["inkd"], index=index)) == ["lines.safetensors"]


def test_a_side_file_is_noticed(models: Path, index: Path) -> None:
    library.scan([models], index=index)
    (models / "ink.json").write_text('{"activation text": "other words"}', encoding="utf-8")
    assert library.scan([models], index=index).read == 1
    assert library.search(["other words"], index=index)[0].triggers == "inkd, other words"


def test_nothing_beside_a_file_and_no_single_file_stops_a_scan(models: Path, index: Path) -> None:
    (models / "ink.json").symlink_to(models / "nothing.json")
    (models / "base.json").mkdir()
    (models / "bad.json").symlink_to(models / "bad.json")  # a link to itself
    (models / "gone.safetensors").symlink_to(models / "nothing.safetensors")
    (models / "loop.ckpt").symlink_to(models / "loop.ckpt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(models / "deep" / "er" / "xl.json")
    heard: list[Event] = []
    report = library.scan([models], index=index, listener=heard.append)
    assert (report.files, report.added) == (4, 4)
    assert [Path(path).name for path, _ in report.broken] == ["bad.safetensors"]
    assert names(library.search(["inkd"], index=index)) == ["ink.safetensors"]
    told = [event.text for event in heard if isinstance(event, Notice) and "was skipped" in event.text]
    assert len(told) == 2
    assert any("gone.safetensors" in text for text in told)
    assert any("loop.ckpt" in text for text in told)


def test_a_scan_removes_what_a_killed_process_left_among_the_models(models: Path, index: Path) -> None:
    leftover = models / "deep" / f".tmp-{unfinished._this_computer()}-0123456789abcdef"
    leftover.write_bytes(b"half a checkpoint")
    library.scan([models], index=index)
    assert not leftover.exists()


def test_hashes_on_request(models: Path, index: Path) -> None:
    from loraloom.formats.files import sha256_of

    library.scan([models], index=index)
    assert library.search([], index=index)[0].sha256 == ""
    assert library.scan([models], hashes=True, index=index).read == 3
    digest = sha256_of(models / "ink.safetensors")
    assert names(library.show(digest[:10], index=index)) == ["ink.safetensors"]
    assert library.scan([models], hashes=True, index=index).read == 0


def test_a_file_that_its_checksums_call_damaged_is_broken(tmp_path: Path, index: Path) -> None:
    """Seen once the content is read for the hashes; what is found by a hash is whole."""
    path, marks = tmp_path / "x.pt", torch.full((3, 5), 0.3)
    torch.save({"lora_unet_mid_block_a.lora_down.weight": marks, "lora_unet_mid_block_a.lora_up.weight": marks.T}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(marks.numpy().tobytes()) + 7] ^= 4
    path.write_bytes(raw)
    library.scan([tmp_path], index=index)
    assert [entry.kind for entry in library.search([], index=index)] == ["lora"]
    library.scan([tmp_path], hashes=True, index=index)
    (entry,) = library.search([], index=index)
    assert entry.kind == "broken"
    assert "is damaged (it holds the tensor" in entry.problem


def test_forget(models: Path, index: Path) -> None:
    library.scan([models], index=index)
    assert library.forget([models / "deep"], index=index) == 1
    assert library.forget([models / "ink.safetensors"], index=index) == 1
    assert len(library.search([], index=index)) == 2
    with pytest.raises(MissingFileError):
        library.forget([models / "ink.safetensors"], index=index)
    with pytest.raises(MissingFileError):
        library.show("ink", index=index)
    with pytest.raises(MissingFileError):
        library.scan([models / "nowhere"], index=index)


def test_several_scans_at_once(models: Path, index: Path) -> None:
    failures = []

    def run() -> None:
        try:
            library.scan([models], index=index)
        except FileError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(library.search([], index=index)) == 4


def test_an_index_that_is_none(tmp_path: Path, models: Path) -> None:
    (tmp_path / "broken.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(FileError, match="index of the library"):
        library.scan([models], index=tmp_path / "broken.sqlite")


class _Full(sqlite3.Connection):
    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
        if sql.startswith("CREATE"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(sql, *args)  # type: ignore[arg-type]


def test_a_full_disk_is_not_the_fault_of_the_index(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.studio.library.sqlite3.connect", partial(sqlite3.connect, factory=_Full))
    with pytest.raises(FileError, match="database or disk is full") as caught:
        library.scan([models], index=tmp_path / "index.sqlite")
    assert "free some space" in caught.value.hint and "deleted" not in caught.value.hint


def test_an_index_that_cannot_be_made_says_why(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite only says that it cannot open the file."""

    def read_only(folder: Path) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    def refuse(*args: object, **options: object) -> NoReturn:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr("loraloom.formats.room.unfinished_file", read_only)
    monkeypatch.setattr("loraloom.studio.library.sqlite3.connect", refuse)
    with pytest.raises(FileError, match="the disk is mounted read-only") as caught:
        library.scan([models], index=tmp_path / "index.sqlite")
    assert "--index" in worded(caught.value.hint)


def test_large_files_are_known_by_samples(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(3_000_000))
    first = identify.fingerprint(path)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert identify.fingerprint(path) != first


def test_tags_of_a_hostile_file() -> None:
    assert identify.tag_counts({"ss_tag_frequency": "[" * 100_000}) == {}
    assert identify.tag_counts({"ss_tag_frequency": '{"a": {"x": 2, "y": "z"}, "b": {"x": 1}, "c": 3}'}) == {"x": 3}


def claiming(path: Path, claim: str, seed: int) -> Path:
    write_tensors(path, random_lora("sd1", seed).file_tensors(), metadata={"sshs_model_hash": claim})
    return path


def test_a_claimed_hash_finds_a_file_only_when_it_is_true(tmp_path: Path, index: Path) -> None:
    from loraloom.formats.adapter_file import content_hash

    folder = tmp_path / "claims"
    folder.mkdir()
    digest = content_hash(claiming(folder / "true.safetensors", "", 3))
    claiming(folder / "true.safetensors", digest, 3)
    claiming(folder / "false.safetensors", digest, 4)
    claiming(folder / "odd.safetensors", "no hash at all", 5)
    (folder / "odd.json").write_text(f'{{"sha256": "{digest}", "hashes": {{"AutoV3": "{digest}"}}}}', encoding="utf-8")
    library.scan([folder], index=index)
    told = {Path(entry.path).stem: (entry.claim, entry.autov3) for entry in library.search([], index=index)}
    assert told == {"true": (digest[:12], ""), "false": (digest[:12], ""), "odd": ("", "")}
    assert names(library.search([digest[:12].upper()], index=index)) == ["true.safetensors"]
    assert names(library.show(digest[:10], index=index)) == ["true.safetensors"]
    assert library.show("true", index=index)[0].autov3 == digest[:12]
    assert library.show("false", index=index)[0].autov3 == content_hash(folder / "false.safetensors")[:12]


def test_an_index_of_the_first_version_keeps_claims_as_claims(tmp_path: Path, index: Path) -> None:
    index.parent.mkdir(parents=True)
    columns = [name for name in library._COLUMNS if name != "claim"]
    rows = [dict.fromkeys(columns, "") | {"path": "/a/ada.pt", "size": 3, "autov3": "0123456789ab"}]
    with closing(sqlite3.connect(index)) as connection:
        connection.execute(f"CREATE TABLE files ({', '.join(columns)}, words TEXT NOT NULL)")
        for row in rows:
            values = [*row.values(), "/a/ada.pt 0123456789ab"]
            connection.execute(f"INSERT INTO files VALUES ({', '.join('?' * len(values))})", values)
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    (entry,) = library.search(["ada"], index=index)
    assert (entry.claim, entry.autov3, entry.size) == ("0123456789ab", "", 3)
    assert library.search(["0123456789ab"], index=index) == []
