"""Settings as a form: what a page shows of them, and what it says while they are filled in. No torch here.

A form is made from the settings classes, so a new setting is in it by being written. What is filled in is checked by
the code that checks a run: the same problems, the same remarks about settings without effect, the same file.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from loraloom.actions import Action, Sentence
from loraloom.errors import SettingsError, UnknownNameError
from loraloom.recipes.dreambooth import CONFIG_NAMES
from loraloom.recipes.gui import GUI_NAMES
from loraloom.recipes.names import SPELLINGS, marked
from loraloom.setting_rows import Bounds, Entering, SettingRow, class_of, setting_rows, title_of
from loraloom.settings import SettingProblem, Settings, find_problems, read_value
from loraloom.studio.results import to_record
from loraloom.training.idle_choices import known_from_settings
from loraloom.training.settings import TrainSettings

__all__ = [
    "Choice",
    "Form",
    "FormCheck",
    "FormField",
    "FormGroup",
    "check_form",
    "data_of",
    "form_of",
    "overrides_of",
    "search",
    "typed",
    "values_of",
]

Shell = Literal["posix", "powershell"]
COMMAND = ("loraloom", "train")
"""What the settings follow on a command line."""


# -- the form --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A name that a value may have, and a line about it, which may be empty."""

    name: str
    summary: str


@dataclass(frozen=True)
class FormField:
    """One setting. ``default`` is plain data; ``columns`` are the fields of each entry of a list of tables."""

    name: str
    title: str
    help: str
    group: str
    type: Entering
    values: str
    """What it may be, in words: ``whole number, 1 to 12``."""
    required: bool
    may_be_unset: bool
    default: Any
    bounds: Bounds
    unit: str
    choices: tuple[Choice, ...]
    is_closed: bool
    """Whether only the choices are accepted; else they are offers."""
    kohya: tuple[str, ...]
    """What sd-scripts and the guide's script call it."""
    others: tuple[str, ...]
    """What other programs call it: kohya_ss, sd_dreambooth_extension, old spellings."""
    expert: bool
    columns: tuple[FormField, ...] = ()
    is_column: bool = False
    """Whether it is a field of the entries of the list ``group``."""


@dataclass(frozen=True)
class FormGroup:
    """Settings that belong together. ``name`` is dotted, and empty for those of the whole run."""

    name: str
    title: str
    help: str
    fields: tuple[FormField, ...]


@dataclass(frozen=True)
class Form:
    """All settings of a class in their groups, in the order of definition."""

    groups: tuple[FormGroup, ...]

    @property
    def fields(self) -> tuple[FormField, ...]:
        """Every field of every group."""
        return tuple(field for group in self.groups for field in group.fields)

    def field(self, name: str) -> FormField:
        """The field of a setting. Raises UnknownNameError."""
        fields = {field.name: field for field in self.fields}
        if name not in fields:
            raise UnknownNameError("setting", name, fields)
        return fields[name]


@cache
def form_of(cls: type[Settings]) -> Form:
    """The form of a settings class."""
    fields = _fields(list(setting_rows(cls)))
    groups = []
    for name, about in {"": (cls.__doc__ or "").strip(), **_groups(cls)}.items():
        inside = tuple(field for field in fields if field.group == name)
        if inside:
            groups.append(FormGroup(name, title_of(name or "run"), about, inside))
    return Form(tuple(groups))


def _groups(cls: type[Any], prefix: str = "") -> dict[str, str]:
    """Every group of settings by its path, with its help."""
    found: dict[str, str] = {}
    for name, info in cls.model_fields.items():
        inner = class_of(info)
        if inner is not None:
            found[f"{prefix}{name}"] = " ".join((info.description or "").split())
            found |= _groups(inner, f"{prefix}{name}.")
    return found


def _fields(rows: Sequence[SettingRow]) -> list[FormField]:
    """A field for each row; those of a list's entries become its columns."""
    others = _other_names()
    found: list[FormField] = []
    for row in rows:
        if "[]" in row.path:
            continue
        inner = [inner for inner in rows if inner.path.startswith(f"{row.path}[].")]
        columns = tuple(_field(one, row.path, one.path.removeprefix(f"{row.path}[]."), is_column=True) for one in inner)
        group = row.path.rpartition(".")[0]
        found.append(_field(row, group, row.path, others=others.get(row.path, ()), columns=columns))
    return found


def _field(
    row: SettingRow,
    group: str,
    name: str,
    *,
    others: tuple[str, ...] = (),
    columns: tuple[FormField, ...] = (),
    is_column: bool = False,
) -> FormField:
    return FormField(
        name=name,
        title=row.title,
        help=row.doc,
        group=group,
        type=row.form,
        values=row.values,
        required=row.required,
        may_be_unset=row.may_be_unset,
        default=to_record(row.default),
        bounds=row.bounds,
        unit=row.unit,
        choices=tuple(Choice(name, summary) for name, summary in row.choices.items()),
        is_closed=row.is_closed,
        kohya=row.kohya,
        others=others,
        expert=row.is_for_experts,
        columns=columns,
        is_column=is_column,
    )


