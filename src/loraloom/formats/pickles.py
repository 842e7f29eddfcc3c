"""A data-only reader of pickles: it imports nothing and calls nothing.

The opcodes are those of Python's ``pickletools``, protocols 0 to 5. Where a pickle asks for a class or function, the
name is looked up in a closed list and becomes an inert node; any other name is refused. Memory and work are bounded
by the number of opcodes and by the bytes that are really there, never by a length that the file declares.
"""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from loraloom.errors import FileFormatError, UnsafeFileError
from loraloom.formats.entries import show
from loraloom.formats.pickle_nodes import Global, Inert, StorageReference, is_plain, numpy_scalar

__all__ = ["Pickle", "read_pickle"]

MAX_OPERATIONS = 1_500_000
MAX_BYTES = 64 * 2**20
MAX_INTEGER_BYTES = 256
ENTRY_COST = 64
MAX_TUPLE_KEY = 16
MAX_TUPLE_KEYS = 1000

_CODE_HINT = "the file may carry code: get it as .safetensors, or from a source you trust"


@dataclass(frozen=True)
class Pickle:
    """What a pickle holds, where it ends in the file, and every storage it refers to."""

    value: object
    end: int
    storages: list[StorageReference]


def read_pickle(data: memoryview, where: str, start: int = 0) -> Pickle:
    """Read the pickle that begins at byte ``start`` of ``data``.

    Containers become dict, list and tuple; numbers of numpy become plain numbers; other objects become ``Inert``.
    Raises FileFormatError (damaged) or UnsafeFileError (a name outside the closed list, or too much of something).
    """
    return _Machine(data, where, start).run()


# ---------------------------------------------------------------------------------------------------------------------
# names

_MODULE_ALIASES = MappingProxyType(
    {
        "__builtin__": "builtins",
        "copy_reg": "copyreg",
        "numpy._core.multiarray": "numpy.core.multiarray",
        "numpy._core.numeric": "numpy.core.numeric",
        "torch.tensor": "torch._tensor",
    }
)
_DICTIONARIES = frozenset(
    {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
)
_NAMES = MappingProxyType(
    {
        "builtins": "list tuple set frozenset int long float complex bool str unicode bytes object",
        "typing": "Any Dict List Optional Tuple Union",
        "datetime": "datetime date time timedelta timezone",
        "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        "argparse": "Namespace",
        "_codecs": "encode",
        "copyreg": "_reconstructor",
        "numpy": "dtype ndarray",
        "numpy.core.multiarray": "scalar _reconstruct",
        "numpy.core.numeric": "_frombuffer",
        "torch": "Tensor Size device dtype",
        "torch._tensor": "_rebuild_from_type_v2",
        "torch._utils": "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 "
        "_rebuild_parameter _rebuild_parameter_with_state",
        "torch.nn.parameter": "Parameter",
        "torch.nn.modules.container": "ParameterDict",
        "torch.storage": "UntypedStorage TypedStorage",
    }
)
_ALLOWED = _DICTIONARIES | {f"{module}.{name}" for module, names in _NAMES.items() for name in names.split()}
_NUMBER_TYPE = re.compile(
    r"(?:bool|half|single|double|longdouble|byte|short|long|str|bytes|void|object)_?"
    r"|(?:int|uint|float|bfloat|complex)(?:[0-9]+(?:_e[0-9]m[0-9][a-z]*)?|_)?"
)
_STORAGE_TYPE = re.compile(r"[A-Z][A-Za-z0-9]*Storage")
_CLASS_NAME = re.compile(r"_{0,2}[A-Z][A-Za-z0-9_]*")
_INERT_PACKAGES = frozenset({"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf"})
_STATEFUL = frozenset(
    {
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "torch.nn.modules.container.ParameterDict",
        "argparse.Namespace",
    }
)
"""What else gets its attributes after it was made. A tensor never is: with Python's own reader that would put other
values into it, so it cannot be passed over."""
_COLLECTIONS = frozenset({"builtins.set", "builtins.frozenset"})
_IDENTIFIERS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")


def _allowed(module: str, name: str) -> bool:
    if f"{module}.{name}" in _ALLOWED:
        return True
    if module in ("torch", "torch.cuda") and _STORAGE_TYPE.fullmatch(name):
        return True
    if module in ("torch", "numpy"):
        return bool(_NUMBER_TYPE.fullmatch(name))
    if module == "numpy.dtypes":
        return name.endswith("DType") and bool(_CLASS_NAME.fullmatch(name))
    return _is_foreign_object(module) and bool(_CLASS_NAME.fullmatch(name))


def _is_foreign_object(name: str) -> bool:
    """Whether a name is of a package whose objects are kept as inert nodes, whatever is done to them."""
    return name.partition(".")[0] in _INERT_PACKAGES


# ---------------------------------------------------------------------------------------------------------------------
# the machine


class _Mark:
    """Where the items of a container begin on the stack."""


_MARK = _Mark()
_ESCAPES = MappingProxyType(
    {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\n": b""}
)
_CODE_POINT = re.compile(r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})")
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)


