"""Settings as people see them: one row for each, read from its annotation and its docstring.

Everything that shows settings (a form, the command line, the documentation) shows these rows.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loraloom.setting_marks import Choices, ClassPath, ForBeginners, Kohya, Offers, Unit

__all__ = [
    "Bounds",
    "Entering",
    "SettingRow",
    "class_of",
    "entries_of",
    "kinds_in_words",
    "setting_rows",
    "title_of",
]

Entering = Literal["switch", "whole", "number", "text", "path", "choice", "list", "table", "tables", "mixed"]
"""What a value is entered with; ``mixed``: it may be of several types, and is written as on the command line."""


@dataclass(frozen=True)
class Bounds:
    """What a number may be; for a list, each of its numbers. None: no bound."""

    lowest: float | None = None
    above: float | None = None
    highest: float | None = None
    below: float | None = None
    multiple_of: float | None = None

    @property
    def words(self) -> str:
        """The bounds in words: ``1 to 12``, ``0 or more``, ``above 0``; nothing without bounds."""
        least = None if self.lowest is None else f"{self.lowest:g}"
        most = None if self.highest is None else f"{self.highest:g}"

        # Both ends of a closed range are said together, the others one by one.
        said = [f"{least} to {most}"] if least and most else []
        said += [f"{least} or more"] if least and not most else []
        said += [f"above {self.above:g}"] if self.above is not None else []
        said += [f"at most {most}"] if most and not least else []
        said += [f"below {self.below:g}"] if self.below is not None else []
        said += [f"a multiple of {self.multiple_of:g}"] if self.multiple_of is not None else []
        return ", ".join(said)


@dataclass(frozen=True)
class SettingRow:
    """One setting as people see it. ``path`` is dotted: ``adapter.rank``."""

    path: str
    kinds: tuple[str, ...]
    """What the value may be: "text", "whole number", "none", or the names of a closed list."""
    default: Any
    required: bool
    doc: str
    kohya: tuple[str, ...]
    class_path: ClassPath | None = None
    """Set where the value may be the path of a class."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Names that the value (or each in a list) may have, each with a line for people (which may be empty)."""
    is_closed: bool = False
    """Whether only the names of ``choices`` are accepted."""
    form: Entering = "text"
    may_be_unset: bool = False
    bounds: Bounds = Bounds()
    unit: str = ""
    """What a number counts: "steps", "pixels"; empty where it is a plain number or the name says it."""
    is_for_experts: bool = True

    @property
    def type(self) -> str:
        """The kinds in words."""
        return " | ".join(self.kinds)

    @property
    def values(self) -> str:
        """The kinds with the bounds and the unit, in words: what the reference of the settings shows."""
        return ", ".join(part for part in (self.type, self.bounds.words, self.unit and f"in {self.unit}") if part)

    @property
    def title(self) -> str:
        """A heading for people: ``Text encoder learning rate``."""
        return title_of(self.path)


_WORDS = {
    "optimizer": "optimizer",
    "lr_schedule": "learning rate schedule",
    "lr": "learning rate",
    "unet": "U-Net",
    "text-encoder": "text encoder",
    "cfg": "guidance",
    "ema": "running average",
    "snr": "SNR",
    "v": "V",
    "min": "smallest",
    "max": "largest",
    "multires": "multi-resolution",
    "ip": "input perturbation",
    "conv": "convolution",
    "init": "start",
    "args": "more arguments",
    "eps": "epsilon",
    "grad": "gradient",
    "loraplus": "LoRA+",
    "loras": "LoRAs",
    "url": "address",
    "std": "width",
    "mean": "middle",
    "vae": "VAE",
}
"""Parts of names in words that a newcomer reads; the others are words already."""


def title_of(path: str) -> str:
    """The name of a setting or a group as a heading for people."""
    group, _, name = path.replace("[]", "").rpartition(".")
    if name == "name" and group in _WORDS:  # of a thing to choose, not of a run
        name = group
    words = [name] if name in _WORDS else name.replace("text_encoder", "text-encoder").split("_")
    words.sort(key=lambda word: word not in ("min", "max"))
    text = " ".join(_WORDS.get(word, word) for word in words)
    return text[:1].upper() + text[1:]


def setting_rows(cls: type[BaseModel], prefix: str = "") -> Iterator[SettingRow]:
    """Every setting under ``cls``, nested groups included, in the order of definition.

    The settings of a list of tables have ``[]`` in their path: ``dataset.concepts[].repeats``.
    """
    for name, info in cls.model_fields.items():
        group = class_of(info)
        # A group has no value of its own to show: its settings are rows instead.
        if group is not None:
            yield from setting_rows(group, f"{prefix}{name}.")
            continue

        yield _row(f"{prefix}{name}", info)
        table = entries_of(info)
        if table is not None:
            yield from setting_rows(table, f"{prefix}{name}[].")