@cache
def _other_names() -> Mapping[str, tuple[str, ...]]:
    """What other programs call the settings of a run, by the tables that read their recipes."""
    found: dict[str, tuple[str, ...]] = {}
    for table in (SPELLINGS, GUI_NAMES, CONFIG_NAMES):
        for name, kohya in table.items():
            path = marked().get(kohya)
            if path is not None and name != kohya:
                found[path] = (*found.get(path, ()), name)
    return found


def search(form: Form, words: str) -> list[FormField]:
    """The fields that hold all of the words in their name, their title, what others call them, or their help.

    Those whose name is searched for come first, then those whose name holds the words, then the others.
    """
    asked = words.lower().split()
    found = [(_rank(field, asked), field) for field in form.fields]
    return [field for rank, field in sorted(found, key=lambda pair: pair[0]) if rank < _NOWHERE]


_NOWHERE = 4


def _rank(field: FormField, asked: Sequence[str]) -> int:
    leaf = field.name.rpartition(".")[2]
    names = [field.name, leaf, field.title, *field.kohya, *field.others]
    names = [name.lower() for name in names]
    inner = " ".join(f"{column.name} {column.title} {column.help}" for column in field.columns)
    text = " ".join((*names, field.help, inner, *(choice.name for choice in field.choices))).lower()
    whole = " ".join(asked)

    # "learning rate" is how people ask for learning_rate.
    if whole in names or whole.replace(" ", "_") in names:
        return 0
    if all(any(word in name for name in names) for word in asked):
        return 1
    return 2 if all(word in text for word in asked) else _NOWHERE


# -- what is filled in -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FormCheck:
    """What there is to say of a form as it is filled in.

    ``problems`` and ``without_effect`` are by field: ``optimizer.lr``, ``dataset.concepts.1.repeats``, a group, or
    empty for what concerns no field alone. While there are problems, ``toml`` and the command are empty.
    """

    problems: Mapping[str, tuple[str, ...]]
    without_effect: Mapping[str, tuple[str, ...]]
    """Settings that change nothing, and what else there is to know of a combination."""
    differs: Mapping[str, Any]
    """The settings that differ from their defaults, each with its default."""
    toml: str
    """The settings file, as it is in a run folder."""
    overrides: tuple[str, ...]
    """What differs and what is required, each as ``key=value``."""
    command: str
    """The command line that does the same, quoted for the shell of this system."""
    settings: TrainSettings | None = field(default=None, repr=False)

    def finished(self) -> TrainSettings:
        """The settings. Raises SettingsError with all problems while there are any."""
        if self.settings is None:
            problems = [f"{name}: {text}" if name else text for name, texts in self.problems.items() for text in texts]
            raise SettingsError(problems, Sentence(Action.LIST_SETTINGS, " lists every setting with its meaning"))
        return self.settings


def check_form(values: Mapping[str, Any], *, shell: Shell | None = None) -> FormCheck:
    """Check what is filled in: dotted names (or groups) and their values, as JSON has them.

    Text for a setting that is no text is read as on the command line; None leaves a setting at its default, and so does
    empty text where something else is meant. Only what the settings say is judged: whether the files exist, and what
    the pictures make of the settings, a plan says.
    """
    problems, rest = _problems(values)
    settings: TrainSettings | None = None
    if not problems:
        settings = TrainSettings.model_validate(rest)
    judged = settings or _judged(rest)
    overrides = tuple(overrides_of(settings)) if settings is not None else ()
    return FormCheck(
        problems=_by_field((name, problem.message) for problem in problems for name in _fields_of(problem)),
        without_effect=_without_effect(judged),
        differs=_differing(judged),
        toml="" if settings is None else settings.to_toml(),
        overrides=overrides,
        command="" if settings is None else typed((*COMMAND, *overrides), shell),
        settings=settings,
    )


def _problems(values: Mapping[str, Any]) -> tuple[list[SettingProblem], dict[str, Any]]:
    try:
        # A group that nobody filled in lacks its required fields, each of which is to be named.
        data = {group: {} for group in _groups(TrainSettings) if "." not in group} | data_of(values)
    except SettingsError as error:
        return [SettingProblem("", text, text) for text in error.problems], {}
    return find_problems(TrainSettings, data)


def _judged(rest: Mapping[str, Any]) -> TrainSettings | None:
    """The settings without the wrong ones; None where even those do not fit together."""
    problems, _ = find_problems(TrainSettings, rest)
    return None if problems else TrainSettings.model_validate(dict(rest))


def _without_effect(settings: TrainSettings | None) -> dict[str, tuple[str, ...]]:
    if settings is None:
        return {}
    said = known_from_settings(settings)
    return _by_field((path, remark.text) for remark in said for path in remark.paths or ("",))


