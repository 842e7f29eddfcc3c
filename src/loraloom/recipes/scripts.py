"""Command lines and the scripts they stand in: PowerShell with ``$variables`` (the guide's), shell, batch files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.errors import FileFormatError
from loraloom.recipes.names import ACCELERATE, REASONS, SPELLINGS, TRAIN_NETWORK_ARGUMENTS, marked
from loraloom.recipes.recipe import Recipe

__all__ = ["ONLY_IN_SCRIPTS", "Script", "command_arguments", "read_script"]

_ASSIGNED = {
    "powershell": re.compile(r"^\s*\$(?P<name>\w+)\s*(?P<plus>\+?)=\s*(?P<value>.+?)\s*;?\s*$"),
    "batch": re.compile(r"^\s*@?set\s+\"?(?P<plus>)(?P<name>\w+)=(?P<value>[^\"]*)\"?\s*$", re.IGNORECASE),
    "shell": re.compile(r"^\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)(?P<plus>\+?)=(?P<value>.*?)\s*;?\s*$"),
}
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)|%(\w+)%")
_WITH_DEFAULT = re.compile(r"\$\{(\w+):?[-=]([^{}$]*)\}")
_COMPUTED = re.compile(r"\$\(|\$\{(?!\w+\})")
_ALL_OF_A_LIST = re.compile(r"\$(?:\{\w+\[[@*]\]\}|[@*])")
_TRAINS = re.compile(r"[\w-]*(?:train|fine_tune)[\w-]*\.py\b")
_ARITHMETIC = re.compile(r"([\d.eE+-]+)\s*([*/])\s*([\d.eE+-]+)")
_PROGRAM = re.compile(r"\.py\"?$")
ONLY_IN_SCRIPTS = {
    "gpu_training_speed",
    "desired_training_time",
    "is_random_seed",
    "do_not_interrupt",
    "test_run",
    "sd_scripts_dir",
    "use_vae",
    "logging_enabled",
}


_SWITCHED = {"vae_path": "use_vae", "vae": "use_vae", "log_prefix": "logging_enabled", "logging_dir": "logging_enabled"}
"""Variables that count only while another one is not 0."""


@dataclass
class Script:
    """What a script says: ``pairs`` of argument and value, and the arguments that it computes while running."""

    pairs: list[tuple[str, Any]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    """The variable that alone makes an argument, as it is written: ``$ckpt``."""
    computed: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Variables that are no argument's name and stand in no argument."""
    others: list[str] = field(default_factory=list)
    """Command lines of further trainings, which are not part of this one."""
    program: str = ""
    """The Python program that is called: ``train_network.py``."""


@dataclass
class _Lines:
    """What the lines of a script assign and call."""

    language: str
    variables: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    """Variables that hold arguments; what is in them is a command of its own here."""


def read_script(text: str, path: Path, recipe: Recipe) -> Script:
    """Arguments of a script or of a bare command line, with the script's variables put in.

    Raises FileFormatError for a text without arguments and variables.
    """
    language = _language(text)
    lines = _joined(text, language)
    read = _read_lines(lines, language)

    script = Script()
    commands, script.others = _first_training(read.commands)
    script.program = _called(commands) or _called(line for line in lines if not _talks(line))

    used: set[str] = set()
    for command in commands:
        _take_command(command, read, used, script, recipe)
    # Variables are only reported as unused where no command mentions them in any way.
    standing = {name for command in commands for name in re.findall(r"[$%]\{?(\w+)", command)}
    _take_variables(read.variables, used, standing, script)

    if language == "powershell":
        of_variables = {name: f"${name}" for name, _ in script.pairs if name in read.variables}
        script.labels = of_variables | script.labels
    if not script.pairs and not read.variables:
        raise FileFormatError(
            f"{path} holds no arguments", "a command line has --name=value, a script variables or such a line"
        )
    return script


def _read_lines(lines: Iterable[str], language: str) -> _Lines:
    """Variables count as they are first set, and only outside of conditions and loops."""
    read = _Lines(language)

    # Inside of a condition or a loop nobody knows what will be the case, so nothing there is taken as said.
    depth = 0
    for line in lines:
        assigned = _ASSIGNED[language].match(line)
        name, value = (assigned["name"], assigned["value"]) if assigned else ("", line)
        has_arguments = re.search(r"(?:^|[\s\"'`])--\w", value) is not None and not _talks(line)
        if has_arguments and _always_said(line, assigned, depth):
            read.commands.append(_without_quotes(value) if assigned else value)
            read.options += [name] if name else []
        elif assigned and not has_arguments and depth == 0 and name not in read.variables:
            is_known, found = _value(value, read.variables, language)
            if is_known:
                read.variables[name] = found

        depth += _braces(line) if language == "powershell" else 0
    return read


