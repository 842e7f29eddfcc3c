"""One definition of a setting gives validation, TOML with comments, ``key=value``, documentation and kohya's name.

A setting is one annotated line and the docstring under it, in a subclass of :class:`Settings`::

    class LoraSettings(Settings):
        rank: Annotated[int, Kohya("network_dim"), Field(ge=1)] = 16
        \"\"\"Rank of the two factors.\"\"\"
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from loraloom.actions import Action, Sentence
from loraloom.errors import FileFormatError, SettingsError, nearest
from loraloom.plain_data import LARGEST_WHOLE, parse_toml, shown, too_large
from loraloom.reading import read_text
from loraloom.setting_marks import MayChange
from loraloom.setting_rows import SettingRow, class_of, entries_of, kinds_in_words, setting_rows

__all__ = [
    "SettingProblem",
    "SettingRow",
    "Settings",
    "apply_overrides",
    "changeable_settings",
    "find_problems",
    "number_not_truth",
    "read_toml",
    "read_value",
    "setting_rows",
]

MAX_TOML_BYTES = 4 * 2**20


@dataclass(frozen=True)
class SettingProblem:
    """One thing that is wrong with settings."""

    path: str
    """The setting, or the group whose settings contradict one another; empty where it is all of them."""
    message: str
    """What is wrong, without the name in front."""
    text: str
    """The same with the name and the value."""


def number_not_truth(kind: str, value: Any) -> Any:
    """The value; ValueError for true or false where ``kind`` (see :class:`SettingRow`) is a number.

    Python counts them as 1 and 0, and nobody means a rank of true.
    """
    if isinstance(value, bool) and "number" in kind and "true | false" not in kind:
        raise ValueError("a number is needed, not true or false (an option without its value counts as true)")
    return value


class Settings(BaseModel):
    """Base of every settings class: frozen, no unknown keys, defaults validated, docstrings are the help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return number_not_truth(kinds_in_words(cls.model_fields[str(info.field_name)].annotation), value)

    @field_validator("*")
    @classmethod
    def _within_64_bits(cls, value: Any) -> Any:
        if too_large(value):
            raise ValueError(f"whole numbers go up to {LARGEST_WHOLE}")
        return value

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str = "settings") -> Self:
        """Validate ``data``; raises one SettingsError that lists every problem found."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise SettingsError(
                [f"{source}: {problem.text}" for problem in _all_problems(cls, data, error)[0]],
                Sentence(Action.LIST_SETTINGS, " lists every setting with its meaning"),
            ) from error

    @classmethod
    def load(cls, path: Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a TOML file (relative paths in it are relative to it), apply ``key=value`` overrides, validate."""
        data = read_toml(path) if path is not None else {}
        if path is not None:
            _anchor_paths(cls, data, path.parent)
        return cls.parse(apply_overrides(data, overrides), source=str(path) if path else "the command line")

    def chosen(self) -> list[str]:
        """The names of the settings that differ from their defaults, and of those that have none.

        Whether a default was written down makes no difference: a form that posts every value says what one says that
        posts nothing.
        """
        return [
            name
            for name, field in type(self).model_fields.items()
            if field.is_required() or getattr(self, name) != field.get_default(call_default_factory=True)
        ]

    @classmethod
    def template(cls) -> str:
        """A TOML file with every setting, its meaning and its default; required ones wait to be filled in."""
        document = tomlkit.document()
        _fill_template(document, cls)
        return tomlkit.dumps(document)

    def to_toml(self, *, comments: bool = True) -> str:
        """The settings as TOML, each with its docstring as a comment. Settings that are None are commented out."""
        document = tomlkit.document()
        _fill_toml(document, self, comments=comments)
        return tomlkit.dumps(document)


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file as plain data."""
    return parse_toml(read_text(path, limit=MAX_TOML_BYTES), str(path))


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``data`` with dotted ``key=value`` overrides. Values are TOML where they parse as TOML, else text.

    Raises SettingsError for text that is no such override.
    """
    result = _copy(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise SettingsError([f"{override!r} is not key=value"], "for example adapter.rank=64")
        target = result
        *parents, leaf = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise SettingsError([f"{key!r}: {parent!r} is not a group of settings"])
        target[leaf] = read_value(text, key)
    return result


def changeable_settings(cls: type[Settings], prefix: str = "") -> dict[str, MayChange]:
    """The settings under ``cls`` that a run may go on with in another value, by path; ``saving.`` is a whole group."""
    found: dict[str, MayChange] = {}
    for name, field in cls.model_fields.items():
        group = _group(field)
        mark = next((mark for mark in field.metadata if isinstance(mark, MayChange)), None)
        if mark is not None:
            found[f"{prefix}{name}." if group is not None else f"{prefix}{name}"] = mark
        elif group is not None:
            found |= changeable_settings(group, f"{prefix}{name}.")
    return found


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def read_value(text: str, key: str) -> Any:
    """A value of the command line: TOML where it is TOML, else text. SettingsError for a number beyond all limits."""
    try:
        data = parse_toml(f"value = {text}", key)
    except FileFormatError as error:
        if isinstance(error.__cause__, Exception):  # the text is not TOML
            return text
        raise SettingsError([error.problem.replace(": value is ", " = ")], error.hint) from error
    # Anything behind a line end would be another setting.
    return data["value"] if len(data) == 1 else text


def _group(field: FieldInfo) -> type[Settings] | None:
    return cast("type[Settings] | None", class_of(field))


def _table(field: FieldInfo) -> type[Settings] | None:
    return cast("type[Settings] | None", entries_of(field))


def find_problems(cls: type[Settings], data: Mapping[str, Any]) -> tuple[list[SettingProblem], dict[str, Any]]:
    """Everything that is wrong with ``data``, and ``data`` without the values that are.

    What is required and missing stands in the second as ``.``.
    """
    try:
        cls.model_validate(deepcopy(dict(data)))
    except ValidationError as error:
        return _all_problems(cls, data, error)
    return [], dict(data)


def _all_problems(
    cls: type[Settings], data: Mapping[str, Any], error: ValidationError
) -> tuple[list[SettingProblem], dict[str, Any]]:
    """Everything that is wrong with ``data``, beginning with ``error``, and the rest of it.

    Where one value is wrong, pydantic leaves out the checks of settings with one another. So the wrong ones are taken
    out and the rest is validated again, until nothing new is found; what is said then about a value that was taken out
    is nothing new.
    """
    problems: list[SettingProblem] = []
    wrong: list[tuple[int | str, ...]] = []
    names: set[str] = set()
    rest = deepcopy(dict(data))
    while True:
        items: list[dict[str, Any]] = [dict(item) for item in error.errors()]
        fresh = [item for item in items if not any(item["loc"][: len(path)] == path for path in wrong)]
        places = [_place(item) for item in fresh]
        for index, item in enumerate(fresh):
            if item["loc"] and places[index] in places[:index]:
                continue  # another type that it is not either
            if not wrong or not (item["type"] == "missing" or names.intersection(re.findall(r"\w+", item["msg"]))):
                problems.append(_problem(cls, item))
        if not fresh or any(not item["loc"] for item in items):  # nothing new, or the checks of the whole were reached
            return problems, rest

        names.update([_take_out(cls, rest, item) for item in fresh])
        wrong += [item["loc"] for item in fresh]
        try:
            cls.model_validate(deepcopy(rest))
        except ValidationError as further:
            error = further
        else:
            return problems, rest


def _take_out(cls: type[Settings], data: dict[str, Any], item: dict[str, Any]) -> str:
    """Remove a wrong value from the innermost table that holds it, or fill in one that is missing. Returns its key."""
    key: Any = item["loc"][0]
    table, value = data, cast("Any", data)
    for part in item["loc"]:
        if isinstance(value, dict):
            table, key, value = value, part, value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            break
    if item["type"] == "missing":
        is_group = key in cls.model_fields and _group(cls.model_fields[key]) is not None
        table[key] = {} if is_group else "."
    else:
        table.pop(key, None)
    return str(key)


def _place(item: dict[str, Any]) -> str:
    """The path of a wrong value. Where a setting may be of several types, pydantic adds the type it tried."""
    tried = re.compile(r"[a-z-]+\[.*\]|constrained-\w+|int|float|str|bool")
    return ".".join(str(part) for part in item["loc"] if not tried.fullmatch(str(part)))


def _problem(cls: type[Settings], item: dict[str, Any]) -> SettingProblem:
    path = _place(item)
    if item["type"] == "extra_forbidden":
        return SettingProblem(path, *_unknown(cls, path))
    if item["type"] == "missing":
        return SettingProblem(path, "is required", f"{path!r} is required")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("tuple_type", "list_type"):
        message = 'a list is needed, such as ["a", "b"] or [1, 2]'
    if not path:
        return SettingProblem(path, message, message)
    if isinstance(item["input"], (Mapping, Settings)) and item["type"] == "value_error":
        return SettingProblem(path, message, f"{path}: {message}")  # settings that do not go together
    return SettingProblem(path, message, f"{path!r} = {shown(item['input'])}: {message}")


def _unknown(cls: type[Settings], path: str) -> tuple[str, str]:
    """What is said of a setting that there is not: behind its name, and with it."""
    rows = list(setting_rows(cls))
    leaf = path.rpartition(".")[2]
    for row in rows:
        if leaf in row.kohya:
            text = f"is called {row.path!r} here"
            return text, f"{path!r} {text}"
    close = nearest(path, [row.path for row in rows]) or [
        row.path for row in rows if nearest(leaf, [row.path.rpartition(".")[2]])
    ]
    suggestion = f", did you mean {close[0]!r}?" if close else ""
    return f"is no setting{suggestion}", f"unknown setting {path!r}{suggestion}"


def _anchor_paths(cls: type[Settings], data: dict[str, Any], folder: Path) -> None:
    for name, field in cls.model_fields.items():
        group, value = _group(field), data.get(name)
        table = _table(field)
        if group is not None and isinstance(value, dict):
            _anchor_paths(group, value, folder)
        elif table is not None and isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    _anchor_paths(table, item, folder)
        elif isinstance(value, str) and _holds_path(field.annotation):
            data[name] = str(folder / Path(value).expanduser())


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(_holds_path(arg) for arg in get_args(annotation))


def _fill_toml(container: Any, settings: Settings, *, comments: bool) -> None:
    # TOML's plain values come before its tables, or they would belong to the last table.
    groups, tables = [], []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            groups.append((name, field, value))
            continue
        if _table(field) is not None and value:
            tables.append((name, value))

            continue
        if comments and field.description:
            container.add(tomlkit.comment(" ".join(field.description.split())))
        if value is None:
            container.add(tomlkit.comment(f"{name} = (not set)"))
        else:
            container.add(name, _toml_value(value))
        if comments:
            container.add(tomlkit.nl())

    for name, field, value in groups:
        table = tomlkit.table()
        if comments and field.description:
            table.add(tomlkit.comment(" ".join(field.description.split())))
        _fill_toml(table, value, comments=comments)
        container.add(name, table)

    for name, entries in tables:
        array = tomlkit.aot()
        for entry in entries:
            array.append(tomlkit.item(_toml_value(entry)))
        container.add(name, array)


def _fill_template(container: Any, cls: type[Settings]) -> None:
    groups = []
    for name, field in cls.model_fields.items():
        group = _group(field)
        if group is not None:
            groups.append((name, field, group))
            continue
        container.add(tomlkit.comment(" ".join((field.description or "").split())))
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if field.is_required():
            container.add(tomlkit.comment("required"))
            container.add(name, "")
        elif default is None:
            container.add(tomlkit.comment(f"{name} = (not set)"))
        else:
            container.add(name, _toml_value(default))
        container.add(tomlkit.nl())
    for name, field, group in groups:
        table = tomlkit.table()
        table.add(tomlkit.comment(" ".join((field.description or "").split())))
        _fill_template(table, group)
        container.add(name, table)


def _toml_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_toml_value(item) for item in value]
    if isinstance(value, Settings):  # an entry of a list of tables
        return {key: _toml_value(getattr(value, key)) for key in value.chosen()}
    if isinstance(value, Mapping):
        return {key: _toml_value(item) for key, item in value.items()}
    return value
