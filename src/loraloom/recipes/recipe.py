"""What a foreign recipe becomes: our settings, and an account of every key it held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

import tomlkit
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from loraloom.errors import SettingsError
from loraloom.plain_data import LARGEST_WHOLE, shown, too_large
from loraloom.plain_text import one_line
from loraloom.settings import SettingRow, Settings, apply_overrides, number_not_truth, setting_rows
from loraloom.training.settings import TrainSettings

__all__ = ["Item", "Items", "Mapped", "Recipe", "exists", "field_rows", "is_nothing", "listed", "resolved"]


@dataclass(frozen=True)
class Item:
    """One entry of a recipe: ``key`` as it was written there, and its value."""

    key: str
    value: Any


Items = dict[str, Item]
"""Entries by the name that sd-scripts has for them."""


@dataclass(frozen=True)
class Mapped:
    """A key, the setting it became, and the value as written there and here."""

    key: str
    path: str
    value: Any


@dataclass
class Recipe:
    """A training recipe of another program in our settings.

    Every key of the source is in exactly one of ``mapped``, ``changed`` (carried over with another meaning or from a
    default of that program), ``unmapped`` (with the reason) and ``idle`` (empty, off, or at a value that does nothing).
    """

    source: Path
    program: str
    settings: dict[str, Any] = field(default_factory=dict)
    mapped: list[Mapped] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    unmapped: list[tuple[str, str]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """The keys of ``unmapped`` that are not known at all."""
    left_out: set[str] = field(default_factory=set)
    """Settings whose value named a class that a file may not choose."""
    known_of_required: dict[str, str] = field(default_factory=dict)
    """What the source says about a setting that it cannot give: the checkpoint's name."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Settings path (or "") and what is wrong with the value for it."""

    def set(self, path: str, value: Any, key: str, *, note: str = "") -> bool:
        """Take a value over; ``note`` says what it means now. False where it is not taken.

        A value that the setting refuses becomes a problem. A class that a file may not choose (see
        :class:`~loraloom.setting_marks.ClassPath`) is left out, and so are the arguments that were meant for it.
        """
        reason = self._not_for_a_file_to_say(path, value)
        if reason:
            self.skip(key, reason)
            return False
        try:
            plain = _coerced(path, value, self.folders)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            self.problem(path, f"{key} = {shown(value)} does not fit {path}: {reason}")
            return False
        if too_large(plain):
            self.problem(path, f"{key} = {shown(value)} does not fit {path}: whole numbers go up to {LARGEST_WHOLE}")
            return False
        *parents, leaf = path.split(".")
        target = self.settings
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = plain
        if note:
            self.changed.append((key, note))
        else:
            self.mapped.append(Mapped(key, path, plain))
        return True

    def _not_for_a_file_to_say(self, path: str, value: Any) -> str:
        """Why a file that is only data cannot choose this value; empty where it can."""
        row = field_rows()[path]
        mark = row.class_path
        if mark is not None:
            if mark.data_may_name(value):
                self.left_out.discard(path)
                return ""
            self.left_out.add(path)
            return (
                f"{_one_line(value)} is a class of Python, and a file does not choose what code is run: "
                f"if you know that class, give {path}={_one_line(value)} yourself; else it is {row.default}, "
                "for which the learning rates may be wrong"
            )
        group, _, leaf = path.rpartition(".")
        if leaf == "args" and f"{group}.name" in self.left_out:
            return f"for the class that was left out: give {path}.NAME=VALUE with {group}.name"
        return ""

    def change(self, key: str, note: str) -> None:
        """Record that a key means something else here."""
        self.changed.append((key, note))

    def skip(self, key: str, reason: str) -> None:
        """Record why a key was not carried over."""
        self.unmapped.append((key, reason))

    def rest(self, key: str) -> None:
        """Record a key that says nothing: empty, off, or at its default."""
        self.idle.append(key)

    def rename(self, new: Callable[[str], str]) -> None:
        """Give every key the name that it has in the source, where it was translated under another one."""
        self.mapped = [replace(entry, key=new(entry.key)) for entry in self.mapped]
        self.changed = [(new(key), note) for key, note in self.changed]
        self.unmapped = [(new(key), reason) for key, reason in self.unmapped]
        self.idle = [new(key) for key in self.idle]
        self.unknown = [new(key) for key in self.unknown]
        self.problems = [(path, self._renamed(text, new)) for path, text in self.problems]
        known = self.known_of_required
        self.known_of_required = {path: self._renamed(text, new) for path, text in known.items()}

    def _renamed(self, text: str, new: Callable[[str], str]) -> str:
        """A sentence that begins with a key, after the name of the file."""
        start = f"{self.source}: "
        start = start if text.startswith(start) else ""
        word, blank, rest = text.removeprefix(start).partition(" ")
        key = word.rstrip(":")
        return f"{start}{new(key)}{word[len(key) :]}{blank}{rest}"

    def problem(self, path: str, text: str) -> None:
        """Record a value that cannot be used. An override of ``path`` settles it."""
        self.problems.append((path, f"{self.source}: {text}"))

    def get(self, path: str) -> Any:
        """The value set so far, None where there is none."""
        value: Any = self.settings
        for part in path.split("."):
            if not isinstance(value, dict) or part not in value:
                return None
            value = value[part]
        return value

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where relative paths of the source may lie: its own folder first, then the working folder."""
        return (self.source.absolute().parent, Path.cwd())

    @property
    def keys(self) -> list[str]:
        """Every key that is accounted for."""
        changed = [key for key, _ in self.changed]
        unmapped = [key for key, _ in self.unmapped]
        return [*(entry.key for entry in self.mapped), *changed, *unmapped, *self.idle]

    def missing(self, overrides: Sequence[str] = ()) -> list[str]:
        """Required settings that neither the source nor the overrides give."""
        data = apply_overrides(self.settings, overrides)
        given = set(_paths(data))
        if data.get("dataset", {}).get("concepts"):
            given.add("dataset.folder")
        rows = [row for row in field_rows().values() if row.required and "[]" not in row.path]
        return [row.path for row in rows if row.path not in given]

    def why_missing(self, path: str) -> str:
        """What the source says about a required setting that it does not give, or why what it gives cannot be used."""
        wrong = [text.removeprefix(f"{self.source}: ") for problem, text in self.problems if problem == path]
        return "; ".join([*wrong, *filter(None, [self.known_of_required.get(path)])])

    def finished(self, overrides: Sequence[str] = ()) -> TrainSettings:
        """The settings to train with; raises one SettingsError that lists everything wrong or missing."""
        data = apply_overrides(self.settings, overrides)
        settled = {override.partition("=")[0].strip().replace("-", "_") for override in overrides}
        problems = [text for path, text in self.problems if path not in settled]
        missing = self.missing(overrides)
        for path in missing:
            known = self.known_of_required.get(path, "")  # what is wrong with it has been reported already
            problems.append(f"{self.source} does not say {path}{f' ({known})' if known else ''}: add {path}=...")
        # One that is missing would be reported a second time, and would hide nothing else if a stand-in is checked.
        stand_in = apply_overrides(data, [f"{path}='.'" for path in missing])
        settings = None
        try:
            settings = TrainSettings.parse(stand_in, source=str(self.source))
        except SettingsError as error:
            problems += error.problems
        if problems or settings is None:
            raise SettingsError(problems, "key=value after the file's name sets or replaces a setting")
        return settings

    def to_toml(self, overrides: Sequence[str] = ()) -> str:
        """A settings file: what was carried over with the keys it came from, and as comments what was not."""
        data = apply_overrides(self.settings, overrides)
        origin = {entry.path: entry.key for entry in reversed(self.mapped)}
        document = tomlkit.document()
        document.add(tomlkit.comment(_one_line(f"From {self.source.name} ({self.program}).")))
        for path in self.missing(overrides):
            known = self.why_missing(path)
            more = f"({_one_line(known)})" if known else ""
            document.add(tomlkit.comment(f"Required, not in that file: {path} {more}".rstrip()))
        for title, pairs in (("Not quite the same here", self.changed), ("Not carried over", self.unmapped)):
            if pairs:
                document.add(tomlkit.comment(f"{title}:"))
                for key, text in pairs:
                    document.add(tomlkit.comment(f"  {_one_line(key)}: {_one_line(text)}"))
        document.add(tomlkit.nl())
        _fill(document, data, "", origin)
        return tomlkit.dumps(document).rstrip("\n") + "\n"


@cache
def field_rows() -> Mapping[str, SettingRow]:
    """Every setting of a training run by its path."""
    return {row.path: row for row in setting_rows(TrainSettings)}


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: absent, empty, or the word None."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None", "null")) or value in ([], {})


def listed(text: str) -> tuple[str, ...]:
    """The names in a text, which blanks separate."""
    return tuple(text.split())


@cache
def _adapter(path: str) -> TypeAdapter[Any]:
    cls: Any = TrainSettings
    *parents, leaf = path.split(".")
    for parent in parents:
        cls = cls.model_fields[parent].annotation
    found = cls.model_fields[leaf]
    annotated: Any = Annotated
    check = BeforeValidator(partial(number_not_truth, field_rows()[path].type))
    return TypeAdapter(annotated[(found.annotation, *found.metadata, check)])


def _coerced(path: str, value: Any, folders: Sequence[Path]) -> Any:
    """The value as the setting's type has it, in what TOML can say."""
    kind = field_rows()[path].kinds[0]
    if kind == "text" and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and kind == "path":
        value = resolved(value, folders)
    return _plain(_adapter(path).validate_python(value))


