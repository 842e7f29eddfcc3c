"""The door itself: help, version, errors without a traceback, and a start in well under a second."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

import loraloom
from loraloom.cli.main import app
from loraloom.errors import LoraloomError

COMMANDS = ("demo", "dataset", "train", "generate", "merge", "inspect", "settings")


def test_help_lists_every_command(command: Callable[..., Any]) -> None:
    for option in ("--help", "-h"):
        outcome = command(option)
        assert outcome.code == 0
        assert all(name in outcome.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, command: Callable[..., Any]) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_version(command: Callable[..., Any]) -> None:
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"loraloom {loraloom.__version__}\n")
    assert version("loraloom") == loraloom.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["train", "--rank=4"],
        ["merge"],
        ["merge", "a", "b"],
        ["inspect"],
        ["merge", "a", "b", "-o", "c", "--precision", "fp8"],
    ],
)
def test_wrong_usage_ends_with_two(arguments: list[str], command: Callable[..., Any]) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2
    assert "Usage" in outcome.err
    assert "Traceback" not in outcome.err


def test_debug_shows_where_an_error_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraloom.cli.main import main

    for arguments in (["--debug", "inspect", "absent"], ["inspect", "absent", "--debug"]):
        monkeypatch.setattr("sys.argv", ["loraloom", *arguments])
        with pytest.raises(LoraloomError, match="absent"):
            main()


def test_markup_in_a_message_is_printed_as_it_is(command: Callable[..., Any]) -> None:
    outcome = command("inspect", "[bold]no[/bold].ckpt")
    assert outcome.code == 1
    assert "[bold]no[/bold].ckpt" in outcome.err


def test_interrupted(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loraloom.studio.weights.inspect_file", interrupt)
    outcome = command("inspect", "x")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_the_installed_command() -> None:
    """A real process: the module runs, prints nothing to the wrong stream, and imports nothing heavy for its help."""
    code = (
        "import sys; from loraloom.cli.main import main; sys.argv = ['loraloom', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    result = subprocess.run([sys.executable, "-m", "loraloom", "inspect", "absent"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[0].startswith("error: absent")


@pytest.mark.parametrize("name", ["typer", "torch"])
def test_modules_of_the_present_folder_are_not_run(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the present folder was run')")
    command = [sys.executable, "-m", "loraloom", "inspect", "absent"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "absent" in result.stderr and "was run" not in result.stderr


def test_help_shows_every_square_bracket() -> None:
    """A bracket in a help text that looks like markup would vanish; a backslash in front keeps it."""
    checked = 0
    for name, text in _help_texts(typer.main.get_command(app)):
        plain = Text.from_markup(text).plain
        assert plain == text.replace("\\[", "["), name
        checked += "[" in plain
    assert checked > 2


def _help_texts(command: Any) -> Iterator[tuple[str, str]]:
    for param in command.params:
        yield f"{command.name} {param.name}", getattr(param, "help", None) or ""
    for each in getattr(command, "commands", {}).values():
        yield each.name, each.help or ""
        yield from _help_texts(each)