def _row(path: str, info: FieldInfo) -> SettingRow:
    required = info.is_required()
    choices, is_closed = _choices(info)
    marked_closed = any(isinstance(mark, Choices) for mark in info.metadata)
    is_table = entries_of(info) is not None

    # What is offered are names of a closed list, or suggestions beside which other text is taken.
    return SettingRow(
        path=path,
        kinds=("list of tables",) if is_table else tuple(choices) if marked_closed else _kinds(info.annotation),
        default=None if required else info.get_default(call_default_factory=True),
        required=required,
        doc=" ".join((info.description or "").split()),
        kohya=tuple(name for mark in info.metadata if isinstance(mark, Kohya) for name in mark.names),
        class_path=next((mark for mark in info.metadata if isinstance(mark, ClassPath)), None),
        choices=choices,
        is_closed=is_closed,
        form="tables" if is_table else _form(info.annotation, is_closed=is_closed),
        may_be_unset=type(None) in _alternatives(info.annotation),
        bounds=_bounds(info),
        unit=next((mark.name for mark in info.metadata if isinstance(mark, Unit)), ""),
        is_for_experts=not any(isinstance(mark, ForBeginners) for mark in info.metadata),
    )


def class_of(info: FieldInfo) -> type[BaseModel] | None:
    """The class of a group of settings; None for a setting that has a value of its own."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def entries_of(info: FieldInfo) -> type[BaseModel] | None:
    """The class of the entries where the field is a list of tables."""
    arguments = get_args(info.annotation) if get_origin(info.annotation) is tuple else ()
    element = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
    return element if isinstance(element, type) and issubclass(element, BaseModel) else None


def _choices(info: FieldInfo) -> tuple[dict[str, str], bool]:
    """The names that a setting may have, each with a line, and whether it takes no others; empty without a list."""
    for mark in info.metadata:
        if isinstance(mark, Choices | Offers):
            return mark.summaries(), isinstance(mark, Choices)
    alternatives = _alternatives(info.annotation)
    inside = [part for one in alternatives if get_origin(one) is tuple for part in get_args(one)]
    literals = [name for one in (*alternatives, *inside) if get_origin(one) is Literal for name in get_args(one)]
    return {str(name): "" for name in literals}, bool(literals)


def _alternatives(annotation: Any) -> list[Any]:
    """The types of which a value may be one, without what is annotated about them."""
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [found for one in get_args(annotation) for found in _alternatives(one)]
    return _alternatives(get_args(annotation)[0]) if origin is typing.Annotated else [annotation]


def _form(annotation: Any, *, is_closed: bool) -> Entering:
    """What a value of this type is entered with; ``is_closed``: only the names of a list are accepted."""
    kinds = {get_origin(one) or one for one in _alternatives(annotation)} - {type(None)}
    if is_closed and kinds <= {str, Literal}:
        return "choice"
    if kinds == {int, float}:
        return "number"
    if len(kinds) > 1:
        return "mixed"
    named: dict[Any, Entering] = {bool: "switch", int: "whole", float: "number", Path: "path", str: "text"}
    named |= {tuple: "list", list: "list", dict: "table"}
    return named.get(next(iter(kinds)), "mixed")


def _bounds(info: FieldInfo) -> Bounds:
    """The bounds of a number, or of the numbers in a list; of several types those of the first that has some."""
    return next((found for found in _all_bounds(info.annotation, info.metadata) if found != Bounds()), Bounds())


def _all_bounds(annotation: Any, marks: typing.Iterable[Any] = ()) -> Iterator[Bounds]:
    given: dict[str, Any] = {}
    named = ((Ge, "ge", "lowest"), (Gt, "gt", "above"), (Le, "le", "highest"), (Lt, "lt", "below"))
    for mark in marks:
        inner = mark.metadata if isinstance(mark, FieldInfo) else [mark]
        for one in inner:
            given |= {name: getattr(one, key) for kind, key, name in named if isinstance(one, kind)}
            given |= {"multiple_of": one.multiple_of} if isinstance(one, MultipleOf) else {}
    yield Bounds(**given)

    arguments = get_args(annotation)
    if get_origin(annotation) is typing.Annotated:
        yield from _all_bounds(arguments[0], arguments[1:])
    elif get_origin(annotation) is not Literal:
        for one in arguments:
            yield from _all_bounds(one)


def _kinds(annotation: Any) -> tuple[str, ...]:
    """What a value of this type may be, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Literal:
        return tuple(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return tuple(kind for one in arguments for kind in (("none",) if one is type(None) else _kinds(one)))
    if origin is typing.Annotated:
        return _kinds(arguments[0])
    if origin in (tuple, list):
        return (f"list of {kinds_in_words(arguments[0])}",)
    if origin is dict:
        return (f"table of {kinds_in_words(arguments[0])} to {kinds_in_words(arguments[1])}",)
    if annotation is bool:
        return ("true", "false")
    names = {int: "whole number", float: "number", str: "text", Path: "path", Any: "any value"}
    return (names.get(annotation, getattr(annotation, "__name__", str(annotation))),)


def kinds_in_words(annotation: Any) -> str:
    """What a value of a type may be: ``whole number | none``."""
    return " | ".join(_kinds(annotation))
