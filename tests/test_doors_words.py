"""What is to be done is data below the doors: only a door knows what a command or an option is called."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import loraloom
from loraloom.actions import Action, Proposal, Sentence, parts_from_record, parts_to_record
from loraloom.cli.main import app
from loraloom.cli.words import WORDS, worded
from loraloom.errors import LoraloomError, SettingsError, while_handling
from loraloom.events import Notice, RunFailed, from_record, to_record

ROOT = Path(loraloom.__file__).parent
GROUPS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_COMMAND = re.compile(rf"\bloraloom (?:{'|'.join(sorted(GROUPS))})\b|`(?:{'|'.join(sorted(GROUPS))}) ")

PROMPT_OPTIONS = {"--n", "--w", "--h", "--d", "--s", "--l", "--ss"}
NOT_OURS = {
    # What stands behind a prompt in a text file, as sd-scripts reads it: the file's format.
    "training/settings.py": PROMPT_OPTIONS,
    "training/previews.py": PROMPT_OPTIONS,
    "recipes/onetrainer_pictures.py": PROMPT_OPTIONS,
    # Foreign command lines, which are read there.
    "recipes/diffusers_scripts.py": {"--train_text_encoder"},
    "recipes/gui.py": {"--network_args"},
    "recipes/scripts.py": {"--name"},
}
"""Options of other programs, by the file that speaks of them."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every text in a piece of Python, docstrings too, each with its line.

    Adjacent literals are one already; values in an f-string and texts that are added up stand as ``{}``.
    """
    inner: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if id(node) in inner:
            continue
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            text = _text(node)
            if text is not None:
                inner.update(id(child) for child in ast.walk(node))
                yield node.lineno, text


def _text(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or "{}" for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            found = _text(left), _text(right)
            return None if found == (None, None) else (found[0] or "{}") + (found[1] or "{}")
    return None


def doors_words(source: str, not_ours: frozenset[str] | set[str] = frozenset()) -> list[tuple[int, str]]:
    """Commands and options that texts in a piece of Python name."""
    return [
        (line, found)
        for line, text in texts(source)
        for found in [*_COMMAND.findall(text), *(set(_OPTION.findall(text)) - not_ours)]
    ]


def _below_the_doors() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in ("cli", "web"))


@pytest.mark.parametrize(
    "source",
    [
        "hint = '`loraloom runs` lists them'",
        "hint = 'see `loraloom ' 'runs`'",
        "hint = 'see `loraloom ' + 'runs`'",
        "hint = f'{x}; or use --force'",
        "hint = f'{x} loraloom train --branch {y}'",
        "hint = 'after `convert --to diffusers`'",
        "def f():\n    'What ``loraloom generate`` does.'",
        "hint = '--run ' + name",
        "command = ['--output', name]",
    ],
)
def test_the_guard_finds_them(source: str) -> None:
    assert doors_words(source)


@pytest.mark.parametrize(
    "source",
    ["a = 'loraloom' + x + 'run'", "a = 'x -- y'", "a = f'{a}--{b}'", "a = 'a---b'", "x = 'torch.optim'", "# --force"],
)
def test_the_guard_lets_other_text_be(source: str) -> None:
    assert not doors_words(source)


@pytest.mark.parametrize("path", _below_the_doors(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_words_of_a_door_below_the_doors(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = doors_words(path.read_text(encoding="utf-8"), NOT_OURS.get(name, set()))
    assert not found, f"{name} speaks a door's words: propose an Action (loraloom/actions.py) instead"


def test_the_terminal_has_words_for_every_action() -> None:
    assert set(WORDS) == set(Action)


def _wordings() -> Iterator[tuple[Action, str]]:
    for action in Action:
        yield action, Proposal(action).worded(WORDS)


FOREIGN = {
    Action.LAUNCH_TOGETHER: "torchrun",
    Action.COUNT_PROCESSES: "torchrun",
    Action.MEETING_PLACE: "torchrun",
    Action.START_CLUSTER: "ray",
}
"""Whose options these are, if not ours."""


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def all_commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, those in groups as "dataset check"."""
    for name, command in (GROUPS if group is None else group.commands).items():
        if hasattr(command, "commands"):
            yield from all_commands(command, f"{before}{name} ")
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield f"{before}{name}", command