def _by_field(found: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    by_field: dict[str, list[str]] = {}
    for name, text in found:
        by_field.setdefault(name, []).append(text)
    return {name: tuple(dict.fromkeys(texts)) for name, texts in by_field.items()}


def _fields_of(problem: SettingProblem) -> tuple[str, ...]:
    """The fields that a problem is about: where settings contradict one another, those that its text names."""
    if problem.path and problem.path not in _groups(TrainSettings):
        return (problem.path,)
    words = set(re.findall(r"[\w.]+", problem.message))
    words |= {word.rstrip(".") for word in words}
    inside = f"{problem.path}." if problem.path else ""
    named = [name for name in _rows() if name in words or (inside and name.removeprefix(inside) in words)]
    return tuple(named) or (problem.path,)


@cache
def _rows() -> Mapping[str, SettingRow]:
    """Every setting of a run that is in the form itself, not in an entry of a list."""
    return {row.path: row for row in setting_rows(TrainSettings) if "[]" not in row.path}


@cache
def _columns(name: str) -> Mapping[str, FormField]:
    """The fields of the entries of a list of tables, by name."""
    return {column.name: column for column in form_of(TrainSettings).field(name).columns}


def data_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What is filled in as nested data, ready to be validated. Raises SettingsError for what cannot be nested."""
    data: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        row = _rows().get(path)

        # A page posts dotted names, a settings file groups: both are the same form.
        if row is None and isinstance(value, Mapping):
            _put(data, name, data_of(value, f"{path}."))
        elif row is not None and row.form == "tables" and isinstance(value, list | tuple):
            _put(data, name, [_entry(path, entry) for entry in value])
        else:
            read = value if row is None else _value(value, path, row.form, unset=row.may_be_unset or row.required)
            if read is not None:
                _put(data, name, read)
    return data


def _entry(path: str, entry: Any) -> Any:
    """An entry of a list of tables."""
    if not isinstance(entry, Mapping):
        return entry
    columns = _columns(path)
    read = {
        str(name): _value(value, f"{path}.{name}", column.type, unset=column.may_be_unset or column.required)
        if (column := columns.get(str(name)))
        else value
        for name, value in entry.items()
    }
    return {name: value for name, value in read.items() if value is not None}


def _value(value: Any, path: str, form: Entering, *, unset: bool) -> Any:
    """A value as it is filled in; None for one that is left unset."""
    if not isinstance(value, str):
        return value
    if not value.strip() and (unset or form not in ("text", "choice", "path")):
        return None
    return value if form in ("text", "choice", "path") else read_value(value, path)


def _put(data: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested data. Raises SettingsError where a value stands in the place of a group."""
    *groups, leaf = name.split(".")
    for group in groups:
        data = data.setdefault(group, {})
        if not isinstance(data, dict):
            raise SettingsError([f"{name!r}: {group!r} is not a group of settings"])
    inner = data.get(leaf)
    data[leaf] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value


# -- settings as what is filled in, as a command, as differences -----------------------------------------------------


def values_of(settings: TrainSettings) -> dict[str, Any]:
    """Settings as a form holds them: every name with its value as plain data."""
    return {name: to_record(_get(settings, name)) for name in _rows()}


def overrides_of(settings: TrainSettings) -> list[str]:
    """The settings that differ from their defaults, and the required ones, as ``key=value``."""
    return [
        _override(name, _get(settings, name))
        for name, row in _rows().items()
        if row.required or _get(settings, name) != row.default
    ]


def _differing(settings: TrainSettings | None) -> dict[str, Any]:
    if settings is None:
        return {}
    changed = (name for name, row in _rows().items() if not row.required and _get(settings, name) != row.default)
    return {name: to_record(_rows()[name].default) for name in changed}


def _get(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def _override(name: str, value: Any) -> str:
    """``key=value``, without quotes where it is read back as it is."""
    text = str(value) if isinstance(value, str | Path) else None
    if text is not None and text == text.strip() and text and read_value(text, name) == text:
        return f"{name}={text}"
    return f"{name}={_toml(value)}"


def _toml(value: Any) -> str:
    """A value as TOML on one line, with single quotes where they will do: shells leave those alone."""
    # Truth is a number to Python, so it is asked for before them.
    if isinstance(value, bool):
        return str(value).lower()

    if isinstance(value, str | Path):
        text = str(value)
        return f"'{text}'" if "'" not in text and text.isprintable() else _escaped(text)
    if isinstance(value, Settings):
        value = {name: getattr(value, name) for name in value.chosen()}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)}={_toml(item)}" for name, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _escaped(name)


def _escaped(text: str) -> str:
    """A basic string of TOML."""
    named = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    plain = (named.get(letter) or (letter if letter.isprintable() else f"\\U{ord(letter):08x}") for letter in text)
    return f'"{"".join(plain)}"'


def typed(words: Iterable[str], shell: Shell | None = None) -> str:
    """Words as one command line. ``shell`` left out: PowerShell on Windows, a POSIX shell elsewhere."""
    if shell is None:
        shell = "powershell" if os.name == "nt" else "posix"
    return " ".join(_posix(word) if shell == "posix" else _powershell(word) for word in words)


def _posix(word: str) -> str:
    """A word as a POSIX shell reads it, in double quotes where it has single ones and nothing that they let through."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def _powershell(word: str) -> str:
    """A word in PowerShell's single quotes, inside which only these quotes mean something."""
    if re.fullmatch(r"[\w./:=+\\-]+", word):
        return word
    doubled = word.replace("'", "''").replace('"', '\\"')
    return f"'{doubled}'"