class _Machine:
    """The stack, the memo and the position of one pickle."""

    def __init__(self, data: memoryview, where: str, start: int) -> None:
        self.data = data
        self.where = where
        self.start = start
        self.position = start
        self.end = min(len(data), start + MAX_BYTES)
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.storages: list[StorageReference] = []
        self.work = 0
        self.tuple_keys = 0

    def run(self) -> Pickle:
        data, table, end = self.data, _TABLE, self.end
        for _ in range(MAX_OPERATIONS):
            position = self.position
            if position >= end:
                raise self.truncated()
            code = data[position]
            self.position = position + 1
            if code == _STOP:
                value = self.pop()
                if self.stack:
                    raise self.damaged("ends with values left over")
                return Pickle(value, self.position, self.storages)
            operation = table[code]
            if operation is None:
                raise self.damaged(f"has the unknown opcode 0x{code:02x} at byte {position}")
            operation(self)
        raise UnsafeFileError(f"{self.where}: its pickle has more than {MAX_OPERATIONS} steps", _CODE_HINT)

    # errors

    def damaged(self, problem: str) -> FileFormatError:
        return FileFormatError(f"{self.where}: its pickle {problem}", "the file is damaged or no checkpoint")

    def unsafe(self, problem: str) -> UnsafeFileError:
        return UnsafeFileError(f"{self.where}: {problem}", _CODE_HINT)

    def truncated(self) -> FileFormatError:
        if self.end < len(self.data):
            return self.unsafe(f"its pickle is longer than {MAX_BYTES} bytes")
        return self.damaged("ends in the middle")

    # input

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes, which must be there."""
        position = self.position
        if count > self.end - position:
            raise self.truncated()
        self.position = position + count
        return self.data[position : position + count]

    def byte(self) -> int:
        position = self.position
        if position >= self.end:
            raise self.truncated()
        self.position = position + 1
        return self.data[position]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self) -> bytes:
        """The bytes up to the next line feed."""
        position, length = self.position, 64
        while True:
            piece = bytes(self.data[position : min(position + length, self.end)])
            found = piece.find(b"\n")
            if found >= 0:
                self.position = position + found + 1
                return piece[:found]
            if position + length >= self.end:
                raise self.truncated()
            length *= 2

    def text(self, raw: bytes | memoryview) -> str:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("has a text that is not valid UTF-8") from error

    def decimal(self, raw: bytes) -> int:
        if len(raw) > 2 * MAX_INTEGER_BYTES or not re.fullmatch(rb"[+-]?[0-9]+", raw):
            raise self.damaged("holds something where a number must be")
        return int(raw)

    def spend(self, amount: int) -> None:
        """Count work that one opcode multiplies, so that the whole stays linear in the size of the file."""
        self.work += amount
        if self.work > MAX_BYTES:
            raise self.unsafe("its pickle copies the same data over and over")

    # stack

    def pop(self) -> object:
        stack = self.stack
        if not stack:
            raise self.damaged("takes a value where there is none")
        value = stack.pop()
        if value is _MARK:
            raise self.damaged("takes a value where there is none")
        return value

    def top(self) -> object:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.damaged("takes a value where there is none")
        return self.stack[-1]

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise self.damaged("closes a list that was never opened")
        mark = self.marks.pop()
        items = self.stack[mark + 1 :]
        del self.stack[mark:]
        return items

    def pop_tuple(self) -> tuple[object, ...]:
        value = self.pop()
        if type(value) is not tuple:
            raise self.damaged("calls something without arguments")
        return value

    # containers

    def set_items(self, target: object, items: list[object]) -> None:
        if len(items) % 2:
            raise self.damaged("sets a key without a value")
        if type(target) is dict:
            for index in range(0, len(items), 2):
                key = items[index]
                if type(key) is not str:
                    self.check_key(key)
                if key in target:
                    raise self.damaged(f"sets the key {show(key)} twice")
                target[key] = items[index + 1]
        elif type(target) is Inert:
            self.check_has_items(target)
            target.items.extend(zip(items[::2], items[1::2], strict=True))
        else:
            raise self.damaged("sets items of something that has none")

    def append_items(self, target: object, items: list[object]) -> None:
        if type(target) is list:
            target.extend(items)
        elif type(target) is Inert:
            self.check_has_items(target)
            target.items.extend(items)
        else:
            raise self.damaged("appends to something that is not a list")

    def check_has_items(self, target: Inert) -> None:
        """A tensor or array has none that could be set or added: that would change its values."""
        if target.name not in _COLLECTIONS and not _is_foreign_object(target.name):
            raise self.unsafe(f"its pickle sets or adds items of {show(target.name)}, which has none")

    def check_key(self, key: object) -> None:
        """Only keys whose hash and comparison cost nothing: no nested tuples, no giant numbers."""
        if type(key) is tuple:
            self.tuple_keys += 1
            if len(key) > MAX_TUPLE_KEY or self.tuple_keys > MAX_TUPLE_KEYS:
                raise self.unsafe("its pickle uses long tuples, or very many, as keys")
            for part in key:
                if type(part) is tuple:
                    raise self.unsafe("its pickle uses nested tuples as keys")
                self.check_key(part)
        elif type(key) is int:
            if key.bit_length() > 64:
                raise self.unsafe("its pickle uses giant numbers as keys")
        elif type(key) not in _KEY_TYPES:
            raise self.damaged("uses something as a key that cannot be one")

    # objects

    def find(self, module: str, name: str) -> Global:
        known = self.globals.get((module, name))
        if known is None:
            module_now = _MODULE_ALIASES.get(module, module)
            if not _IDENTIFIERS.fullmatch(module) or not _IDENTIFIERS.fullmatch(name):
                raise self.unsafe(f"asks for the global {show(f'{module}.{name}')}, which is not a proper name")
            if not _allowed(module_now, name):
                raise self.unsafe(f"asks for the global {f'{module}.{name}'[:120]}, which no checkpoint needs")
            known = self.globals[module, name] = Global(f"{module_now}.{name}")
        return known

    def call(self, function: object, args: tuple[object, ...]) -> object:
        """What a call would have made, as data."""
        if type(function) is not Global:
            raise self.unsafe("its pickle calls something that is not a plain name")
        name = function.name

        # The few calls that make plain data are made as data; every other one stays a node that nothing runs.
        if name in _DICTIONARIES:
            return self.dictionary(args)
        if name == "builtins.bytes" and not args:
            return b""
        if name == "_codecs.encode":
            return self.encoded(args)
        if name == "copyreg._reconstructor":
            if not args or type(args[0]) is not Global:
                raise self.unsafe("its pickle makes an object of something that is not a plain name")
            return Inert(args[0].name, args[1:])
        if name == "numpy.core.multiarray.scalar":
            number = numpy_scalar(args)
            return Inert(name, args) if number is None else number
        return Inert(name, args)

    def dictionary(self, args: tuple[object, ...]) -> dict[object, object]:
        """A dictionary made by its type: of nothing, of a dictionary or pairs, and of a type for what is missing."""
        factories, content = (args[:1], args[1:]) if args and type(args[0]) not in (dict, list) else ((), args)
        if len(content) > 1 or any(factory is not None and type(factory) is not Global for factory in factories):
            raise self.damaged("makes a dictionary of something other than pairs")
        return self.copied(content[0] if content else None)

    def copied(self, content: object) -> dict[object, object]:
        if type(content) is dict:
            self.spend(ENTRY_COST * len(content))
            return dict(content)
        made: dict[object, object] = {}
        if type(content) is list:
            self.spend(ENTRY_COST * len(content))
            for pair in content:
                if type(pair) not in (list, tuple) or len(pair) != 2:
                    raise self.damaged("makes a dictionary of something other than pairs")
                self.set_items(made, list(pair))
        elif content is not None:
            raise self.damaged("makes a dictionary of something other than pairs")
        return made

    def encoded(self, args: tuple[object, ...]) -> bytes:
        """Bytes as protocol 2 writes them: a text whose characters are the bytes."""
        if not 1 <= len(args) <= 2 or type(args[0]) is not str or args[1:] not in ((), ("latin1",), ("latin-1",)):
            raise self.damaged("encodes something other than a text as latin-1")
        self.spend(len(args[0]))
        try:
            return args[0].encode("latin-1")
        except UnicodeEncodeError as error:
            raise self.damaged("encodes a text that does not fit latin-1") from error

    def build(self, target: object, state: object) -> None:
        """Attributes of an object that was made: kept where they say something, else refused, never passed over."""
        if type(target) is dict:
            self.check_attributes(state)
        elif type(target) is not Inert:
            raise self.unsafe("its pickle sets attributes of something that is not an object")
        elif target.name not in _STATEFUL and not _is_foreign_object(target.name):
            raise self.unsafe(f"its pickle sets the state of {show(target.name)}, which has none")
        elif target.has_state:
            raise self.unsafe(f"its pickle sets the state of {show(target.name)} twice")
        else:
            target.state, target.has_state = state, True

    def check_attributes(self, state: object) -> None:
        """Those of a dictionary say nothing (a state_dict has ``_metadata``) unless they stand in for its methods."""
        names = list(state) if type(state) is dict else [None]
        for name in names if state is not None else ():
            if type(name) is not str or hasattr(OrderedDict, name):
                raise self.unsafe(f"its pickle sets the attribute {show(name)} of a dictionary")
        if type(state) is dict and not is_plain(state):
            raise self.unsafe("its pickle sets attributes of a dictionary that are not plain values")


_KEY_TYPES = frozenset({str, bytes, int, float, bool, type(None), Global, Inert})


# ---------------------------------------------------------------------------------------------------------------------
# opcodes, named as in pickletools

_Operation = Callable[[_Machine], None]


def _proto(m: _Machine) -> None:
    if (version := m.byte()) > 5:
        raise m.damaged(f"is of the unknown protocol {version}")


def _frame(m: _Machine) -> None:
    if m.number(8) > m.end - m.position:
        raise m.truncated()


def _mark(m: _Machine) -> None:
    m.marks.append(len(m.stack))
    m.stack.append(_MARK)


def _pop(m: _Machine) -> None:
    if m.stack and m.stack[-1] is _MARK:
        m.marks.pop()
        m.stack.pop()
    else:
        m.pop()


def _pop_mark(m: _Machine) -> None:
    m.pop_to_mark()


def _dup(m: _Machine) -> None:
    m.push(m.top())


def _constant(value: object) -> _Operation:
    return lambda m: m.stack.append(value)


def _int(m: _Machine) -> None:
    raw = m.line()
    m.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else m.decimal(raw))


def _long(m: _Machine) -> None:
    m.push(m.decimal(m.line().removesuffix(b"L")))


def _binint1(m: _Machine) -> None:
    m.stack.append(m.byte())


def _binint2(m: _Machine) -> None:
    m.stack.append(m.number(2))


def _binint(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(4), "little", signed=True))


def _long_of(count: int) -> _Operation:
    def operation(m: _Machine) -> None:
        length = m.number(count)
        if length > MAX_INTEGER_BYTES:
            raise m.unsafe(f"its pickle has a number of {length} bytes")
        m.push(int.from_bytes(m.take(length), "little", signed=True))

    return operation


def _float(m: _Machine) -> None:
    raw = m.line()
    try:
        m.push(float(raw[:100]))
    except ValueError as error:
        raise m.damaged("holds something where a number must be") from error


def _binfloat(m: _Machine) -> None:
    m.push(struct.unpack(">d", m.take(8))[0])


def _python2_text(m: _Machine, raw: bytes) -> None:
    """Python 2 had one type for texts and bytes: a text if it can be one."""
    try:
        m.push(raw.decode("utf-8"))
    except UnicodeDecodeError:
        m.push(raw)


def _unescape(found: re.Match[bytes]) -> bytes:
    escape = found[1]
    if escape[:1] == b"x" and len(escape) == 3:
        return bytes([int(escape[1:], 16)])
    if escape.isdigit():
        return bytes([int(escape, 8) & 0xFF]) if escape < b"8" else found[0]
    return _ESCAPES.get(escape, escape if escape in b"\\'\"" else found[0])


def _string(m: _Machine) -> None:
    raw = m.line().strip()
    if len(raw) < 2 or raw[:1] not in b"'\"" or raw[-1:] != raw[:1]:
        raise m.damaged("has a text without quotes")
    _python2_text(m, _ESCAPE.sub(_unescape, raw[1:-1]))


def _binstring(m: _Machine) -> None:
    _python2_text(m, bytes(m.take(m.number(4))))


def _short_binstring(m: _Machine) -> None:
    _python2_text(m, bytes(m.take(m.byte())))


def _unicode(m: _Machine) -> None:
    """Latin-1 with ``\\uXXXX`` for the rest (decoded here: Python's codec would be imported on first use)."""
    try:
        text = _CODE_POINT.sub(lambda found: chr(int(found[1] or found[2], 16)), str(m.line(), "latin-1"))
        text.encode("utf-8")
    except (ValueError, OverflowError) as error:
        raise m.damaged("has a text that is not valid Unicode") from error
    m.push(text)


def _text_of(count: int) -> _Operation:
    return lambda m: m.stack.append(m.text(m.take(m.number(count))))


def _bytes_of(count: int) -> _Operation:
    return lambda m: m.stack.append(bytes(m.take(m.number(count))))


def _empty_list(m: _Machine) -> None:
    m.stack.append([])


def _empty_dict(m: _Machine) -> None:
    m.stack.append({})


def _empty_set(m: _Machine) -> None:
    m.stack.append(Inert("builtins.set"))


def _list(m: _Machine) -> None:
    m.push(m.pop_to_mark())


def _tuple(m: _Machine) -> None:
    m.push(tuple(m.pop_to_mark()))


def _tuple_of(count: int) -> _Operation:
    def operation(m: _Machine) -> None:
        values = [m.pop() for _ in range(count)]
        m.stack.append(tuple(reversed(values)))

    return operation


def _dict(m: _Machine) -> None:
    made: dict[object, object] = {}
    m.set_items(made, m.pop_to_mark())
    m.push(made)


def _frozenset(m: _Machine) -> None:
    m.push(Inert("builtins.frozenset", tuple(m.pop_to_mark())))


def _append(m: _Machine) -> None:
    value = m.pop()
    m.append_items(m.top(), [value])


def _appends(m: _Machine) -> None:
    items = m.pop_to_mark()
    m.append_items(m.top(), items)


def _setitem(m: _Machine) -> None:
    value = m.pop()
    key = m.pop()
    m.set_items(m.top(), [key, value])


def _setitems(m: _Machine) -> None:
    items = m.pop_to_mark()
    m.set_items(m.top(), items)


def _additems(m: _Machine) -> None:
    items = m.pop_to_mark()
    if type(m.top()) is not Inert:
        raise m.damaged("adds to something that is not a set")
    m.append_items(m.top(), items)


def _remember(m: _Machine, index: int) -> None:
    m.memo[index] = m.top()


def _recall(m: _Machine, index: int) -> None:
    try:
        m.stack.append(m.memo[index])
    except KeyError as error:
        raise m.damaged("uses a value that it never stored") from error


def _memo_index(m: _Machine) -> int:
    index = m.decimal(m.line())
    if not 0 <= index < 2**32:
        raise m.damaged("stores a value at an impossible place")
    return index


def _global(m: _Machine) -> None:
    module, name = m.text(m.line()), m.text(m.line())
    m.push(m.find(module, name))


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise m.damaged("asks for a global whose name is not text")
    m.push(m.find(module, name))


def _inst(m: _Machine) -> None:
    module, name = m.text(m.line()), m.text(m.line())
    made_of = m.find(module, name)
    m.push(m.call(made_of, tuple(m.pop_to_mark())))


def _obj(m: _Machine) -> None:
    items = m.pop_to_mark()
    if not items:
        raise m.damaged("makes an object of nothing")
    m.push(m.call(items[0], tuple(items[1:])))


def _reduce(m: _Machine) -> None:
    args = m.pop_tuple()
    m.stack.append(m.call(m.pop(), args))


def _newobj_ex(m: _Machine) -> None:
    keywords = m.pop()
    args = m.pop_tuple()
    if type(keywords) is not dict:
        raise m.damaged("calls something without arguments")
    m.push(m.call(m.pop(), (*args, keywords) if keywords else args))


def _build(m: _Machine) -> None:
    state = m.pop()
    m.build(m.top(), state)


def _extension(m: _Machine) -> None:
    raise m.unsafe("its pickle asks for an entry of Python's extension registry")


def _text_persistent(m: _Machine) -> None:
    raise m.unsafe("its pickle names a persistent object by a text, which torch never does")


def _persistent(m: _Machine) -> None:
    reference = StorageReference(m.pop())
    m.storages.append(reference)
    m.stack.append(reference)


def _buffer(m: _Machine) -> None:
    raise m.unsafe("its pickle asks for a buffer from outside the file")


def _put(m: _Machine) -> None:
    _remember(m, _memo_index(m))


def _binput(m: _Machine) -> None:
    _remember(m, m.byte())


def _long_binput(m: _Machine) -> None:
    _remember(m, m.number(4))


def _memoize(m: _Machine) -> None:
    _remember(m, len(m.memo))


def _get(m: _Machine) -> None:
    _recall(m, _memo_index(m))


def _binget(m: _Machine) -> None:
    _recall(m, m.byte())


def _long_binget(m: _Machine) -> None:
    _recall(m, m.number(4))


_STOP = ord(".")
_OPERATIONS: dict[bytes, _Operation] = {
    b"\x80": _proto,
    b"\x95": _frame,
    b"(": _mark,
    b"0": _pop,
    b"1": _pop_mark,
    b"2": _dup,
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"I": _int,
    b"L": _long,
    b"J": _binint,
    b"K": _binint1,
    b"M": _binint2,
    b"\x8a": _long_of(1),
    b"\x8b": _long_of(4),
    b"F": _float,
    b"G": _binfloat,
    b"S": _string,
    b"T": _binstring,
    b"U": _short_binstring,
    b"V": _unicode,
    b"X": _text_of(4),
    b"\x8c": _text_of(1),
    b"\x8d": _text_of(8),
    b"B": _bytes_of(4),
    b"C": _bytes_of(1),
    b"\x8e": _bytes_of(8),
    b"\x96": _bytes_of(8),
    b"]": _empty_list,
    b"l": _list,
    b"a": _append,
    b"e": _appends,
    b")": _constant(()),
    b"t": _tuple,
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"}": _empty_dict,
    b"d": _dict,
    b"s": _setitem,
    b"u": _setitems,
    b"\x8f": _empty_set,
    b"\x90": _additems,
    b"\x91": _frozenset,
    b"c": _global,
    b"\x93": _stack_global,
    b"i": _inst,
    b"o": _obj,
    b"R": _reduce,
    b"\x81": _reduce,
    b"\x92": _newobj_ex,
    b"b": _build,
    b"\x82": _extension,
    b"\x83": _extension,
    b"\x84": _extension,
    b"P": _text_persistent,
    b"Q": _persistent,
    b"\x97": _buffer,
    b"\x98": _buffer,
    b"p": _put,
    b"q": _binput,
    b"r": _long_binput,
    b"\x94": _memoize,
    b"g": _get,
    b"h": _binget,
    b"j": _long_binget,
}
_TABLE: tuple[_Operation | None, ...] = tuple(_OPERATIONS.get(bytes([code])) for code in range(256))
