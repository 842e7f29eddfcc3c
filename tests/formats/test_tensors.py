"""Tensor files: what programs write is read bit for bit, what lies is refused, what we write others read."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import pickletools
import re
import sys
import tracemalloc
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import tensor_corpus
from loraloom.errors import FileError, FileFormatError, MissingFileError, OutputError, UnsafeFileError
from loraloom.formats.file_bytes import FileBytes
from loraloom.formats.tensors import TensorFile, TensorInfo, TensorSource, is_finite, open_tensors, write_tensors
from tensor_mutations import campaign, touch, work_allowed
from work import counted

BENIGN = tensor_corpus.benign()
HOSTILE = tensor_corpus.hostile()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert bits(found) == bits(expected)


def written(folder: Path, data: bytes, name: str = "file.ckpt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


SAMPLE = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.half": torch.tensor([1.5, -2.0, 65504.0], dtype=torch.float16),
    "a.brain": torch.tensor([[1.0, 3.0e38]], dtype=torch.bfloat16),
    "a.eighth": torch.arange(5, dtype=torch.float32).to(torch.float8_e4m3fn),
    "ids": torch.tensor([[0, 2**62]]),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(0.5, dtype=torch.float64),
    "nothing": torch.empty(0, 3, dtype=torch.float16),
    "überschrift": torch.tensor([7], dtype=torch.uint8),
}


# ---------------------------------------------------------------------------------------------------------------------
# reading what others wrote


@pytest.mark.parametrize("name", BENIGN)
def test_benign_files_bit_for_bit(name: str, tmp_path: Path) -> None:
    data, expected = BENIGN[name]
    path = written(tmp_path, data, "file.anything")
    assert not {"pytorch_lightning", "omegaconf"} & sys.modules.keys()
    with open_tensors(path) as file:
        assert list(file) == list(expected)
        for key, tensor in expected.items():
            assert file.info(key) == TensorInfo(tensor.dtype, tuple(tensor.shape))
            assert_same(file[key], tensor)
            assert_same(file.mapped(key), tensor)
            file.check(key)
        file.verify()
    assert path.read_bytes() == data


def test_counters_are_kept_beside_the_tensors(tmp_path: Path) -> None:
    for name in ("lightning", "lightning, legacy", "lightning, protocol 4"):
        with open_tensors(written(tmp_path, BENIGN[name][0])) as file:
            assert file.extras == {
                "epoch": 2,
                "global_step": 1000,
                "pytorch-lightning_version": "1.4.2",
                "hparams_name": "kwargs",
            }
    with open_tensors(written(tmp_path, BENIGN["numpy scalars, protocol 2"][0])) as file:
        assert file.extras == {"best": 0.25, "half": 1.5, "n": -3, "flag": True}
    with open_tensors(written(tmp_path, BENIGN["list"][0])) as file:
        assert file.extras == {"root": "list"}


def test_kind_comes_from_the_content(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "a.ckpt")
    assert open_tensors(tmp_path / "a.ckpt").kind == "safetensors"
    assert open_tensors(written(tmp_path, BENIGN["plain zip"][0], "b.safetensors")).kind == "zip"
    assert open_tensors(written(tmp_path, BENIGN["legacy stream"][0], "c.safetensors")).kind == "legacy"


def test_safetensors_of_the_reference_library(tmp_path: Path) -> None:
    safetensors.torch.save_file(SAMPLE, tmp_path / "a.safetensors", metadata={"format": "pt", "ü": "重み"})
    with open_tensors(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"format": "pt", "ü": "重み"}
        assert set(file) == set(SAMPLE)
        for name, tensor in SAMPLE.items():
            assert_same(file[name], tensor)


@pytest.mark.parametrize("shift", range(8))
def test_tensors_that_are_not_aligned(shift: int, tmp_path: Path) -> None:
    header = '{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}' + " " * shift
    path = written(tmp_path, tensor_corpus.safetensors(header, tensor_corpus.STORAGE))
    assert_same(open_tensors(path)["w"], torch.tensor([1.0, 2.0, 3.0]))


def test_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    for length in (0x280, 0x480):
        header = '{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'.ljust(length)
        path = written(tmp_path, tensor_corpus.safetensors(header, tensor_corpus.STORAGE))
        assert open_tensors(path).kind == "safetensors"


def test_part_of_a_legacy_storage(tmp_path: Path) -> None:
    more = b"(" + tensor_corpus.text("v") + tensor_corpus.whole(1) + tensor_corpus.whole(2) + b"t"
    pickled = b"\x80\x02]" + tensor_corpus.tensor_node((2,), more=more) + b"a."
    data = tensor_corpus.legacy(pickled, ["0"], (3).to_bytes(8, "little") + tensor_corpus.STORAGE)
    assert_same(open_tensors(written(tmp_path, data))["0"], torch.tensor([2.0, 3.0]))


def test_changing_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    for name in ("plain zip", "legacy stream"):
        path = written(tmp_path, BENIGN[name][0])
        file = open_tensors(path)
        file["model.weight"].fill_(7.0)
        assert file.mapped("model.weight").ne(7.0).any()
        file.mapped("model.weight").fill_(7.0)
        assert path.read_bytes() == BENIGN[name][0]


def test_tensors_outlive_the_file_object(tmp_path: Path) -> None:
    path = written(tmp_path, BENIGN["plain zip"][0])
    with open_tensors(path) as file:
        tensor = file["model.weight"]
    with pytest.raises(FileError, match="closed"):
        file["model.weight"]
    del file
    gc.collect()
    assert_same(tensor, BENIGN["plain zip"][1]["model.weight"])
    path.unlink()


def test_views_share_the_mapping_and_each_its_own_storage(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.ckpt", {"w": torch.zeros(1000), "v": torch.ones(10)})
    file = open_tensors(tmp_path / "a.ckpt")
    first, second = file.mapped("w"), file.mapped("w")
    assert first.data_ptr() == second.data_ptr()
    assert first.untyped_storage().nbytes() == 4000
    assert first.data_ptr() % 64 == 0
    assert file["w"].data_ptr() != first.data_ptr()


def test_missing_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no\.ckpt"):
        open_tensors(tmp_path / "no.ckpt")
    with pytest.raises(FileFormatError, match="is a folder"):
        open_tensors(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileFormatError, match="not an ordinary file"):
            open_tensors(tmp_path / "pipe")


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.ckpt", {"w": torch.zeros(1000)})
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    with (
        open_tensors(written(tmp_path, bytes(data))) as file,
        pytest.raises(FileFormatError, match="'archive/data/0' is"),
    ):
        file.verify()


@pytest.mark.parametrize(
    "kind",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize("place", [0, 37, 100_002])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(kind: torch.dtype, place: int) -> None:
    tensor = torch.randn(100_003).to(kind)
    assert is_finite(tensor)
    for value in (math.nan, math.inf, -math.inf):
        if kind == torch.float8_e4m3fn and math.isinf(value):
            continue  # it has no infinity
        tensor[place] = value
        assert not is_finite(tensor)
        assert not is_finite(tensor[:100_000].reshape(100, -1).T) or place > 100_000


def test_what_cannot_be_infinite_is_finite() -> None:
    for tensor in (torch.empty(0, 3), torch.tensor([2**62]), torch.tensor([True]), torch.full((9,), 65504.0).half()):
        assert is_finite(tensor)
    assert is_finite(torch.full((9,), 3.4e38))  # their sum is infinite


def flipped(path: Path, tensor: torch.Tensor) -> None:
    """Change one bit of a tensor in a file."""
    data, raw = bytearray(path.read_bytes()), bits(tensor)
    place = data.index(raw) + len(raw) // 3
    data[place] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_bit_is_found_when_its_tensor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    tensors = {name: torch.randn(7, 30) for name in ("first", "second", "third")}
    write_tensors(path, tensors)
    flipped(path, tensors["second"])
    for read in (TensorFile.__getitem__, TensorFile.check):
        with open_tensors(path) as file:
            read(file, "first")
            with pytest.raises(FileFormatError, match="'archive/data/1' is damaged") as caught:
                read(file, "second")
            assert "the tensor 'second'" in caught.value.problem
            assert caught.value.hint == "download or copy the file again"
            read(file, "third")


def test_a_flipped_bit_is_found_in_a_part_that_several_tensors_share(tmp_path: Path) -> None:
    whole = torch.randn(40, 5)
    torch.save({"a": whole[:10], "b": whole[10:], "c": whole.T}, tmp_path / "a.pt")
    path = tmp_path / "a.pt"
    flipped(path, whole)
    with open_tensors(path) as file:
        for name in ("a", "b", "c"):
            with pytest.raises(FileFormatError, match="is damaged"):
                file[name]


def test_what_was_checked_once_is_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    crc32 = zlib.crc32
    write_tensors(tmp_path / "a.ckpt", {"a": torch.zeros(300), "b": torch.zeros(70)})
    file = open_tensors(tmp_path / "a.ckpt")
    monkeypatch.setattr(zlib, "crc32", lambda data, start=0: (counted.append(len(data)), crc32(data, start))[1])
    taken: list[int] = []
    read = FileBytes.read
    monkeypatch.setattr(FileBytes, "read", lambda *place: (taken.append(place[2] - place[1]), read(*place))[1])
    file["a"], file["a"], file.check("a"), file.check("b"), file["b"]
    assert counted == [1200, 280]
    assert taken == [1200, 1200, 280, 280], "what is read to be used is checked as it is, and not read for that again"
    file.mapped("a")
    assert len(counted) == 2 and len(taken) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody shorten a mapped file")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_tensors(path, {"a": torch.zeros(30_000), "b": torch.ones(30_000)})
    with open_tensors(path) as file:
        os.truncate(path, 200_000)
        assert_same(file["a"], torch.zeros(30_000))
        for read in (file.__getitem__, file.mapped):
            with pytest.raises(FileFormatError, match="has become shorter while it was being read") as caught:
                read("b")
            assert str(path) in caught.value.problem


# ---------------------------------------------------------------------------------------------------------------------
# refusing what lies

audited: list[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if audited is not None:
        audited.append(event)


sys.addaudithook(_audit)
FORBIDDEN = re.compile(r"import|exec|compile|os\.(?!scandir|listdir)|subprocess|pickle|socket|shutil|ctypes|marshal")


@pytest.fixture
def events() -> Iterator[list[str]]:
    """What Python's audit hooks report while a file is read."""
    global audited
    audited = []
    yield audited
    audited = None