def faults(words: str) -> list[str]:
    """What in a terminal's words for an action is no command or option of this program."""
    known = dict(all_commands())
    named = re.findall(r"loraloom ((?:dataset |library |jobs )?[a-z-]+)", words)
    wrong = [name for name in named if name not in known]
    for option in _OPTION.findall(words):
        # Where a command is named the option must be that one's; else any command's, or one of all commands.
        among = [known[name] for name in named if name in known] or [*known.values(), typer.main.get_command(app)]
        if not any(option in options_of(command) for command in among):
            wrong.append(option)
    return wrong


@pytest.mark.parametrize(("action", "words"), list(_wordings()), ids=lambda value: getattr(value, "name", ""))
def test_the_terminals_words_name_what_exists(action: Action, words: str) -> None:
    assert words
    assert action in FOREIGN or not faults(words)


@pytest.mark.parametrize(
    "words",
    [
        "`loraloom walks`",
        "`loraloom runs --sideways`",
        "use --sideways",
        "loraloom library look",
        "`loraloom runs --hash`",
    ],
)
def test_words_that_name_nothing_are_found(words: str) -> None:
    assert faults(words)


def test_every_action_is_proposed_somewhere() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in _below_the_doors() if path.name != "actions.py")
    assert [action.name for action in Action if not re.search(rf"\bAction\.{action.name}\b", text)] == []


def test_a_sentence_is_neutral_text_that_a_door_words() -> None:
    hint = Sentence("merge them, then ", Action.EXTRACT_LORA, " a LoRA")
    assert hint == "merge them, then extract a LoRA" and f"({hint})" == "(merge them, then extract a LoRA)"
    assert worded(hint) == "merge them, then `loraloom extract` a LoRA" and worded("plain --text") == "plain --text"
    assert hint.actions == (Proposal(Action.EXTRACT_LORA),)
    both = Sentence("first ", hint, "; or ", Action.BRANCH_RUN.of(run="runs/{a} b@3"))
    assert worded(both) == (
        "first merge them, then `loraloom extract` a LoRA; or `loraloom train --branch runs/{a} b@3`"
    )
    assert worded(Sentence(Action.BRANCH_RUN)) == "`loraloom train --branch RUN`"
    assert pickle.loads(pickle.dumps(both)).parts == both.parts


def test_an_error_keeps_what_it_proposes() -> None:
    hint = Sentence("see\n", Action.BRANCH_RUN.of(run="a\x1b[2J"))
    error = LoraloomError("it stopped", hint)
    assert error.hint == r"see\na branch of the run"
    assert worded(error.hint) == r"see\n`loraloom train --branch a\x1b[2J`"
    assert str(error) == r"it stopped (see\na branch of the run)"
    first = ValueError("first")
    with while_handling(first, "saving"):
        raise error
    assert worded(first.__notes__[0]) == r"saving: it stopped (see\n`loraloom train --branch a\x1b[2J`)"


def test_mistakes_in_settings_keep_what_they_propose() -> None:
    error = SettingsError(["a\nb", Sentence(Action.CUT_RANK, " is too much")], Sentence(Action.CHOOSE_PLACE))
    assert error.problems == (r"a\nb", "a rank is too much")
    assert error.problem == "a\\nb\na rank is too much"
    assert worded(error.problem) == "a\\nb\n--rank is too much"
    assert worded(error.hint) == "give either -o OUT.safetensors or --in-place"


def test_events_carry_actions_through_json() -> None:
    text = Sentence("too large: ", Action.PLAN_MEMORY, " helps; or ", Action.BRANCH_RUN.of(run="runs/a@3"))
    for event in (Notice(text, "warning"), RunFailed(3, "it stopped", text)):
        record = json.loads(json.dumps(to_record(event)))
        assert (record.get("hint") or record["text"]) == str(text)
        again = from_record(record)
        assert again == event and to_record(again) == to_record(event)
        assert worded(getattr(again, "hint", "") or getattr(again, "text", "")) == worded(text)
    # What is plain stays as it was, and old logs read.
    assert to_record(Notice("plain")) == {"event": "Notice", "text": "plain", "level": "info"}
    assert to_record(Notice(Sentence("plain"))) == to_record(Notice("plain"))
    assert from_record({"event": "Notice", "text": "plain"}) == Notice("plain")
    # A newer log proposes what is not known here.
    newer = {"event": "Notice", "text": "stand up", "proposed": {"text": [{"action": "stand"}, " up"]}}
    assert from_record(newer) == Notice("stand up")
    assert parts_from_record(parts_to_record(text)).parts == text.parts
