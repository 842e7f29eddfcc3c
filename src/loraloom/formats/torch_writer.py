"""The zip that ``torch.save`` writes since torch 1.6, written without torch's pickling."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import BinaryIO

from loraloom.formats.entries import TensorInfo, contiguous_stride
from loraloom.formats.torch_file import STORAGE_DTYPES
from loraloom.formats.zip_file import ZipWriter

__all__ = ["state_dict_pickle", "write_torch_zip"]

_STORAGE_NAMES = MappingProxyType({dtype: f"torch {name}" for name, dtype in STORAGE_DTYPES.items()})


def write_torch_zip(
    file: BinaryIO,
    infos: Mapping[str, TensorInfo],
    pickle: bytes,
    load: Callable[[str], memoryview],
) -> None:
    """Write the archive around a pickle made by ``state_dict_pickle``; each tensor is loaded once, in order."""
    archive = ZipWriter(file)
    archive.add("archive/data.pkl", len(pickle), lambda: pickle)
    archive.add("archive/byteorder", 6, lambda: b"little")
    for index, (name, info) in enumerate(infos.items()):
        archive.add(f"archive/data/{index}", info.nbytes, partial(load, name), alignment=64)
    archive.add("archive/version", 2, lambda: b"3\n")
    archive.close()


def state_dict_pickle(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], extras: Mapping[str, object]
) -> bytes:
    """The pickle of ``{"state_dict": tensors, **extras, "metadata": metadata}``, in protocol 2.

    It asks only for names that every checker of checkpoints lets through: the rebuilding of tensors, storage types and
    OrderedDict. Raises ValueError for an extra that is not a plain value.
    """
    pieces = [b"\x80\x02}(", _value("state_dict"), b"}("]
    for index, (name, info) in enumerate(infos.items()):
        pieces += [_value(name), _tensor_node(index, info)]
    pieces.append(b"u")
    beside = dict(extras)
    if metadata:
        beside["metadata"] = dict(metadata)
    for key, item in beside.items():
        if key not in ("state_dict", "root"):
            pieces += [_value(key), _value(item)]
    pieces.append(b"u.")
    return b"".join(pieces)


def _tensor_node(index: int, info: TensorInfo) -> bytes:
    name = _STORAGE_NAMES.get(info.dtype)
    storage = _global(name or "torch.storage UntypedStorage")
    count = info.numel if name else info.nbytes
    reference = b"(" + _value("storage") + storage + _value(str(index)) + _value("cpu") + _value(count) + b"tQ"
    sizes = _value(info.shape) + _value(contiguous_stride(info.shape))
    dtype = b"" if name else _global(str(info.dtype).replace(".", " "))
    rebuild = _global(f"torch._utils _rebuild_tensor_v{2 if name else 3}")
    hooks = _global("collections OrderedDict") + b")R"
    return rebuild + b"(" + reference + _value(0) + sizes + b"\x89" + hooks + dtype + b"tR"


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode("ascii") + b"\n"


def _value(value: object) -> bytes:
    """Plain values in protocol 2."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode("utf-8")
        return b"X" + len(raw).to_bytes(4, "little") + raw
    if isinstance(value, list | tuple):
        opened, closed = (b"](", b"e") if isinstance(value, list) else (b"(", b"t")
        return opened + b"".join(map(_value, value)) + closed
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_value(key) + _value(item) for key, item in value.items()) + b"u"
    raise ValueError(f"a value of the type {type(value).__name__} cannot be stored beside the tensors")


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + value.to_bytes(2, "little")
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) > 255:
        raise ValueError("a number of more than 255 bytes cannot be stored beside the tensors")
    return b"\x8a" + bytes([len(raw)]) + raw