def test_hostile_corpus_is_large() -> None:
    assert len({data for data, _ in HOSTILE.values()}) == len(HOSTILE) >= 200


def test_controls_of_the_hostile_corpus(tmp_path: Path) -> None:
    """The frames around the lies are sound: each lie is refused for what it says, not for its frame."""
    frames = {
        "tensor_file": tensor_corpus.tensor_file(),
        "with_tensor": tensor_corpus.with_tensor(b"N"),
        "safetensors": tensor_corpus.one_tensor(),
        "python zip": tensor_corpus._python_zip(tensor_corpus._good_members()),
        "legacy": tensor_corpus.legacy(
            b"\x80\x02}" + tensor_corpus.text("w") + tensor_corpus.tensor_node(more=b"N") + b"s.",
            ["0"],
            (3).to_bytes(8, "little") + tensor_corpus.STORAGE,
        ),
    }
    for data in frames.values():
        with open_tensors(written(tmp_path, data)) as file:
            assert_same(file["w"], torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(
    name: str, tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, words = HOSTILE[name]
    path = written(tmp_path, data)
    monkeypatch.chdir(tmp_path)
    events.clear()
    with counted() as work, pytest.raises(FileFormatError) as caught:
        open_tensors(path)
    assert not [event for event in events if FORBIDDEN.match(event)]
    message = str(caught.value)
    assert re.search(words, message), message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
    assert work.calls < work_allowed(len(data))
    assert not (tmp_path / tensor_corpus.CANARY).exists()


A = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": {**A, "dtype": 5}}, 12, "tensor 'a' has the unknown type '5'"),
        ({"a": {**A, "dtype": "F31"}}, 12, "tensor 'a' has the unknown type 'F31'"),
        ({"a": {**A, "shape": [-3]}}, 12, "tensor 'a' cannot be read"),
        ({"a": {**A, "data_offsets": [0, 12, 24]}}, 12, "tensor 'a' has no valid data_offsets"),
        ({"a": {**A, "data_offsets": (0, 12.0)}}, 12, "tensor 'a' has no valid data_offsets"),
        ({"a": {**A, "data_offsets": [0, 11]}}, 12, "tensor 'a' needs 12 bytes but its offsets span 11"),
        ({"a": {**A, "data_offsets": [-12, 0]}}, 12, "tensor 'a' needs 12 bytes"),
        ({"a": {**A, "more": 1}}, 12, "tensor 'a' is not described by dtype, shape and data_offsets"),
        ({"a": A, "b": {**A, "data_offsets": [8, 20]}}, 20, "tensor 'b' overlaps another one or leaves a hole"),
        ({"a": A, "b": {**A, "data_offsets": [16, 28]}}, 28, "tensor 'b' overlaps another one or leaves a hole"),
        ({"a": A, "__metadata__": {"x": 7}}, 12, "the metadata in its header is not a table of texts"),
        ({"a": A}, 11, "its tensors need [0-9]+ bytes but the file has"),
        ({"a": A}, 17, "5 bytes follow its last tensor"),
    ],
)
def test_what_is_wrong_with_a_header_is_said_of_the_tensor(
    header: dict[str, object], data: int, message: str, tmp_path: Path
) -> None:
    """Three values, so that neither one tensor's bytes nor its end can be taken for another's."""
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    with pytest.raises(FileFormatError, match=message):
        open_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("limit", "of", "message"),
    [
        ("MAX_TENSORS", lambda header: 3, "its header lists 3 tensors"),
        ("MAX_HEADER_BYTES", len, "its header claims [0-9]+ bytes, more than any real file has"),
        ("MAX_HEADER_MARKS", lambda header: sum(map(header.count, b"{[,")), "far more entries than any real file"),
    ],
)
def test_a_limit_of_a_header_is_what_still_passes(
    limit: str, of: Callable[[bytes], int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in "abc"}).encode()
    path = written(tmp_path, len(header).to_bytes(8, "little") + header, "x.safetensors")
    monkeypatch.setattr(f"loraloom.formats.safetensors_file.{limit}", of(header))
    assert list(open_tensors(path)) == ["a", "b", "c"]
    monkeypatch.setattr(f"loraloom.formats.safetensors_file.{limit}", of(header) - 1)
    with pytest.raises(UnsafeFileError, match=message):
        open_tensors(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a text of some length that is no model", "is not a file of tensors of any known form"),
        ((2**40 + 3).to_bytes(8, "little") + b'{"a": 1}', "its header claims 1099511627779 bytes, more than any"),
        ((9).to_bytes(8, "little") + b'["a": 12]', "its safetensors header does not begin with a brace"),
        ((9).to_bytes(8, "little") + b'{"a": 12', "its header claims 9 bytes but the file has 16"),
    ],
)
def test_how_a_file_begins_says_what_is_wrong_with_it(data: bytes, message: str, tmp_path: Path) -> None:
    """The length of a header, then a brace: either of the two is enough to be taken for such a file."""
    with pytest.raises(FileFormatError, match=message):
        open_tensors(written(tmp_path, data, "x.safetensors"))