def _take_command(command: str, read: _Lines, used: set[str], script: Script, recipe: Recipe) -> None:
    """The arguments of one command. One that the script computes is named, and its value is not known."""
    command = _without_variables(command, read.options)
    command = _WITH_DEFAULT.sub(lambda match: _or_default(match, read.variables, used), command)
    for name, argument in command_arguments(command, read.language, recipe):
        value, is_computed = _substituted(argument, read.variables, used)
        if is_computed:
            script.computed.append(name)
            continue
        script.pairs.append((name, value))
        if isinstance(argument, str) and _VARIABLE.fullmatch(argument):
            script.labels[name] = argument


def _first_training(commands: list[str]) -> tuple[list[str], list[str]]:
    """The commands that belong to the first training, and those that train again or call another program."""
    first = next((command for command in commands if _TRAINS.search(command)), None)
    if first is None:
        return commands, []
    others = [command for command in commands if command is not first and re.search(r"\.py\b", command)]
    return [command for command in commands if command not in others], others


def _without_variables(command: str, names: list[str]) -> str:
    """A command without ``$NAME`` where that stands for itself between its words."""
    words = "|".join(map(re.escape, names))
    return re.sub(rf'(?<!\S)"?(?:\$\{{?|%)(?:{words})[}}%]?"?(?!\S)', "", command) if names else command


def _or_default(match: re.Match[str], variables: dict[str, Any], used: set[str]) -> str:
    """``${NAME:-value}``: the variable, or the value where it is not set in the script."""
    used.add(match[1])
    return str(variables[match[1]]) if match[1] in variables else match[2]


def _called(lines: Iterable[str]) -> str:
    """The first Python program in some lines, without its folder."""
    found = re.search(r"[\w-]+\.py\b", "\n".join(lines))
    return found.group() if found else ""


def command_arguments(command: str, language: str, recipe: Recipe) -> list[tuple[str, Any]]:
    """``--name=value``, ``--name value ...`` and ``--name`` of one command; what belongs to accelerate is set apart."""
    words = _words(command, language)
    program = next((index for index, word in enumerate(words) if _PROGRAM.search(word)), None)
    first = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
    pairs: list[tuple[str, Any]] = []

    # What stands before the training script belongs to accelerate, which starts it.
    for index in range(first, len(words)):
        word = words[index]
        if not re.match(r"--\w", word):
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        values: list[str] = [value] if equals else []
        for follower in words[index + 1 :]:
            if re.match(r"--\w", follower) or _PROGRAM.search(follower):
                break
            if not _ALL_OF_A_LIST.fullmatch(follower):  # more options, which are read where they are put into the list
                values.append(follower)

        found: Any = True if not values else values[0] if len(values) == 1 else values
        if program is not None and index < program and name != "mixed_precision":
            reason = REASONS.get(name, "an option of accelerate, which is not used")
            recipe.skip(f"--{name}", reason if name in ACCELERATE else "an option of accelerate, which is not used")
        else:
            pairs.append((name, found))
    return pairs


def _language(text: str) -> str:
    if re.search(r"^\s*\$\w+\s*\+?=|`\s*$", text, re.MULTILINE):
        return "powershell"
    if re.search(r"^\s*@?(?:set\s+\"?\w+=|echo\s+off|rem\b|call\s)|\^\s*$", text, re.MULTILINE | re.IGNORECASE):
        return "batch"
    if re.search(r"(?<![\w\\])[A-Za-z]:\\", text) and not re.search(r"\\\s*$", text, re.MULTILINE):
        return "batch"
    return "shell"


def _joined(text: str, language: str) -> list[str]:
    """Lines without comments; a line that goes on in the next one is joined with it."""
    mark = {"powershell": "`", "batch": "^", "shell": "\\"}[language]
    lines: list[str] = []
    open_line = ""
    for raw in text.split("\n"):
        line = _uncommented(raw, language)
        if open_line and not line.strip() and raw.strip():
            continue  # a comment between the parts of one command
        line = open_line + line
        stripped = line.rstrip()
        if stripped.endswith(mark) and not stripped.endswith(mark * 2):
            open_line = stripped[:-1] + " "
            continue
        open_line = ""
        if stripped:
            lines.append(stripped)
    if open_line.strip():
        lines.append(open_line)
    return lines


def _uncommented(line: str, language: str) -> str:
    if language == "batch":
        return "" if re.match(r"\s*(?:@?rem\b|::)", line, re.IGNORECASE) else line

    # A # within quotes is text: colours and prompts have them.
    quote = ""
    for index, character in enumerate(line):
        if quote:
            escaped = language == "powershell" and index and line[index - 1] == "`"
            quote = "" if character == quote and not escaped else quote
        elif character in "\"'":
            quote = "" if language == "powershell" and index and line[index - 1] == "`" else character
        elif character == "#" and (index == 0 or line[index - 1].isspace() or line[index - 1] in ";{}"):
            return line[:index]

    return line


def _talks(line: str) -> bool:
    """Lines that print or ask, or that only handle the arguments."""
    return bool(re.match(r"\s*(?:Write-\w+|echo|printf|Read-Host|pip|python\s+-m\s+pip|git|cd)\b", line, re.IGNORECASE))


