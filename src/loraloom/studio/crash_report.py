"""A report of a fault that nobody foresaw: the traceback in a file that a person can send, without their secrets."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import loraloom
from loraloom.folders import data_folder

__all__ = ["command_line", "report_text", "without_secrets", "write_report"]

_KEPT = 20
"""Reports; of more than these the oldest are removed."""
_PACKAGES = ("torch", "numpy", "pillow", "pydantic", "rich", "typer", "tokenizers", "tomlkit", "diffusers", "ray")
_HIDDEN = "<hidden>"
_SECRET_NAME = r"[\w.-]*(?:token|secret\w*|passw(?:or)?d\w*|api[-_]?key|credentials?|authorization|notify\.url)"
_SECRETS = (
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)\S+"),
    # name=value and --name value, whatever the value is
    re.compile(rf"(?i)((?:--)?{_SECRET_NAME}['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,;)\]}}]+)"),
    re.compile(rf"(?i)(--{_SECRET_NAME}\s+)\S+"),
    re.compile(r"()\b(?:hf_|sk-|ghp_|glpat-|xox[a-z]-)[\w-]{8,}"),
    # Of an address the scheme and the host: what follows can open a door by itself, as a webhook's does.
    re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s'\"<>]*@"),
    re.compile(rf"(?i)(\bhttps?://(?:{_HIDDEN})?[^\s/'\"<>?#]+)[/?#][^\s'\"<>]*"),
)


def write_report(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write a report on ``error`` to the user's data folder, else to that for temporary files; None where neither goes.

    ``arguments`` are those of the command. Never raises OSError.
    """
    text = report_text(error, arguments)
    name = f"crash-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    for folder in _folders():
        with contextlib.suppress(OSError, ValueError):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            _remove_old(folder)
            return path
    return None


def report_text(error: BaseException, arguments: Sequence[str]) -> str:
    """What the report says: versions, the command, the traceback with what it was caused by."""
    packages = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    facts = {
        "loraloom": loraloom.__version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "packages": packages,
        "command": command_line(arguments),
    }
    head = "".join(f"{name}: {value}\n" for name, value in facts.items())
    lines = "".join(traceback.format_exception(error))
    return without_secrets(f"{head}\n{lines}")


def command_line(arguments: Sequence[str]) -> str:
    """The command as it was typed, without secrets."""
    shown = [f"'{argument}'" if re.search(r"\s", argument) else argument for argument in arguments]
    return without_secrets(" ".join(["loraloom", *shown]))


def without_secrets(text: str) -> str:
    """``text`` without passwords, tokens, what follows the host in addresses, and the name of the home folder."""
    for pattern in _SECRETS:
        text = pattern.sub(lambda match: f"{match[1]}{_HIDDEN}", text)
    with contextlib.suppress(RuntimeError, OSError):
        home = str(Path.home())
        if len(home) > 1:
            text = text.replace(home, "~")
    return text


def _folders() -> Iterator[Path]:
    with contextlib.suppress(RuntimeError):  # nobody knows where home is
        yield data_folder() / "crash-reports"
    with contextlib.suppress(OSError):  # no folder for temporary files can be written
        yield Path(tempfile.gettempdir())


def _remove_old(folder: Path) -> None:
    reports = sorted(folder.glob("crash-*.txt"), key=lambda path: path.name)
    if folder.name == "crash-reports":
        for path in reports[:-_KEPT]:
            path.unlink(missing_ok=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
