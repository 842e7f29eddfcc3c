"""Mutated tensor files: reading one must end in a FileError or in success.

``formats/test_tensors.py`` runs a short campaign, ``python tests/formats/fuzz_tensors.py`` the long one.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from loraloom.errors import FileError
from loraloom.formats.file_bytes import FileBytes
from loraloom.formats.tensors import TensorFile, _found
from loraloom.formats.zip_file import read_zip
from tensor_corpus import benign, hostile, safetensors, zipped
from work import counted

LARGEST_SEED = 20_000
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
OPCODES = b"(.0123FIJKLMNPQRSTUVXabcdeghijlopqrstu})]" + bytes(range(0x80, 0x99))


class Seeds:
    """The files to start from, and the parts of them that are worth mutating on their own."""

    def __init__(self) -> None:
        good = [data for data, _ in benign().values() if len(data) <= LARGEST_SEED]
        bad = [data for data, _ in hostile().values() if 0 < len(data) <= LARGEST_SEED]
        header = '{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"__metadata__":{"k":"v"}}'
        good += 5 * [safetensors(header, bytes(12))]
        self.whole = (good, bad)
        self.archives = tuple([parts for data in files if (parts := _archive_parts(data))] for files in self.whole)


def _archive_parts(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """The pickle and the storages of a readable archive: a checksum would refuse a mutation of the bytes inside."""
    if not data.startswith(b"PK"):
        return None
    try:
        members = read_zip(memoryview(data), "seed")
    except FileError:
        return None
    content = {name.partition("/")[2]: data[member.start : member.end] for name, member in members.items()}
    storages = [content.get(f"data/{index}", b"") for index in range(sum(name.startswith("data/") for name in content))]
    return (content["data.pkl"], storages) if "data.pkl" in content else None


def mutate(chance: random.Random, seeds: Seeds) -> bytes:
    """One mutated file: any, an archive built anew around a mutated pickle, or one with a header of matching length."""
    kind = chance.random() < 0.3  # mostly start from a file that is fine: more of its reader is reached
    if chance.random() < 0.5:
        archives = seeds.archives[kind]
        pickled, storages = chance.choice(archives)
        return zipped(_mutated(chance, pickled, [pickled for pickled, _ in archives]), *storages)
    data = chance.choice(seeds.whole[kind])
    if data[8:9] == b"{" and chance.random() < 0.7:
        length = int.from_bytes(data[:8], "little")
        header = _mutated(chance, data[8 : 8 + length], seeds.whole[kind])
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return _mutated(chance, data, seeds.whole[kind])


def _mutated(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 1, 2, 4))):
        if not made:
            break
        _mutate_once(chance, made, others)
    return bytes(made)


def _mutate_once(chance: random.Random, made: bytearray, others: list[bytes]) -> None:
    at = chance.randrange(len(made))
    length = min(chance.choice((1, 2, 4, 8, 16, 64)), len(made) - at)
    match chance.randrange(10):
        case 0 | 1:
            made[at] ^= 1 << chance.randrange(8)
        case 2:
            made[at] = chance.randrange(256)
        case 3 | 4:
            made[at] = chance.choice(OPCODES)
        case 5:
            size = chance.choice((1, 2, 4, 8))
            made[at : at + size] = (chance.choice(NUMBERS) & (256**size - 1)).to_bytes(size, "little")
        case 6:
            del made[at : at + length]
        case 7:
            made[at:at] = made[at : at + length] if chance.random() < 0.5 else chance.randbytes(length)
        case 8:
            other = chance.choice(others)
            start = chance.randrange(max(len(other), 1))
            made[at : at + length] = other[start : start + length]
        case _:
            del made[at if chance.random() < 0.3 else len(made) - length :]


def touch(file: TensorFile) -> None:
    """Use everything that a file offers."""
    for name in file:
        info, tensor = file.info(name), file[name]
        if (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape):
            raise AssertionError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not {info}")
        if info.nbytes <= 1 << 20:
            tensor.clone()
        elif info.numel:
            tensor[tuple(length - 1 for length in info.shape)].clone()


class InMemory(FileBytes):
    """A file that was never written."""

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)

    def read(self, start: int, end: int) -> torch.Tensor:
        assert end <= len(self._data)
        return torch.frombuffer(self._data[start:end], dtype=torch.uint8)

    def mapped(self, start: int, end: int) -> torch.Tensor:
        return torch.frombuffer(self._data, dtype=torch.uint8, count=end - start, offset=start)

    def view(self) -> memoryview:
        return memoryview(self._data)

    def close(self) -> None:
        pass


def outcome(data: bytes, path: Path) -> str:
    """``read``, or the class of the error that refused the file. Anything else is raised."""
    try:
        with _found(InMemory(data), path) as file:
            touch(file)
    except FileError as error:
        if "\n" in str(error):
            raise AssertionError(f"a message of several lines: {error!s}") from error
        return type(error).__name__
    return "read"


def work_allowed(nbytes: int) -> int:
    """How many calls the reader may take for a file: a few million, which a lie may cost, and some for each byte."""
    return 4_000_000 + 16 * nbytes


def campaign(
    count: int, seed: int, *, seeds: Seeds | None = None, report: bool = False
) -> tuple[Counter[str], list[bytes]]:
    """Read ``count`` mutations; return how often each outcome came, and the mutations that broke the rule."""
    seeds = seeds or Seeds()
    outcomes: Counter[str] = Counter()
    faults: list[bytes] = []
    started = time.monotonic()
    for index in range(count):
        data = mutate(random.Random(f"{seed}-{index}"), seeds)
        with counted() as work:
            try:
                outcomes[outcome(data, Path("mutation"))] += 1
            except Exception:  # noqa: BLE001 - whatever comes out is the finding
                outcomes["FAULT"] += 1
                faults.append(data)
                if report:
                    traceback.print_exc()
        if work.calls > work_allowed(len(data)):
            outcomes["laborious"] += 1
            if report:
                Path(f"laborious-{seed}-{index}.bin").write_bytes(data)
        if report and (index + 1) % 50_000 == 0:
            print(f"{index + 1} in {time.monotonic() - started:.0f} s: {dict(outcomes)}", flush=True)  # noqa: T201
    return outcomes, faults