def _always_said(line: str, assigned: re.Match[str] | None, depth: int) -> bool:
    """Whether arguments in a line hold in any case; what is added under a condition is known from its variables."""
    if assigned:
        return depth == 0 or not assigned["plus"]
    if re.search(r"\baccelerate\b|\.py\b", line):
        return True
    return depth == 0 and not re.match(r"\s*(?:if|foreach|for|while|function|switch)\b", line, re.IGNORECASE)


def _braces(line: str) -> int:
    bare = re.sub(r'"(?:`.|[^"`])*"|\'[^\']*\'', "", line)
    return bare.count("{") - bare.count("}")


def _without_quotes(value: str) -> str:
    text = value.strip()
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        text = text[1:-1]
    return text.replace('`"', '"')


def _value(text: str, variables: dict[str, Any], language: str) -> tuple[bool, Any]:
    """Whether a value is plain enough to know, and the value: numbers, text, other variables, lists, a/3."""
    text = text.strip()

    # PowerShell writes lists and truth in a way of its own, and anything with a call in it is computed.
    if language == "powershell":
        if re.match(r"@\(", text):
            return True, [part.strip().strip("\"'") for part in text[2:].rstrip(")").split(",") if part.strip()]
        if text.lower() in ("$true", "$false", "$null"):
            return True, {"$true": True, "$false": False, "$null": None}[text.lower()]
        if re.search(r"[\[|]|\.\w+\(|\bGet-", _VARIABLE.sub("", text)) and text[:1] not in "\"'":
            return False, None

    # Single quotes keep everything as it is; double ones let variables in.
    bare = text
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        bare = text[1:-1].replace('`"', '"')
        if text[0] == "'":
            return True, bare
    if language == "shell" and ("$(" in text or "`" in text):
        return False, None

    value, computed = _substituted(bare, variables, set())
    if computed:
        return False, None
    sum_ = _ARITHMETIC.fullmatch(value.strip()) if isinstance(value, str) and text[:1] not in "\"'" else None
    if sum_:
        try:
            left, right = float(sum_[1]), float(sum_[3])
            return True, left * right if sum_[2] == "*" else left / right
        except (ValueError, ZeroDivisionError):
            return False, None
    return True, value


def _substituted(value: Any, variables: dict[str, Any], used: set[str]) -> tuple[Any, bool]:
    """The value with variables put in, and whether one of them is only known while the script runs."""
    if isinstance(value, list):
        parts = [_substituted(part, variables, used) for part in value]
        flat = [item for part, _ in parts for item in (part if isinstance(part, list) else [part])]
        return flat, any(computed for _, computed in parts)
    if not isinstance(value, str):
        return value, False

    if _COMPUTED.search(value):
        used.update(name for match in _VARIABLE.finditer(value) for name in match.groups() if name)
        return value, True
    unknown = False

    def put(match: re.Match[str]) -> str:
        nonlocal unknown
        name = next(group for group in match.groups() if group)
        used.add(name)
        if name not in variables:
            unknown = True
            return match.group()
        return str(variables[name])

    # A value that is one variable keeps its type: a list stays a list, which put into a text it would not.
    whole = _VARIABLE.fullmatch(value)
    if whole:
        name = next(group for group in whole.groups() if group)
        used.add(name)
        return (variables[name], False) if name in variables else (value, True)
    return _VARIABLE.sub(put, value), unknown


def _take_variables(variables: dict[str, Any], used: set[str], standing: set[str], script: Script) -> None:
    """Variables named as arguments are (the guide's script names them so) where no argument said it already.

    ``standing``: those that occur anywhere in the commands, which need no remark.
    """
    known = {*TRAIN_NETWORK_ARGUMENTS, *marked(), *SPELLINGS, *ONLY_IN_SCRIPTS, *REASONS}
    said = {SPELLINGS.get(name, name) for name, _ in script.pairs}
    order = list(variables)
    for name in order:
        if name in used and name not in ONLY_IN_SCRIPTS:
            continue

        # The guide's scripts have switches: a value counts only where its switch is not 0.
        switch = _SWITCHED.get(name)
        if switch is not None and str(variables.get(switch, 1)) == "0":
            script.pairs.append((name, ""))
        elif name in ("is_sd_v2_ckpt", "is_sd_v2_768_ckpt", "shuffle_caption", "debug_dataset"):
            if SPELLINGS.get(name, name) not in said:
                script.pairs.append((name, str(variables[name]).strip() not in ("0", "", "False")))
        elif name in known and SPELLINGS.get(name, name) not in said:
            script.pairs.append((name, variables[name]))
        elif name not in used | standing:
            script.unused.append(name)


def _words(command: str, language: str) -> list[str]:
    if language == "shell":
        try:
            return shlex.split(command)
        except ValueError:
            pass  # quotes that do not pair: read as the other shells do
    words = []
    for match in re.finditer(r'(?:[^\s"\']|"(?:`"|[^"])*"|\'[^\']*\')+', command):
        word = match.group().replace('`"', '"')
        words.append(re.sub(r'"([^"]*)"|\'([^\']*)\'', lambda m: m[1] if m[1] is not None else m[2], word))
    return words
