"""Training on a folder of odd pictures and captions finishes, uses every usable one, and alters no file."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from loraloom.events import Notice
from loraloom.training.settings import TrainSettings
from loraloom.training.trainer import TrainingRun
from picture_zoo import UNUSABLE, USABLE

CAPTIONS = [
    b"\xef\xbb\xbfa caption with a byte order mark",
    "UTF-16 für alle".encode("utf-16"),
    "caf\u00e9".encode("latin-1"),
    b"",
    b"\r\n\r\n",
    b"one line\r\nanother line\r\n",
    b"word, " * 20_000,
    b"\x00\x01\x02\xff",
    "日本語, 1girl, ^_^".encode(),
    b"(weighted:1.3), [less]",
    b"<lora:x:1>",
    b"<|endoftext|> is text",
    "\u202ertl and \u200bzero width".encode(),
    b",,,,",
    b"{a|b}",
    b"tag_with_underscores, o_o",
]


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_training_on_the_zoo(make_settings: Callable[..., TrainSettings], tmp_path: Path) -> None:
    folder = tmp_path / "zoo" / "1_odd"
    folder.mkdir(parents=True)
    for index, (name, (make, _, _)) in enumerate(sorted(USABLE.items())):
        stem = f"{index:03d}"
        (folder / f"{stem}{Path(name).suffix or '.png'}").write_bytes(make())
        if index < len(CAPTIONS):
            (folder / f"{stem}.txt").write_bytes(CAPTIONS[index])
    for index, (name, (make, _)) in enumerate(sorted(UNUSABLE.items())):
        (folder / f"bad{index:03d}{Path(name).suffix or '.png'}").write_bytes(make())
    before = fingerprint(tmp_path / "zoo")
    notices: list[Notice] = []
    run = TrainingRun.prepare(
        make_settings(f"dataset.folder='{tmp_path / 'zoo'}'", "steps=3", "batch_size=8", "max_token_length=75"),
        tmp_path / "run",
        lambda event: notices.append(event) if isinstance(event, Notice) else None,
    )
    (tmp_path / "run" / "weights").mkdir(parents=True)
    assert len(run.parts.dataset.samples) == len(USABLE) >= 40
    reported = {Path(word.rstrip(":")).name for notice in notices for word in notice.text.split()[:1]}
    assert {path.name for path in folder.glob("bad*")} <= reported
    assert run.loop().exists()
    assert fingerprint(tmp_path / "zoo") == before
