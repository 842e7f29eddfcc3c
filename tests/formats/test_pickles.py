"""The pickle reader gives the same data as Python's own, and nothing else."""

from __future__ import annotations

import collections
import math
import pickle
import pickletools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.errors import FileFormatError, UnsafeFileError
from loraloom.formats.pickle_nodes import Global, Inert, StorageReference
from loraloom.formats.pickles import _TABLE, read_pickle

PROTOCOLS = range(6)


def load(data: bytes) -> object:
    return read_pickle(memoryview(data), "FILE").value


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
small_integers = st.integers(-(2**63), 2**63)
keys = st.none() | st.booleans() | small_integers | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner, inner, inner) | st.dictionaries(keys, inner) | st.tuples(inner)
    ),
    max_leaves=20,
)


@given(values, st.sampled_from(PROTOCOLS))
@settings(max_examples=300)
def test_plain_values_as_python_reads_them(value: object, protocol: int) -> None:
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_of_the_standard_library(protocol: int) -> None:
    shared = [1, 2]
    value = {
        "ordered": collections.OrderedDict(b=shared, a=shared),
        "default": collections.defaultdict(list, {"x": shared}),
        "counter": collections.Counter("abb"),
        "inf": -math.inf,
        (1, "a"): 2**60,
        "dict type": dict,
    }
    read = load(pickle.dumps(value, protocol))
    assert isinstance(read, dict)
    assert read["ordered"] == {"b": [1, 2], "a": [1, 2]}
    assert list(read["ordered"]) == ["b", "a"]
    assert read["ordered"]["a"] is read["default"]["x"]
    assert read["counter"] == {"a": 1, "b": 2}
    assert read["inf"] == -math.inf
    assert read[1, "a"] == 2**60
    assert read["dict type"] == Global("builtins.dict")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.float64(0.1), np.float16(2), np.int64(-5), np.uint8(0), np.bool_(1)]
)
def test_numpy_numbers_become_plain_numbers(value: np.generic, protocol: int) -> None:
    read = load(pickle.dumps({"x": value}, protocol))
    assert read == {"x": value.item()}
    assert type(read["x"]) is type(value.item())


def test_big_endian_numpy_numbers() -> None:
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    assert load(b"\x80\x02cnumpy.core.multiarray\nscalar\n(" + dtype + b"C\x04\x3f\x80\x00\x00tR.") == 1.0


def test_sets_and_objects_stay_inert() -> None:
    node = load(pickle.dumps({1, 2}, 4))
    assert isinstance(node, Inert)
    assert (node.name, node.items) == ("builtins.set", [1, 2])
    data = b"\x80\x02comegaconf.nodes\nAnyNode\n)\x81}U\x04_valK\x07sb."
    node = load(data)
    assert isinstance(node, Inert)
    assert (node.name, node.args, node.state) == ("omegaconf.nodes.AnyNode", (), {"_val": 7})
    assert {node: 1}[node] == 1
    assert node != load(data)


def test_python_2_texts() -> None:
    assert load(b"S'a\\'\\x41\\n\\101\\\\'\n.") == "a'A\nA\\"
    assert load(b'S"\\xff"\n.') == b"\xff"
    assert load(b"T\x03\x00\x00\x00abc.") == "abc"
    assert load(b"U\x02\xff\xfe.") == b"\xff\xfe"
    assert load(b"V\\u00e9\\U0001f600\xe9\n.") == "é😀é"
    with pytest.raises(FileFormatError, match="not valid Unicode"):
        load(b"V\\U00110000\n.")


def test_streams_follow_one_another() -> None:
    first, second = pickle.dumps([1], 2), pickle.dumps({"a": 2}, 4)
    data = memoryview(first + second + b"rest")
    read = read_pickle(data, "FILE")
    assert (read.value, read.end) == ([1], len(first))
    assert read_pickle(data, "FILE", read.end).value == {"a": 2}


def test_storages_are_listed() -> None:
    read = read_pickle(memoryview(b"\x80\x02(K\x01tQ."), "FILE")
    assert isinstance(read.value, StorageReference)
    assert read.storages == [read.value]
    assert read.value.value == (1,)


def test_every_opcode_is_known() -> None:
    assert {code for code, operation in enumerate(_TABLE) if operation} == {
        ord(opcode.code) for opcode in pickletools.opcodes if opcode.name != "STOP"
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_classes_are_refused_by_name(protocol: int) -> None:
    with pytest.raises(UnsafeFileError, match=r"FILE: asks for the global fractions\.Fraction, which"):
        load(pickle.dumps([Fraction(1, 2)], protocol))


def test_every_truncation_is_an_error() -> None:
    for protocol in PROTOCOLS:
        data = pickle.dumps({"a": [1, 2.5, "text", (b"bytes", None, 2**70)]}, protocol)
        for end in range(len(data)):
            with pytest.raises(FileFormatError):
                load(data[:end])
