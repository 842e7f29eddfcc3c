"""The forms that ``torch.save`` writes: a zip since torch 1.6, before that a stream of pickles and raw bytes.

The pickles are read as data (see ``pickles``); tensors are found in them and located in the file, never built here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType

import torch

from loraloom.errors import FileFormatError, UnsafeFileError
from loraloom.formats.entries import (
    MAX_ELEMENTS,
    MAX_NAME,
    MAX_TENSORS,
    Checksum,
    Contents,
    Entry,
    TensorInfo,
    check_name,
    check_shape,
    contiguous_stride,
    show,
)
from loraloom.formats.pickle_nodes import Global, Inert, StorageReference, is_plain, numpy_type, raw_bytes
from loraloom.formats.pickles import read_pickle
from loraloom.formats.zip_file import Member, read_zip

__all__ = ["STORAGE_DTYPES", "looks_like_torch", "read_torch"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_DEPTH = 32
MAX_NODES = 250_000
MAX_REPEATED_BYTES = 64 * 2**20

STORAGE_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
        "ComplexDoubleStorage": torch.complex128,
    }
)
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_PLAIN_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        str(dtype): dtype
        for dtype in (
            *STORAGE_DTYPES.values(),
            torch.uint16,
            torch.uint32,
            torch.uint64,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
            torch.float8_e4m3fnuz,
            torch.float8_e5m2fnuz,
            torch.float8_e8m0fnu,
        )
    }
)
_NUMPY_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "b1": torch.bool,
        "i1": torch.int8,
        "i2": torch.int16,
        "i4": torch.int32,
        "i8": torch.int64,
        "u1": torch.uint8,
        "u2": torch.uint16,
        "u4": torch.uint32,
        "u8": torch.uint64,
        "f2": torch.float16,
        "f4": torch.float32,
        "f8": torch.float64,
    }
)
_DAMAGED = "the file is damaged or was not downloaded completely"
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class _Storage:
    """A run of elements of one type (None: bytes of any type) in the file."""

    dtype: torch.dtype | None
    start: int
    nbytes: int


def looks_like_torch(view: memoryview) -> bool:
    """Whether the file begins like a zip, a tar archive or a pickle (of any protocol)."""
    head = bytes(view[:9])
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or bytes(view[257:262]) == b"ustar":
        return True
    if head[4:] == b"\0\0\0\0{":  # a safetensors file whose header happens to be 128 + 256 n bytes long
        return False
    return (head[:1] == b"\x80" and head[1:2] <= b"\5") or (head[:1] in _TEXT_OPCODES and head[4:8] != bytes(4))


_TEXT_OPCODES = (b"(", b")", b"]", b"}", b"c", b"N", b"I", b"L", b"F", b"S", b"V", b"i")


def read_torch(view: memoryview, where: str) -> Contents:
    """Find the tensors of a file that torch wrote. Raises FileFormatError or UnsafeFileError."""
    if bytes(view[:2]) == b"PK":
        return _read_zip(view, where)
    if bytes(view[257:262]) == b"ustar":
        raise FileFormatError(
            f"{where}: is a tar archive, the form of torch before 0.1.10 or no checkpoint at all",
            "load and save it with the program that made it, or get the file as .safetensors",
        )
    return _read_legacy(view, where)


# ---------------------------------------------------------------------------------------------------------------------
# zip


def _read_zip(view: memoryview, where: str) -> Contents:
    members = read_zip(view, where)
    folder = next(iter(members)).partition("/")[0] if members else ""
    parts = {name.removeprefix(f"{folder}/"): member for name, member in members.items()}
    for name, member in parts.items():
        _check_member(name, member, folder, view, where)
    if "data.pkl" not in parts:
        raise FileFormatError(f"{where}: is a zip archive without data.pkl, so torch did not write it")
    _check_byte_order(parts, view, where)

    part = parts["data.pkl"]
    pickle = read_pickle(view[part.start : part.end], where)
    if pickle.end != part.end - part.start:
        raise UnsafeFileError(f"{where}: data.pkl has bytes after its pickle")

    # Data that the pickle does not mention could be anything: a file is understood as a whole, or not at all.
    storages = _Storages(where)
    for reference in pickle.storages:
        declared = _declared_storage(reference, where, members=5)
        data = parts.get(f"data/{declared.key}")
        if data is None:
            raise FileFormatError(f"{where}: the tensor data {show(declared.key)} are missing", _DAMAGED)
        if data.end - data.start != declared.nbytes:
            raise FileFormatError(
                f"{where}: the tensor data {show(declared.key)} have {data.end - data.start} bytes "
                f"where {declared.nbytes} were declared",
                _DAMAGED,
            )
        storages.add(declared, data.start)
        storages.refer(reference, declared.key)
    if unused := set(parts) - {f"data/{key}" for key in storages.keys} - _SMALL_MEMBERS:
        raise UnsafeFileError(f"{where}: its zip holds {show(min(unused))}, which its pickle never mentions")

    contents = _Finder(storages, where).contents("zip", pickle.value)
    contents.checksums = [Checksum(each.name, each.start, each.end, each.checksum) for each in members.values()]
    return contents


def _check_member(name: str, member: Member, folder: str, view: memoryview, where: str) -> None:
    """Only what torch writes, in one folder; the small members must match their checksums."""
    if name in ("constants.pkl", "attributes.pkl") or name.startswith("code/"):
        raise UnsafeFileError(f"{where}: is a TorchScript program, not a checkpoint")
    is_data = name.startswith("data/") and name[5:].isascii() and name[5:].isdigit()
    if member.name != f"{folder}/{name}" or not (is_data or name in _SMALL_MEMBERS):
        raise UnsafeFileError(f"{where}: its zip holds {show(member.name)}, which torch never writes")
    if not is_data and zlib.crc32(view[member.start : member.end]) != member.checksum:
        raise FileFormatError(f"{where}: its member {show(member.name)} is damaged", _DAMAGED)


_SMALL_MEMBERS = frozenset(
    {"data.pkl", "version", "byteorder", ".data/serialization_id", ".format_version", ".storage_alignment"}
)


def _check_byte_order(parts: Mapping[str, Member], view: memoryview, where: str) -> None:
    order = parts.get("byteorder")
    if order is not None and bytes(view[order.start : min(order.end, order.start + 16)]) != b"little":
        raise FileFormatError(f"{where}: was written by a big-endian machine", "save it again on an ordinary computer")


# ---------------------------------------------------------------------------------------------------------------------
# the stream of torch before 1.6


def _read_legacy(view: memoryview, where: str) -> Contents:
    first = read_pickle(view, where)
    if first.value != LEGACY_MAGIC:
        raise _bare_pickle(first.value, where)

    protocol = read_pickle(view, where, first.end)
    system = read_pickle(view, where, protocol.end)
    if protocol.value != LEGACY_PROTOCOL or type(system.value) is not dict:
        raise FileFormatError(f"{where}: is of an unknown version of torch's old format")
    if system.value.get("little_endian") is not True:
        raise FileFormatError(f"{where}: was written by a big-endian machine", "save it again on an ordinary computer")

    # Pickles follow one another without lengths: each begins where the one before was read to its end.
    pickle = read_pickle(view, where, system.end)
    keys = read_pickle(view, where, pickle.end)
    declared = [_declared_storage(reference, where) for reference in pickle.storages]
    roots = {storage.key: storage for storage in declared}
    if type(keys.value) is not list or any(type(key) is not str for key in keys.value):
        raise FileFormatError(f"{where}: its list of tensor data is damaged", _DAMAGED)
    if len(keys.value) != len(roots) or set(keys.value) != set(roots):
        raise FileFormatError(f"{where}: its list of tensor data does not match its tensors", _DAMAGED)

    # The order of the list is that of the bytes; every entry is its length in elements, then the elements.
    storages = _Storages(where)
    position = keys.end
    for key in keys.value:
        start = position + 8
        position = start + roots[key].nbytes
        if position > len(view):
            raise FileFormatError(f"{where}: ends before its tensor data do", _DAMAGED)
        if int.from_bytes(view[start - 8 : start], "little") != roots[key].numel:
            raise FileFormatError(f"{where}: the tensor data {show(key)} have another length than declared", _DAMAGED)
        storages.add(roots[key], start)

    if position != len(view):
        raise FileFormatError(f"{where}: {len(view) - position} bytes follow its last tensor", _DAMAGED)
    for reference, storage in zip(pickle.storages, declared, strict=True):
        storages.add_part(reference, storage)
    return _Finder(storages, where).contents("legacy", pickle.value)


def _bare_pickle(value: object, where: str) -> FileFormatError:
    if type(value) is Global or type(value) is Inert:
        return UnsafeFileError(f"{where}: is a pickle of {show(value.name)}, not a file of tensors")
    return FileFormatError(f"{where}: is a plain pickle without torch's tensors", "expected a checkpoint or a LoRA")


# ---------------------------------------------------------------------------------------------------------------------
# storages


@dataclass(frozen=True)
class _Declared:
    """A storage as the pickle describes it."""

    key: str
    dtype: torch.dtype | None
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * (self.dtype.itemsize if self.dtype else 1)


def _declared_storage(reference: StorageReference, where: str, *, members: int = 6) -> _Declared:
    """Read ``("storage", type, key, device, number of elements)``; a sixth member belongs to the old stream."""
    value = reference.value
    if type(value) is not tuple or not 5 <= len(value) <= members or value[0] != "storage":
        raise UnsafeFileError(f"{where}: refers to something outside its pickle that is not tensor data")

    _, kind, key, device, numel = value[:5]
    if type(kind) is not Global or type(key) is not str or len(key) > 64 or type(device) is not str:
        raise FileFormatError(f"{where}: a reference to tensor data is damaged", _DAMAGED)

    # Only torch's own storages: their names fix the type of the bytes, and nothing is imported to find it.
    module, _, name = kind.name.rpartition(".")
    if module not in _STORAGE_MODULES or not (name in STORAGE_DTYPES or name == "UntypedStorage"):
        raise FileFormatError(f"{where}: holds tensor data of the unknown type {kind.name}")

    if type(numel) is not int or not 0 <= numel <= MAX_ELEMENTS:
        raise FileFormatError(f"{where}: the tensor data {show(key)} have an impossible length", _DAMAGED)
    return _Declared(key, STORAGE_DTYPES.get(name), numel)


class _Storages:
    """Where the bytes lie that the pickle's references stand for."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._by_key: dict[str, _Storage] = {}
        self._by_reference: dict[StorageReference, _Storage] = {}

    @property
    def keys(self) -> Set[str]:
        """The keys of all storages."""
        return self._by_key.keys()

    def add(self, declared: _Declared, start: int) -> None:
        """Note where a storage begins; declared again, it must be the same."""
        storage = _Storage(declared.dtype, start, declared.nbytes)
        if self._by_key.setdefault(declared.key, storage) != storage:
            raise FileFormatError(f"{self.where}: the tensor data {show(declared.key)} are declared twice, differently")

    def refer(self, reference: StorageReference, key: str) -> None:
        self._by_reference[reference] = self._by_key[key]

    def add_part(self, reference: StorageReference, declared: _Declared) -> None:
        """A reference of the old stream; its sixth member may name a part (key, first element, elements) of a root."""
        root = self._by_key[declared.key]
        if (root.dtype, root.nbytes) != (declared.dtype, declared.nbytes):
            raise FileFormatError(f"{self.where}: the tensor data {show(declared.key)} are declared twice, differently")

        value = reference.value
        part = value[5] if type(value) is tuple and len(value) == 6 else None
        if part is None:
            self._by_reference[reference] = root
            return
        if type(part) is not tuple or len(part) != 3 or any(type(number) is not int for number in part[1:]):
            raise FileFormatError(f"{self.where}: a reference to tensor data is damaged", _DAMAGED)

        # A part is given in elements of its root. Beyond the root lie bytes of another tensor.
        itemsize = root.dtype.itemsize if root.dtype else 1
        first, length = part[1] * itemsize, part[2] * itemsize
        if first < 0 or length < 0 or first + length > root.nbytes:
            raise FileFormatError(f"{self.where}: a part of the tensor data reaches beyond them", _DAMAGED)
        self._by_reference[reference] = _Storage(root.dtype, root.start + first, length)

    def of(self, reference: object) -> _Storage:
        storage = self._by_reference.get(reference) if type(reference) is StorageReference else None
        if storage is None:
            raise FileFormatError(f"{self.where}: a tensor has no tensor data", _DAMAGED)
        return storage


