"""What a pickle holds when it was read as data: names, objects that were not made, and places of tensors."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["Global", "Inert", "StorageReference", "is_plain", "numpy_scalar", "numpy_type", "raw_bytes"]


@dataclass(frozen=True)
class Global:
    """The name of a class, function or constant. Nothing stands behind it."""

    name: str


@dataclass(eq=False, slots=True)
class Inert:
    """An object that was not made: the name of its class or function and what it would have been given.

    Two nodes are equal only if they are the same one, so a node can be a key whatever it holds.
    """

    name: str
    args: tuple[object, ...] = ()
    state: object = None
    items: list[object] = field(default_factory=list)
    """What was to be appended, or (key, value) pairs that were to be set."""
    has_state: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class StorageReference:
    """A persistent id: where torch keeps the bytes of a tensor, outside the pickle."""

    value: object


_PLAIN_NODES = frozenset({"torch.Size", "torch.device"})


def is_plain(value: object) -> bool:
    """Whether a value consists of numbers, texts, names and collections of them: nothing in it can be a tensor.

    Each part is looked at once, however often it occurs.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        part = waiting.pop()
        if type(part) in (dict, list, tuple):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.extend(part.values() if isinstance(part, dict) else part)  # type: ignore[arg-type]
        elif type(part) is Inert:
            if part.name not in _PLAIN_NODES:
                return False
            waiting += part.args
        elif type(part) is StorageReference:
            return False
    return True


_SCALAR_TYPES = MappingProxyType(
    {
        **{f"i{size}": code for size, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
        **{f"u{size}": code for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))},
        **{f"f{size}": code for size, code in ((2, "e"), (4, "f"), (8, "d"))},
        "b1": "?",
    }
)


def numpy_type(value: object) -> tuple[str, str] | None:
    """(byte order, type such as ``f4``) of a numpy dtype node, or None for what is not a plain number."""
    if type(value) is not Inert or value.name != "numpy.dtype" or not value.args or type(value.args[0]) is not str:
        return None
    state = value.state
    order = state[1] if type(state) is tuple and len(state) > 1 else "|"
    return (order, value.args[0]) if order in ("<", ">", "|", "=") and value.args[0] in _SCALAR_TYPES else None


def raw_bytes(value: object) -> bytes | None:
    """Bytes, also from the texts that Python 2 wrote for them."""
    return value if type(value) is bytes else value.encode("utf-8") if type(value) is str else None


def numpy_scalar(args: tuple[object, ...]) -> object:
    """The plain number that a scalar of numpy is, or None for what is not one."""
    if len(args) != 2 or (described := numpy_type(args[0])) is None or (raw := raw_bytes(args[1])) is None:
        return None
    order, name = described
    code = (">" if order == ">" else "<") + _SCALAR_TYPES[name]
    return struct.unpack(code, raw)[0] if len(raw) == struct.calcsize(code) else None