def resolved(value: str, folders: Sequence[Path]) -> str:
    """A path as this machine finds it; one of another machine (``X:\\pictures``) stays as it is written."""
    text = value.strip().strip('"')
    if "\0" in text:
        return text  # no system has such a name; opening it will say so
    if PureWindowsPath(text).drive or text.startswith("\\\\"):
        trimmed = text.rstrip("\\/")
        return text if trimmed.endswith(":") else trimmed
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    native = Path(text.replace("\\", "/"))
    return str(next((folder / native for folder in folders if exists(folder / native)), folders[0] / native))


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; of a name that no system can have, there is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Settings):
        return _plain(value.model_dump(exclude_unset=True))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _paths(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"


def _one_line(text: str) -> str:
    return one_line(" ".join(str(text).split()))


def _fill(container: Any, data: Mapping[str, Any], prefix: str, origin: Mapping[str, str]) -> None:
    for key, value in data.items():
        if value is None or isinstance(value, Mapping) or _is_tables(value):
            continue

        item = tomlkit.item(value)
        known = origin.get(f"{prefix}{key}")
        if known is not None and known != key:
            item.comment(_one_line(known))
        container.add(key, item)

    # In TOML whatever follows a table belongs to it, so plain values have to come before all of them.
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            table = tomlkit.table()
            _fill(table, value, f"{prefix}{key}.", origin)
            container.add(key, table)
        elif _is_tables(value):
            array = tomlkit.aot()
            for entry in value:
                table = tomlkit.table()
                _fill(table, entry, "", {})
                array.append(table)
            container.add(key, array)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