# ---------------------------------------------------------------------------------------------------------------------
# tensors


class _Finder:
    """Walks what a pickle holds and names every tensor in it.

    Weights are a dictionary or list that holds tensors, all inside it, and all inside a ``state_dict``. Among them only
    tensors, numbers and texts are understood, and anything else is refused by name: passed over, it would be a weight
    that is silently missing. What stands beside weights (callbacks, optimizers, settings) may be any inert object.
    """

    def __init__(self, storages: _Storages, where: str) -> None:
        self.storages = storages
        self.where = where
        self.entries: dict[str, Entry] = {}
        self.extras: dict[str, object] = {}
        self.metadata: dict[str, str] = {}
        self.nodes = 0

    def contents(self, kind: str, value: object) -> Contents:
        """Tensors by dotted name; of a dictionary with a ``state_dict``, that one's, and the plain values beside it."""
        among = False
        for _ in range(MAX_DEPTH):
            if type(value) is not dict or type(value.get("state_dict")) is not dict:
                break
            self._keep_beside(value)
            value, among = value["state_dict"], True
        if type(value) in (list, tuple):
            self.extras["root"] = "list"
        elif type(value) is Inert and (entry := self._tensor(value)):
            self.extras["root"] = "tensor"
            self.entries["tensor"] = entry
        if not self.entries:
            self._walk(value, "", 0, among=among)
        if not self.entries:
            raise FileFormatError(f"{self.where}: holds no tensors", "expected a checkpoint or a LoRA")
        return Contents(kind, self.entries, self.metadata, self.extras)

    def _keep_beside(self, value: dict[object, object]) -> None:
        for key, item in value.items():
            if type(key) is str and len(key) <= MAX_NAME and type(item) in _PLAIN:
                self.extras[key] = item
        metadata = value.get("metadata")
        if type(metadata) is dict:
            self.metadata |= {k: v for k, v in metadata.items() if type(k) is str and type(v) is str}

    def _walk(self, value: object, name: str, depth: int, *, among: bool) -> None:
        """``among``: whether this stands among weights."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise UnsafeFileError(f"{self.where}: unfolds to more than {MAX_NODES} values", _DAMAGED)
        if depth > MAX_DEPTH:
            raise UnsafeFileError(f"{self.where}: is nested too deeply or contains itself", _DAMAGED)

        # Among weights everything has to be understood, or a tensor could be passed over; elsewhere it is only
        # data.
        if type(value) is dict:
            among = among or _holds_tensors(value.values())
            for key, item in value.items():
                if type(key) is str or type(key) is int:
                    self._walk(item, self._join(name, key), depth + 1, among=among)
                elif among and not is_plain(item):
                    raise self._not_understood(name or "the whole", f"named by {_meaning(key)}")
        elif type(value) is list or type(value) is tuple:
            self._walk_list(value, name, depth, among=among)
        elif type(value) is Inert:
            self._walk_node(value, name, depth, among=among)
        elif type(value) in _PLAIN:
            self.extras[name] = value
        elif among and value is not None and type(value) is not bytes:
            raise self._not_understood(name, _meaning(value))

    def _walk_list(self, value: Sequence[object], name: str, depth: int, *, among: bool) -> None:
        """A list holds tensors or other things: numbers between its tensors would move those behind them."""
        has_tensors = _holds_tensors(value)
        for index, item in enumerate(value):
            place = self._join(name, index)
            if has_tensors and type(item) in (*_PLAIN, bytes, type(None)):
                raise self._not_understood(place, _meaning(item))
            if type(item) not in _PLAIN:
                self._walk(item, place, depth + 1, among=among or has_tensors)

    def _walk_node(self, value: Inert, name: str, depth: int, *, among: bool) -> None:
        if value.name == "torch.nn.modules.container.ParameterDict":
            self._walk(_parameters(value), name, depth + 1, among=True)
        elif entry := self._tensor(value):
            self._add(name, entry)
        elif among and not (_is_size(value) or _is_array_of_texts(value)):
            raise self._not_understood(name, _meaning(value))

    def _not_understood(self, name: str, meaning: str) -> UnsafeFileError:
        return UnsafeFileError(
            f"{self.where}: {show(name)} among its tensors is {meaning}, which cannot be understood as weights",
            "save the weights alone, or get the file as .safetensors",
        )

    def _join(self, name: str, key: str | int) -> str:
        length = len(name) + (len(key) if type(key) is str else 0)
        if length > MAX_NAME:
            raise UnsafeFileError(f"{self.where}: a name in it is {length} characters long")
        return f"{name}.{key}" if name else str(key)

    def _add(self, name: str, entry: Entry) -> None:
        if problem := check_name(name):
            raise FileFormatError(f"{self.where}: {problem}")
        if name in self.entries:
            raise FileFormatError(f"{self.where}: holds two tensors named {show(name)}")
        if len(self.entries) >= MAX_TENSORS:
            raise UnsafeFileError(f"{self.where}: holds more than {MAX_TENSORS} tensors")
        self.entries[name] = entry

    def _tensor(self, node: Inert) -> Entry | None:
        """The tensor that a node would have been built into, or None if it is not a tensor."""
        node = self._unwrapped(node)
        if node.name in _REBUILD:
            return self._rebuilt(node)
        if node.name == "numpy.core.multiarray._reconstruct" and type(node.state) is tuple and len(node.state) == 5:
            _, shape, dtype, is_fortran, data = node.state
            return self._array(data, dtype, shape, is_fortran is True)
        if node.name == "numpy.core.numeric._frombuffer" and len(node.args) == 4:
            data, dtype, shape, order = node.args
            return self._array(data, dtype, shape, order == "F")
        return None

    def _unwrapped(self, node: Inert) -> Inert:
        """The tensor inside a parameter. Whatever else belongs to it must have no effect on its values."""
        for _ in range(4):
            args = node.args
            if node.name in _PARAMETER and args and type(args[0]) is Inert:
                if len(args) != _PARAMETER[node.name] or type(args[1]) is not bool or args[2] or not is_plain(args[3:]):
                    raise self._strange(node)
                node = args[0]
            elif node.name == "torch._tensor._rebuild_from_type_v2":
                node = self._of_type(node)
            else:
                return node
        return node

    def _of_type(self, node: Inert) -> Inert:
        """The call inside ``_rebuild_from_type_v2(function, type, arguments, attributes)``."""
        if len(node.args) != 4:
            raise self._strange(node)
        function, kind, inner, attributes = node.args
        is_known = type(kind) is Global and kind.name in _TENSOR_TYPES
        if type(function) is not Global or not is_known or type(inner) is not tuple or not is_plain(attributes):
            raise self._strange(node)
        return Inert(function.name, inner)

    def _strange(self, node: Inert) -> UnsafeFileError:
        return UnsafeFileError(f"{self.where}: a tensor in it is made by {node.name} in a way that torch never does")

    def _rebuilt(self, node: Inert) -> Entry:
        args = node.args
        least, most = _REBUILD[node.name]
        if not least <= len(args) <= most:
            raise self._damaged("is described by the wrong number of values")

        # The fifth and sixth values are requires_grad and backward hooks. Hooks are code, so there must be none.
        if len(args) > 4 and (type(args[4]) is not bool or args[5]):
            raise self._strange(node)

        storage = self.storages.of(args[0])
        dtype = storage.dtype or torch.uint8
        if node.name.endswith("_v3"):
            dtype = self._plain_dtype(args[6])
        if len(args) == most and most > 4 and args[-1]:
            raise UnsafeFileError(f"{self.where}: a tensor in it is conjugated or negated on reading")

        shape, stride = _whole_numbers(args[2]), _whole_numbers(args[3])
        if problem := check_shape(shape):
            raise self._damaged(f"cannot be read, {problem}")
        offset = args[1]
        if type(offset) is not int or not 0 <= offset <= MAX_ELEMENTS or len(stride or ()) != len(shape or ()):
            raise self._damaged("has a place or strides that cannot be")
        return self._entry(storage, TensorInfo(dtype, shape or ()), offset, stride or ())

    def _entry(self, storage: _Storage, info: TensorInfo, offset: int, stride: tuple[object, ...]) -> Entry:
        steps = tuple(step for step in stride if type(step) is int and 0 <= step <= MAX_ELEMENTS)
        if len(steps) != len(stride):
            raise self._damaged("has a place or strides that cannot be")

        # Strides can reach past a tensor's own bytes, or make a few of them into a huge tensor.
        reach = (
            sum((length - 1) * step for length, step in zip(info.shape, steps, strict=True)) + 1 if info.numel else 0
        )
        itemsize = info.dtype.itemsize
        if (offset + reach) * itemsize > storage.nbytes:
            raise self._damaged("reaches beyond its tensor data")
        if info.nbytes > max(storage.nbytes, MAX_REPEATED_BYTES):
            raise UnsafeFileError(f"{self.where}: a tensor repeats a few bytes up to {info.nbytes}")

        start = storage.start + offset * itemsize
        is_plain = all(
            length <= 1 or step == usual
            for length, step, usual in zip(info.shape, steps, contiguous_stride(info.shape), strict=True)
        )
        return Entry(info, start, start + reach * itemsize, None if is_plain else steps)

    def _plain_dtype(self, value: object) -> torch.dtype:
        dtype = _PLAIN_DTYPES.get(value.name) if type(value) is Global else None
        if dtype is None:
            raise self._damaged("is of an unknown type")
        return dtype

    def _array(self, data: object, dtype: object, shape: object, is_fortran: bool) -> Entry | None:
        """An array of numbers of numpy; other arrays (texts, objects, big-endian) are not tensors."""
        described, content = numpy_type(dtype), raw_bytes(data)
        if described is None or content is None or (described[0] == ">" and described[1][1:] != "1"):
            return None
        if check_shape(lengths := _whole_numbers(shape)):
            raise self._damaged("cannot be read, its shape is damaged")
        info = TensorInfo(_NUMPY_DTYPES[described[1]], lengths or ())
        if info.nbytes != len(content):
            raise self._damaged("reaches beyond its tensor data")
        stride = tuple(reversed(contiguous_stride(tuple(reversed(info.shape))))) if is_fortran else None
        return Entry(info, 0, len(content), stride, content)

    def _damaged(self, problem: str) -> FileFormatError:
        return FileFormatError(f"{self.where}: a tensor in it {problem}", _DAMAGED)


_REBUILD = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": (4, 4),
        "torch._utils._rebuild_tensor_v2": (6, 7),
        "torch._utils._rebuild_tensor_v3": (7, 8),
    }
)


_PARAMETER = MappingProxyType({"torch._utils._rebuild_parameter": 3, "torch._utils._rebuild_parameter_with_state": 4})
"""How many values each takes: the tensor, whether it is trained, hooks, and attributes."""
_TENSOR_TYPES = frozenset({"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"})
_ARRAYS = frozenset({"numpy.core.multiarray._reconstruct", "numpy.core.numeric._frombuffer"})
_TENSOR_MAKERS = _ARRAYS | set(_REBUILD) | set(_PARAMETER) | {"torch._tensor._rebuild_from_type_v2"}


def _holds_tensors(values: Iterable[object]) -> bool:
    """Whether a tensor is directly among these."""
    for value in values:  # noqa: SIM110 - a file can hold many small dictionaries, and a generator costs more than it
        if type(value) is Inert and value.name in _TENSOR_MAKERS:
            return True
    return False


def _is_size(node: Inert) -> bool:
    return node.name == "torch.Size" and _whole_numbers(node) is not None


def _is_array_of_texts(node: Inert) -> bool:
    """An array of numpy that holds texts or objects, which are notes and not weights."""
    dtype = node.state[2] if type(node.state) is tuple and len(node.state) == 5 else None
    kind = dtype.args[0] if type(dtype) is Inert and dtype.args else None
    return node.name in _ARRAYS and type(kind) is str and kind[:1] in ("O", "U", "S")


def _meaning(value: object) -> str:
    """What was found where a tensor is expected, for people."""
    if type(value) is Inert:
        array = "an array of numpy in an order of bytes or of a type that no tensor has"
        return array if value.name in _ARRAYS else f"an object of {show(value.name)}"
    if type(value) is Global:
        return f"the name {show(value.name)}"
    if type(value) is StorageReference:
        return "tensor data without a tensor"
    return f"something of the type {type(value).__name__}"


def _parameters(node: Inert) -> object:
    """The parameters in a ParameterDict (textual inversion files have one)."""
    return node.state.get("_parameters") if type(node.state) is dict else None


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    """A tuple of whole numbers, also from a torch.Size node, or None."""
    if type(value) is Inert and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if type(value) is not tuple or any(type(number) is not int for number in value):
        return None
    return value