def test_a_file_that_ends_with_the_length_of_its_header(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((20).to_bytes(8, "little"))
    with pytest.raises(FileFormatError, match="its header claims 20 bytes but the file has 8"):
        open_tensors(tmp_path / "x.safetensors")


def test_canary_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payload of the hostile files does leave its trace when it is run."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(tensor_corpus.Evil()))
    assert (tmp_path / tensor_corpus.CANARY).exists()


def test_refusing_takes_little_memory(tmp_path: Path) -> None:
    """No lie makes the reader take much more than a small multiple of the file."""
    for name, (data, _) in HOSTILE.items():
        if len(data) > 50_000:
            continue  # tracing many small objects is slow, and their number is bounded by the file itself
        path = written(tmp_path, data)
        tracemalloc.start()
        with pytest.raises(FileError):
            open_tensors(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 80_000_000, name


def test_harmless_oddities_are_read(tmp_path: Path) -> None:
    """Things that look frightening but give only data."""
    among = (
        b"}Nq\xff0N" + b"N" + b"s",
        b"r\xff\xff\xff\xff"[:0] + b"Nr\xff\xff\xff\xff",
        b"ctorch\nSize\nK\x03\x85\x85R",
    )
    beside = (
        b"cbuiltins\nset\n](K\x01K\x02e\x85R",
        b"ctyping\nAny\n",
        b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)\x81}b",
    )
    files = [*map(tensor_corpus.with_tensor, among), *map(tensor_corpus.beside_tensors, (*among, *beside))]
    for data in files:
        with open_tensors(written(tmp_path, data)) as file:
            touch(file)
            assert list(file) == ["w"]


