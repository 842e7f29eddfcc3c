"""What a setting is marked with in its annotation: foreign names, and the names that its value may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from loraloom.registry import Entry

__all__ = ["Choices", "ClassPath", "ForBeginners", "Kohya", "MayChange", "Offers", "Unit"]


@dataclass(frozen=True)
class Kohya:
    """Mark: the names that sd-scripts and the guide's script use for this setting."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class ClassPath:
    """Mark: the value may be the path of a Python class (``torch.optim.RAdam``), whose module is then imported.

    A person may name any class on the command line and in a settings file of their own. A file of somebody else
    (a LoRA, an image, another program's recipe) is data, and chooses among the registry's names and the classes of
    ``libraries`` alone: else opening a file would run whatever module it names.
    """

    libraries: tuple[str, ...]

    def __init__(self, *libraries: str) -> None:
        object.__setattr__(self, "libraries", libraries)

    def data_may_name(self, value: Any) -> bool:
        """Whether a file that is only data may choose ``value``."""
        module, dot, name = str(value).strip().rpartition(".")
        return not dot or (module in self.libraries and name.isidentifier())


@dataclass(frozen=True)
class Choices:
    """Mark: the value is one of the names that ``names`` gives when it is asked, plugins' among them.

    ``table`` has a line for people about each of them.
    """

    names: Callable[[], Sequence[str]]
    table: Mapping[str, Entry] = field(default_factory=dict)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names()), "x-choices": self.summaries()}

    def summaries(self) -> dict[str, str]:
        """Each name with its line."""
        return {name: self.table[name].summary if name in self.table else "" for name in self.names()}

    def _checked(self, value: str) -> str:
        names = [repr(name) for name in self.names()]
        if repr(value) in names:
            return value
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})


@dataclass(frozen=True)
class Offers:
    """Mark: names of tables that the value may have, each with a line for people, plugins' among them.

    Unlike :class:`Choices` it checks nothing: other spellings, or paths of classes, may be taken too. ``more`` are
    names that no table has.
    """

    tables: tuple[Mapping[str, Entry], ...]
    more: Mapping[str, str]

    def __init__(self, *tables: Mapping[str, Entry], more: Mapping[str, str] | None = None) -> None:
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "more", more or {})

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        summaries = self.summaries()
        return {**handler(schema), "examples": list(summaries), "x-choices": summaries}

    def summaries(self) -> dict[str, str]:
        """Each name with its line."""
        return {**self.more, **{name: entry.summary for table in self.tables for name, entry in table.items()}}


@dataclass(frozen=True)
class MayChange:
    """Mark: a run may go on with another value of this setting, or of every setting of this group.

    ``by_rounding``: its results then differ by rounding. ``on_a_machine``: processes that train one run together may
    each have their own value: where things lie, and what one of them does alone.
    """

    by_rounding: bool = False
    on_a_machine: bool = False


@dataclass(frozen=True)
class ForBeginners:
    """Mark: this setting is shown to those who train their first LoRA. All others are for experts."""


@dataclass(frozen=True)
class Unit:
    """Mark: what the number counts, as people read it behind it: "pixels", "steps"."""

    name: str
