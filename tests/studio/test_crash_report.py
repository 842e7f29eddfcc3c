"""The report of a fault: complete, without secrets, and written wherever it can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.studio.crash_report import command_line, report_text, without_secrets, write_report


def fault(text: str = "a number is missing") -> Exception:
    try:
        try:
            raise KeyError("the first")
        except KeyError as first:
            raise ValueError(text) from first
    except ValueError as error:
        return error


def test_it_says_where_and_with_what() -> None:
    text = report_text(fault(), ["train", "adapter.rank=3"])
    for part in ("loraloom: ", "python: ", "torch ", "command: loraloom train adapter.rank=3"):
        assert part in text
    assert text.index("KeyError: 'the first'") < text.index("ValueError: a number is missing")
    assert "in fault" in text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("notify.url=https://discord.com/api/webhooks/12/Ab-c9", "Ab-c9"),
        ("opened https://example.org:8443/path?key=Zx81 and failed", "Zx81"),
        ("ftp://ann:geheim@example.org/x", "geheim"),
        ("--hf-token hf_AbCdEfGhIjKl", "AbCdEfGhIjKl"),
        ("HF_TOKEN=Qw77", "Qw77"),
        ("{'api_key': 'Qw77'}", "Qw77"),
        ("Authorization: Bearer Qw77.xy", "Qw77"),
        ("password = 'Qw 77'", "Qw 77"),
    ],
)
def test_secrets_stay_here(text: str, secret: str) -> None:
    assert secret not in without_secrets(text)
    assert secret not in report_text(fault(text), [text])


def test_what_is_no_secret_stays() -> None:
    said = command_line(["train", "optimizer.lr=1e-4", "a picture of keys", "max_token_length=150"])
    assert said == "loraloom train optimizer.lr=1e-4 'a picture of keys' max_token_length=150"


def test_home_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert without_secrets(f"{tmp_path}/models/x.safetensors") == "~/models/x.safetensors"


def test_where_it_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, scratch, blocked = tmp_path / "data", tmp_path / "scratch", tmp_path / "file"
    scratch.mkdir()
    blocked.write_text("x", encoding="utf-8")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(scratch))
    monkeypatch.setattr("loraloom.studio.crash_report.data_folder", lambda: data)
    first = write_report(fault(), ["plan"])
    assert first is not None and first.parent == data / "crash-reports"
    assert "a number is missing" in first.read_text(encoding="utf-8")

    monkeypatch.setattr("loraloom.studio.crash_report.data_folder", lambda: blocked)
    second = write_report(fault(), ["plan"])
    assert second is not None and second.parent == scratch

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(blocked))
    assert write_report(fault(), ["plan"]) is None


def test_old_reports_are_removed_but_nothing_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loraloom.studio.crash_report.data_folder", lambda: tmp_path)
    folder = tmp_path / "crash-reports"
    folder.mkdir()
    for number in range(25):
        (folder / f"crash-20200101-0000{number:02d}-1.txt").write_text("old", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    path = write_report(fault(), ["plan"])
    assert path is not None and path.is_file()
    assert len(list(folder.glob("crash-*.txt"))) == 20
    assert (folder / "notes.txt").is_file()