def test_mutations_give_no_other_exception() -> None:
    outcomes, faults = campaign(20_000, seed=0)
    assert faults == []
    assert outcomes["laborious"] == 0
    assert outcomes["read"] > 500
    assert outcomes["FileFormatError"] > 5000
    assert outcomes["UnsafeFileError"] > 2000


# ---------------------------------------------------------------------------------------------------------------------
# writing


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_views_that_only_promise_a_sign_are_written_with_it(suffix: str, tmp_path: Path) -> None:
    values = torch.tensor([1 + 2j, 3 - 4j, -5 + 6j])
    # Of a strided view any copy has the sign; one without gaps is written as it lies.
    dense = torch._neg_view(torch.tensor([0.7, -3.0]))
    views = {"conjugate": values.conj(), "negative": values.conj().imag, "dense": dense}
    assert views["conjugate"].is_conj() and views["negative"].is_neg() and dense.is_neg() and dense.is_contiguous()
    path = tmp_path / f"x{suffix}"
    if suffix == ".ckpt":
        del views["conjugate"]  # a torch file has no such type here
    write_tensors(path, views)
    with open_tensors(path) as file:
        assert_same(file["negative"], torch.tensor([-2.0, 4.0, -6.0]))
        assert_same(file["dense"], torch.tensor([-0.7, 3.0]))
        if "conjugate" in views:
            assert_same(file["conjugate"], torch.tensor([1 - 2j, 3 + 4j, -5 - 6j]))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_element_of_any_stride_is_written(suffix: str, tmp_path: Path) -> None:
    """torch calls it contiguous, and then refuses to look at its bytes."""
    one = torch.tensor([3.5, 7.0])[::2]
    assert one.stride() == (2,) and one.is_contiguous()
    write_tensors(tmp_path / f"x{suffix}", {"one": one, "none": torch.ones(3)[:0], "number": torch.tensor(2.5)})
    with open_tensors(tmp_path / f"x{suffix}") as file:
        assert_same(file["one"], torch.tensor([3.5]))
        assert_same(file["none"], torch.ones(0))
        assert_same(file["number"], torch.tensor(2.5))


def test_more_tensors_than_a_reader_takes_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraloom.formats.tensors.MAX_TENSORS", 7)
    one = torch.ones(1)
    write_tensors(tmp_path / "seven.safetensors", {str(number): one for number in range(7)})
    with pytest.raises(OutputError, match="8 tensors are more than a file may hold"):
        write_tensors(tmp_path / "eight.safetensors", {str(number): one for number in range(8)})
    assert not (tmp_path / "eight.safetensors").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".bin"])
def test_written_files_are_read_by_others_and_by_us(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    extras = {"epoch": 3, "global_step": 70_000, "loss": 0.1, "note": "ü", "big": -(2**40)}
    write_tensors(path, SAMPLE, metadata={"made": "with ü"}, extras=extras)
    if suffix == ".safetensors":
        theirs = safetensors.torch.load_file(path)
    else:
        loaded = torch.load(path, weights_only=True)
        theirs = loaded.pop("state_dict")
        assert loaded == {**extras, "metadata": {"made": "with ü"}}
        assert list(theirs) == list(SAMPLE)
    with open_tensors(path) as ours:
        assert ours.metadata == {"made": "with ü"}
        assert ours.extras == ({} if suffix == ".safetensors" else extras)
        assert set(ours) == set(theirs) == set(SAMPLE)
        for name, tensor in SAMPLE.items():
            assert_same(theirs[name], tensor)
            assert_same(ours[name], tensor)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_safetensors_bytes_equal_the_reference_library(tmp_path: Path) -> None:
    """Same order and header, so the same bytes; no metadata are no empty table of them."""
    tensors = {name: tensor for name, tensor in SAMPLE.items() if tensor.numel()}
    for metadata in ({"format": "pt"}, None):
        write_tensors(tmp_path / "ours.safetensors", tensors, metadata=metadata)
        safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", metadata=metadata)
        assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_zip_obeys_the_strictest_checker(tmp_path: Path) -> None:
    """The rules of the web UI's check of checkpoints: names of members and globals."""
    tensors = {name: tensor for name, tensor in SAMPLE.items() if tensor.dtype != torch.float8_e4m3fn}
    write_tensors(tmp_path / "a.ckpt", tensors, metadata={"a": "b"}, extras={"epoch": 1})
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert re.fullmatch(r"([^/]+)/((data/\d+)|version|byteorder|(data\.pkl))", info.filename)
        pickled = archive.read("archive/data.pkl")
    asked = {argument for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"}
    rules = r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage"
    assert asked
    assert all(re.fullmatch(rules, name) for name in asked)


def test_strides_and_shared_storages_are_written_plain(tmp_path: Path) -> None:
    data, expected = BENIGN["shared storage and strides"]
    for name in ("a.safetensors", "a.ckpt"):
        write_tensors(tmp_path / name, open_tensors(written(tmp_path, data, "in.ckpt")))
        with open_tensors(tmp_path / name) as file:
            for key, tensor in expected.items():
                assert_same(file[key], tensor)


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    write_tensors(str(tmp_path / "a.pt"), {"a": torch.ones(3)})  # type: ignore[arg-type]
    with open_tensors(str(tmp_path / "a.pt")) as file:  # type: ignore[arg-type]
        assert file.path == tmp_path / "a.pt" and float(file["a"].sum()) == 3.0


def test_a_file_can_be_rewritten_from_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, SAMPLE)
    before = path.read_bytes()
    write_tensors(path, {name: tensor.clone() for name, tensor in open_tensors(path).items()})
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_sources_are_loaded_one_at_a_time(suffix: str, tmp_path: Path) -> None:
    loaded: list[weakref.ref[torch.Tensor]] = []

    def source(index: int) -> TensorSource:
        def load() -> torch.Tensor:
            assert not [before for before in loaded if before() is not None]
            tensor = torch.full((100,), float(index))
            loaded.append(weakref.ref(tensor))
            return tensor

        return TensorSource(f"t{index}", TensorInfo(torch.float32, (100,)), load)

    write_tensors(tmp_path / f"a{suffix}", (source(index) for index in range(5)))
    assert len(loaded) == 5
    with open_tensors(tmp_path / f"a{suffix}") as file:
        assert [float(file[f"t{index}"][99]) for index in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_nothing_is_left_when_a_source_breaks_its_promise(suffix: str, tmp_path: Path) -> None:
    good = TensorSource("a", TensorInfo(torch.float32, (2,)), lambda: torch.zeros(2))
    for wrong in (torch.zeros(3), torch.zeros(2, dtype=torch.float16)):
        bad = TensorSource("b", TensorInfo(torch.float32, (2,)), lambda wrong=wrong: wrong)
        with pytest.raises(OutputError, match="'b' came as"):
            write_tensors(tmp_path / f"a{suffix}", [good, bad])
    failing = TensorSource("c", TensorInfo(torch.float32, (2,)), lambda: {}["gone"])
    with pytest.raises(KeyError):
        write_tensors(tmp_path / f"a{suffix}", [good, failing])
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(2)}
    source = TensorSource("w", TensorInfo(torch.float32, (2,)), lambda: torch.zeros(2))
    huge = TensorSource("w", TensorInfo(torch.float32, (2**45,)), lambda: torch.zeros(2))
    for name, sources, extras, words in (
        ("a.gguf", tensors, {}, r"must end in \.safetensors"),
        ("a", tensors, {}, r"must end in \.safetensors"),
        ("no/a.ckpt", tensors, {}, "does not exist"),
        ("a.ckpt", [source, source], {}, "'w' was to be written twice"),
        ("a.ckpt", tensors, {"x": object()}, "type object cannot be stored"),
        ("a.safetensors", {"__metadata__": torch.zeros(1)}, {}, "__metadata__"),
        ("a.ckpt", [TensorSource("w", TensorInfo(torch.quint8, (1,)), source.load)], {}, "which no file holds"),
        ("a.safetensors", [huge], {}, "not enough space, 140.7 TB needed"),
        ("a.ckpt", [huge], {}, "not enough space"),
    ):
        with pytest.raises(OutputError, match=words):
            write_tensors(tmp_path / name, sources, extras=extras)
    with pytest.raises(OutputError, match="'k' is not a text"):
        write_tensors(tmp_path / "a.ckpt", tensors, metadata={"k": 1})
    assert list(tmp_path.iterdir()) == []


def test_tensor_file_is_a_mapping(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.ckpt", SAMPLE)
    file = open_tensors(tmp_path / "a.ckpt")
    assert isinstance(file, TensorFile)
    assert len(file) == len(SAMPLE)
    assert "ids" in file
    assert "nope" not in file
    with pytest.raises(KeyError):
        file["nope"]
    assert file.get("nope") is None
    assert {file: 1}[file] == 1
