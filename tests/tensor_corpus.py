"""Files for the tests of tensor reading: those that programs really write, and those that lie."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from loraloom.formats.zip_file import ZipWriter

CANARY = "canary-was-here"

# ---------------------------------------------------------------------------------------------------------------------
# files that are fine

Expected = dict[str, torch.Tensor]


def saved(value: object, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@contextlib.contextmanager
def foreign_classes() -> Iterator[types.SimpleNamespace]:
    """Stand-ins for classes of packages that exist only while the files are made."""

    def module(name: str) -> types.ModuleType:
        return modules.setdefault(name, types.ModuleType(name))

    def make(path: str, *parents: type) -> type:
        where, _, name = path.rpartition(".")
        parts = where.split(".")
        for end in range(1, len(parts) + 1):
            module(".".join(parts[:end]))
        made = type(name, parents, {"__module__": where, "__qualname__": name})
        setattr(module(where), name, made)
        return made

    modules: dict[str, types.ModuleType] = {}
    classes = types.SimpleNamespace(
        checkpoint=make("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
        attributes=make("pytorch_lightning.utilities.parsing.AttributeDict", dict),
        dict_config=make("omegaconf.dictconfig.DictConfig"),
        list_config=make("omegaconf.listconfig.ListConfig"),
        any_node=make("omegaconf.nodes.AnyNode"),
        metadata=make("omegaconf.base.Metadata"),
        container=make("omegaconf.base.ContainerMetadata"),
    )
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


def _state(seed: int = 0) -> Expected:
    made = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(3, 4, generator=made),
        "model.bias": torch.randn(4, generator=made).half(),
        "model.scale": torch.randn((), generator=made).bfloat16(),
        "model.ids": torch.arange(5),
    }


def _object(cls: type, **attributes: object) -> object:
    made = cls()
    made.__dict__.update(attributes)
    return made


def benign() -> dict[str, tuple[bytes, Expected]]:
    """Name -> (bytes, tensors that must be found)."""
    state = _state()
    files: dict[str, tuple[bytes, Expected]] = {}
    files["plain zip"] = saved(state), state
    files["state_dict and counters"] = saved({"state_dict": state, "epoch": 3, "global_step": 4000, "lr": 1e-4}), state
    files["state_dict in a state_dict"] = saved({"state_dict": {"state_dict": state}}), state
    files["legacy stream"] = saved({"state_dict": state}, _use_new_zipfile_serialization=False), state
    for protocol in (3, 4, 5):
        files[f"zip, protocol {protocol}"] = saved(state, pickle_protocol=protocol), state
    files["legacy, protocol 4"] = saved(state, pickle_protocol=4, _use_new_zipfile_serialization=False), state
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    files["module with _metadata"] = saved(module.state_dict()), dict(module.state_dict())
    parameters = {"w": torch.nn.Parameter(torch.randn(2, 2))}
    files["parameters"] = saved(parameters), {"w": parameters["w"].data}
    files["legacy parameters"] = saved(parameters, _use_new_zipfile_serialization=False), {"w": parameters["w"].data}
    noted = {"w": torch.nn.Parameter(torch.randn(2, 2)), "v": torch.randn(3)}
    for tensor in noted.values():
        tensor.note = "an attribute"
    files["tensors with attributes"] = saved(noted), {name: tensor.data for name, tensor in noted.items()}
    base = torch.randn(4, 6)
    shared = {"all": base, "row": base[2], "part": base[1:3, 2:5], "turned": base.t(), "steps": base[::2, ::3]}
    files["shared storage and strides"] = saved(shared), shared
    files["legacy shared storage and strides"] = saved(shared, _use_new_zipfile_serialization=False), shared
    expanded = {"ids": torch.arange(7).expand(1, -1), "wide": torch.ones(1).expand(3, 5)}
    files["expanded"] = saved(expanded), expanded
    kinds = (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.bool, torch.complex64, torch.complex128),
    )
    every = {str(kind): torch.arange(6).to(torch.float32).to(kind).reshape(2, 3) for kind in kinds}
    files["every type"] = saved(every), every
    odd = {"empty": torch.empty(0, 3), "scalar": torch.tensor(7), "one": torch.ones(1, 1, 1)}
    files["empty and scalar"] = saved(odd), odd
    files["legacy empty and scalar"] = saved(odd, _use_new_zipfile_serialization=False), odd
    pairs = [torch.randn(4, 2), torch.randn(2, 3), torch.randn(5, 2)]
    files["list"] = saved(pairs), {str(index): tensor for index, tensor in enumerate(pairs)}
    files["nested"] = (
        saved({"unet": {"a": pairs[0], "b": [pairs[1]]}, "te": collections.OrderedDict(c=pairs[2])}),
        {"unet.a": pairs[0], "unet.b.0": pairs[1], "te.c": pairs[2]},
    )
    files["one tensor"] = saved(pairs[0]), {"tensor": pairs[0]}
    files["names beyond ASCII"] = saved({"größe.重み": pairs[0]}), {"größe.重み": pairs[0]}
    files |= _numpy_files(state) | _foreign_files(state)
    files["textual inversion"] = (
        saved({"string_to_token": {"*": 265}, "string_to_param": torch.nn.ParameterDict({"*": pairs[0]}), "step": 9}),
        {"string_to_param.*": pairs[0]},
    )
    return files


def _numpy_files(state: Expected) -> dict[str, tuple[bytes, Expected]]:
    scalars = {"best": np.float64(0.25), "half": np.float16(1.5), "n": np.int64(-3), "flag": np.bool_(True)}
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    expected = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    texts = np.array(["a", "b"], dtype=object)
    files: dict[str, tuple[bytes, Expected]] = {}
    for protocol in (2, 4, 5):
        label = f"protocol {protocol}"
        beside = {"state_dict": state, **scalars, "history": texts, "types": [np.dtype("f4"), np.float32]}
        files[f"numpy scalars, {label}"] = saved(beside, pickle_protocol=protocol), state
        files[f"numpy arrays, {label}"] = saved({**arrays, "t": texts}, pickle_protocol=protocol), expected
    return files


def _foreign_files(state: Expected) -> dict[str, tuple[bytes, Expected]]:
    files: dict[str, tuple[bytes, Expected]] = {}
    with foreign_classes() as classes:
        callbacks = {classes.checkpoint: {"monitor": "loss", "best_model_score": torch.tensor(0.5), "dirpath": None}}
        lightning = {
            "epoch": 2,
            "global_step": 1000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": state,
            "callbacks": callbacks,
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}],
            "lr_schedulers": [
                {"milestones": collections.Counter([3, 3]), "seen": {1, 2}, "device": torch.device("cpu")}
            ],
            "hparams_name": "kwargs",
            "hyper_parameters": classes.attributes(lr=1.0),
            "dtype": torch.float16,
            "size": torch.Size([2, 3]),
        }
        node = _object(classes.any_node, _val=1.0, _metadata=_object(classes.metadata, ref_type=Any, key="lr"))
        config = _object(
            classes.dict_config,
            _content={"lr": node, "betas": _object(classes.list_config, _content=[node])},
            _metadata=_object(classes.container, element_type=Any, object_type=dict, key_type=str),
        )
        for label, options in (
            ("", {}),
            (", legacy", {"_use_new_zipfile_serialization": False}),
            (", protocol 4", {"pickle_protocol": 4}),
        ):
            files[f"lightning{label}"] = saved(lightning, **options), state
            files[f"omegaconf{label}"] = saved({"state_dict": state, "config": config, node: 1}, **options), state
    return files


# ---------------------------------------------------------------------------------------------------------------------
# parts to build lies from


def zipped(pickled: bytes, *storages: bytes, **members: bytes) -> bytes:
    """An archive as torch writes it around a given data.pkl."""
    buffer = io.BytesIO()
    archive = ZipWriter(buffer)
    content = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    content |= {f"data/{index}": data for index, data in enumerate(storages)} | members
    for name, data in content.items():
        archive.add(f"archive/{name}", len(data), lambda data=data: data)
    archive.close()
    return buffer.getvalue()


def legacy(pickled: bytes, keys: object, storages: bytes, *, protocol: int = 1001, little_endian: bool = True) -> bytes:
    """The stream of torch before 1.6 around a given pickle."""
    head = [0x1950A86A20F9469CFC6C, protocol, {"protocol_version": protocol, "little_endian": little_endian}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps(keys, 2) + storages


def whole(number: int) -> bytes:
    """A whole number as a pickle opcode."""
    return b"\x8a\x0a" + number.to_bytes(10, "little", signed=True)


def text(value: str) -> bytes:
    """A text as a pickle opcode."""
    raw = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(raw)) + raw


def numbers(values: tuple[int, ...]) -> bytes:
    """A tuple of whole numbers as pickle opcodes."""
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor_node(
    size: tuple[int, ...] = (3,),
    stride: tuple[int, ...] = (1,),
    *,
    offset: int = 0,
    numel: int = 3,
    key: str = "0",
    kind: str = "torch\nFloatStorage",
    more: bytes = b"",
) -> bytes:
    """A tensor over float32 storage 0, as pickle opcodes."""
    reference = b"(" + text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + whole(numel) + more + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + whole(offset) + numbers(size) + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


STORAGE = struct.pack("<3f", 1.0, 2.0, 3.0)


def with_tensor(extra: bytes) -> bytes:
    """A whole archive: ``{"w": tensor, "x": extra}``."""
    return zipped(b"\x80\x02}" + text("w") + tensor_node() + b"s" + text("x") + extra + b"s.", STORAGE)


def beside_tensors(extra: bytes) -> bytes:
    """A whole archive: ``{"state_dict": {"w": tensor}, "x": extra}``."""
    state = b"}" + text("w") + tensor_node() + b"s"
    return zipped(b"\x80\x02}" + text("state_dict") + state + b"s" + text("x") + extra + b"s.", STORAGE)


def tensor_file(**options: Any) -> bytes:
    """A whole archive with one tensor described by ``options``."""
    return zipped(b"\x80\x02}" + text("w") + tensor_node(**options) + b"s.", STORAGE)


class Evil:
    """An object that runs a command when an ordinary reader loads it."""

    def __init__(self, function: Callable[..., object] = os.system, *args: object) -> None:
        self.call = function, args or (f"echo > {CANARY}",)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def safetensors(header: str | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with a given header."""
    raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one_tensor(shape: str = "[3]", offsets: str = "[0,12]", dtype: str = '"F32"', more: str = "") -> bytes:
    """A safetensors file with one tensor described by pieces of JSON."""
    return safetensors(f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}{more}}}', STORAGE)


# ---------------------------------------------------------------------------------------------------------------------
# files that lie


def hostile() -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, what the refusal must say)."""
    return {
        **_names_asked_for(),
        **_opcodes(),
        **_not_understood(),
        **_pickle_bombs(),
        **_tensor_lies(),
        **_zip_lies(),
        **_legacy_lies(),
        **_safetensors_lies(),
        **_other_files(),
    }


def _names_asked_for() -> dict[str, tuple[bytes, str]]:
    files: dict[str, tuple[bytes, str]] = {}
    for protocol in range(6):
        evil = pickle.dumps({"w": Evil()}, protocol)
        files[f"os.system, protocol {protocol}, zip"] = zipped(evil), r"asks for the global (posix|nt)\.system"
        files[f"os.system, protocol {protocol}, bare"] = evil, r"asks for the global (posix|nt)\.system"
        files[f"os.system, protocol {protocol}, legacy"] = legacy(evil, [], b""), r"the global (posix|nt)\.system"
    for name in (
        *("builtins\neval", "builtins\nexec", "builtins\n__import__", "builtins\ngetattr", "__builtin__\ncompile"),
        *("builtins\nopen", "builtins\nbytearray", "builtins\nmap", "operator\nattrgetter", "functools\npartial"),
        *("os\nsystem", "subprocess\nPopen", "importlib\nimport_module", "runpy\nrun_path", "webbrowser\nopen"),
        *("pickle\nloads", "torch\nload", "torch.storage\n_load_from_bytes", "torch.serialization\nload"),
        *("torch._utils\n_rebuild_sparse_tensor", "torch._utils\n_rebuild_wrapper_subclass", "torch.hub\nload"),
        *("torch.jit\nload", "torch\nempty", "torch.nn.modules.linear\nLinear", "numpy\nload", "numpy\nfromfile"),
        *("torch\nint_repr", "torch\nfloat_power", "numpy\nbyte_bounds", "numpy.dtypes\nosDType"),
        *("numpy.testing._private.utils\nruncmd", "pytorch_lightning.utilities\nos", "omegaconf.base\nsys"),
        *("transformers.models.auto\nAutoModel", "_codecs\ndecode", "collections\nnamedtuple", "shutil\nrmtree"),
        *("pytorch_lightningx.a\nModelCheckpoint", "__main__\nThing", "nt\nsystem", "bdb\nBdb"),
    ):
        asked = name.replace("\n", r"\.")
        files[f"global {name}".replace("\n", ".")] = (
            with_tensor(b"c" + name.encode() + b"\n" + b"(" + text("1") + b"tR"),
            f"asks for the global {asked}, ",
        )
    files["dotted name in an inert package"] = (
        with_tensor(text("pytorch_lightning.callbacks") + text("os.system") + b"\x93"),
        r"asks for the global pytorch_lightning\.callbacks\.os\.system",
    )
    files["name with a line feed"] = with_tensor(text("os") + text("sys\ntem") + b"\x93"), "not a proper name"
    files["name of odd characters"] = with_tensor(text("os\u202e") + text("ѕystem") + b"\x93"), "not a proper name"
    return files


def _opcodes() -> dict[str, tuple[bytes, str]]:
    allowed = b"cpytorch_lightning.a\nThing\n"
    command = text(f"echo > {CANARY}")
    asked = r"asks for the global os\.system, "
    return {
        "STACK_GLOBAL through the memo": (with_tensor(text("system") + b"q\x00" + text("os") + b"h\x00\x93"), asked),
        "STACK_GLOBAL of a number": (with_tensor(text("os") + b"K\x01\x93"), "whose name is not text"),
        "INST": (with_tensor(b"(" + command + b"ios\nsystem\n"), asked),
        "OBJ": (with_tensor(b"(cos\nsystem\n" + command + b"o"), asked),
        "OBJ of a text": (with_tensor(b"(" + command + b"o"), "not a plain name"),
        "OBJ of nothing": (with_tensor(b"(o"), "an object of nothing"),
        "NEWOBJ": (with_tensor(b"cos\nsystem\n" + command + b"\x85\x81"), asked),
        "NEWOBJ_EX": (with_tensor(b"cos\nsystem\n" + command + b"\x85}\x92"), asked),
        "NEWOBJ_EX without keywords": (with_tensor(allowed + b")N\x92"), "without arguments"),
        "EXT1": (with_tensor(b"\x82\x01"), "extension registry"),
        "EXT2": (with_tensor(b"\x83\x01\x00"), "extension registry"),
        "EXT4": (with_tensor(b"\x84\x01\x00\x00\x00"), "extension registry"),
        "REDUCE of a text": (with_tensor(command + b")R"), "not a plain name"),
        "REDUCE of a made object": (with_tensor(allowed + b")R)R"), "not a plain name"),
        "REDUCE without arguments": (with_tensor(allowed + b"]R"), "without arguments"),
        "BUILD on a class": (with_tensor(allowed + b"}" + text("__init__") + text("x") + b"sb"), "not an object"),
        "BUILD on a list": (with_tensor(b"]}b"), "not an object"),
        "copyreg of os.system": (with_tensor(b"ccopy_reg\n_reconstructor\n(cos\nsystem\nNNtR"), asked),
        "copyreg of a text": (with_tensor(b"ccopy_reg\n_reconstructor\n(" + text("x") + b"NNtR"), "not a plain name"),
        "codecs with another encoding": (
            with_tensor(b"c_codecs\nencode\n" + text("a") + text("rot13") + b"\x86R"),
            "latin-1",
        ),
        "PERSID": (with_tensor(b"Pos.system\n"), "persistent object by a text"),
        "BINPERSID of a module": (
            with_tensor(b"(" + text("module") + allowed + text("a.py") + text("import os") + b"tQ"),
            "outside its pickle",
        ),
        "BINPERSID of a text": (with_tensor(text("storage") + b"Q"), "outside its pickle"),
        "BINPERSID of another file": (tensor_file(key="../../etc/passwd"), "are missing"),
        "NEXT_BUFFER": (with_tensor(b"\x97"), "buffer from outside"),
        "READONLY_BUFFER": (with_tensor(b"N\x98"), "buffer from outside"),
        "unknown protocol": (zipped(b"\x80\x06N."), "unknown protocol 6"),
        "unknown opcode": (with_tensor(b"\xff"), "unknown opcode 0xff"),
        "empty stack": (zipped(b"\x80\x02RRR."), "there is none"),
        "pop of a mark": (zipped(b"\x80\x02(s."), "there is none"),
        "no mark": (zipped(b"\x80\x02Nt."), "never opened"),
        "unset memo": (with_tensor(b"h\x63"), "never stored"),
        "leftover values": (zipped(b"\x80\x02NN."), "left over"),
        "no STOP": (zipped(b"\x80\x02}"), "ends in the middle"),
        "second pickle behind the first": (
            zipped(pickle.dumps({}, 2) + pickle.dumps(Evil(), 2)),
            "bytes after its pickle",
        ),
        "unhashable key": (with_tensor(b"}]Ns"), "cannot be one"),
        "key without value": (with_tensor(b"}(Nu"), "key without a value"),
        "bad UTF-8": (with_tensor(b"\x8c\x02\xff\xfe"), "not valid UTF-8"),
        "lone surrogate": (with_tensor(b"V\\ud800\n"), "not valid Unicode"),
        "unquoted STRING": (with_tensor(b"Sabc\n"), "without quotes"),
        "INT that is none": (with_tensor(b"I0x10\n"), "where a number must be"),
        "FLOAT that is none": (with_tensor(b"Fone\n"), "where a number must be"),
        "append to a dictionary": (with_tensor(b"}Na"), "not a list"),
        "items of a list": (with_tensor(b"]NNs"), "sets items"),
    }


def _not_understood() -> dict[str, tuple[bytes, str]]:
    """What a reader that looks for tensors alone would pass over; Python's own would make other weights of some."""
    lightning = b"cpytorch_lightning.callbacks\nThing\n)R"
    node, state = tensor_node(), b"}" + text("data") + b"K\x01s"
    reference = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + whole(3) + b"tQ"
    parameter = b"ctorch._utils\n_rebuild_parameter\n("
    with_state = b"ctorch._utils\n_rebuild_parameter_with_state\n("
    of_type = b"ctorch._tensor\n_rebuild_from_type_v2\n("
    tensor_type = b"ctorch\nTensor\n"
    inner = node[node.index(b"(") : -1]
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85"
    big_endian = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    good = _good_members()

    def listed(*items: bytes) -> bytes:
        return zipped(b"\x80\x02](" + b"".join(items) + b"e.", STORAGE)

    among = "among its tensors is "
    return {
        "object among weights": (with_tensor(lightning), f"'x' {among}an object of 'pytorch_lightning"),
        "set among weights": (with_tensor(b"cbuiltins\nset\n](K\x01e\x85R"), f"{among}an object of 'builtins.set'"),
        "class among weights": (with_tensor(b"ctorch\nfloat16\n"), f"{among}the name 'torch.float16'"),
        "tensor data among weights": (with_tensor(reference), f"{among}tensor data without a tensor"),
        "object deep among weights": (
            with_tensor(b"}" + text("y") + b"](" + lightning + b"ess"[:1] + b"s"),
            r"'x\.y\.0'",
        ),
        "object in a state_dict without tensors of its own": (
            zipped(
                b"\x80\x02}"
                + text("state_dict")
                + b"}("
                + text("a")
                + lightning
                + text("b")
                + b"}"
                + text("w")
                + node
                + b"sus.",
                STORAGE,
            ),
            f"'a' {among}an object",
        ),
        "object in a list of tensors": (listed(node, lightning, node), f"'1' {among}an object"),
        "number in a list of tensors": (listed(node, b"K\x01", node), f"'1' {among}something of the type int"),
        "None in a list of tensors": (listed(b"N", node), f"'0' {among}something of the type NoneType"),
        "weight under no name": (with_tensor(b"}N" + node + b"s"), f"'x' {among}named by something of the type None"),
        "weight under true": (with_tensor(b"}\x88" + node + b"s"), f"{among}named by something of the type bool"),
        "array of another order": (with_tensor(array + big_endian + b"\x89C\x0caaaabbbbcccctb"), "order of bytes"),
        "array without content": (with_tensor(array[: array.index(b"R(") + 1]), f"{among}an array of numpy"),
        "BUILD on a tensor": (with_tensor(node + b"(" + reference + b"K\x00(K\x03t(K\x01ttb"), "sets the state of"),
        "BUILD on a parameter": (with_tensor(parameter + node + b"\x88}tR" + state + b"b"), "sets the state of"),
        "BUILD on tensor data": (with_tensor(reference + state + b"b"), "not an object"),
        "BUILD twice on an object": (with_tensor(lightning + b"}b}b"), "sets the state of .* twice"),
        "BUILD that replaces a method of a dictionary": (
            with_tensor(b"ccollections\nOrderedDict\n)R}" + text("items") + b"K\x01sb"),
            "sets the attribute 'items' of a dictionary",
        ),
        "BUILD that hides weights in a dictionary": (
            with_tensor(b"ccollections\nOrderedDict\n)R}" + text("_more") + node + b"sb"),
            "attributes of a dictionary that are not plain values",
        ),
        "BUILD of a dictionary with a tuple": (with_tensor(b"}NN\x86b"), "sets the attribute"),
        "SETITEM on a tensor": (with_tensor(node + b"K\x00K\x07s"), "sets or adds items of"),
        "SETITEMS on an array": (with_tensor(array[: array.index(b"R(") + 1] + b"(K\x00K\x07u"), "sets or adds items"),
        "APPEND to a tensor": (with_tensor(node + b"K\x00a"), "sets or adds items"),
        "ADDITEMS to a tensor": (with_tensor(node + b"(K\x00\x90"), "sets or adds items"),
        "key twice": (with_tensor(b"}(" + text("a") + node + text("a") + node + b"u"), "sets the key 'a' twice"),
        "key twice in two steps": (with_tensor(b"}" + text("a") + b"Ns" + text("a") + node + b"s"), "key 'a' twice"),
        "key twice in pairs": (
            with_tensor(b"ccollections\nOrderedDict\n](](K\x01Ne](K\x01Nee\x85R"),
            "sets the key '1' twice",
        ),
        "number and text of one name": (with_tensor(b"}(" + text("1") + node + b"K\x01" + node + b"u"), "two tensors"),
        "dictionary of two contents": (
            with_tensor(b"ccollections\nOrderedDict\n](](" + text("a") + node + b"ee}\x86R"),
            "other than pairs",
        ),
        "dictionary of a number": (with_tensor(b"ccollections\nOrderedDict\nK\x07\x85R"), "other than pairs"),
        "hooks on a tensor": (with_tensor(node[:-4] + b"}" + text("a") + b"Ns" + b"tR"), "way that torch never does"),
        "parameter without an answer": (with_tensor(parameter + node + b"tR"), "way that torch never does"),
        "parameter of a number": (with_tensor(parameter + b"K\x01\x88}tR"), f"{among}an object of"),
        "parameter with hidden weights": (
            with_tensor(with_state + node + b"\x88}}" + text("a") + node + b"stR"),
            "way that torch never does",
        ),
        "tensor of an unknown type": (
            with_tensor(of_type + function + b"comegaconf.base\nThing\n" + inner[:-1] + b"t}tR"),
            "way that torch never does",
        ),
        "attributes with hidden weights": (
            with_tensor(of_type + function + tensor_type + inner[:-1] + b"t}" + text("data") + node + b"stR"),
            "way that torch never does",
        ),
        "storage on no device": (
            with_tensor(reference.replace(text("cpu"), b"N")),
            "reference to tensor data is damaged",
        ),
        "part of a storage in a zip": (
            tensor_file(more=b"(" + text("0") + whole(0) + whole(3) + b"t"),
            "not tensor data",
        ),
        "tensor data that nothing mentions": (
            _python_zip(good | {"archive/data/1": STORAGE}),
            "'data/1', which its pickle never mentions",
        ),
    }


def _pickle_bombs() -> dict[str, tuple[bytes, str]]:
    laughs = b"]q\x00" + b"".join(
        b"](" + 10 * (b"h" + bytes([level])) + b"eq" + bytes([level + 1]) for level in range(20)
    )
    dictionaries = b"}q\x00" + b"".join(
        b"}(" + b"".join(text(str(i)) + b"h" + bytes([level]) for i in range(10)) + b"uq" + bytes([level + 1])
        for level in range(20)
    )
    long_text = b"\x8d" + struct.pack("<Q", 200_000) + b"a" * 200_000
    copies = b"c_codecs\nencode\nq\x01" + long_text + text("latin1") + b"\x86q\x02(" + b"h\x01h\x02R" * 100_000 + b"l"
    many = b"}(" + b"".join(whole(i) + b"N" for i in range(2000)) + b"uq\x01"
    counters = many + b"ccollections\nCounter\nq\x02h\x01\x85q\x03(" + b"h\x02h\x03R" * 50_000 + b"l"
    return {
        "nested tuples as a key": (with_tensor(b"}" + b")" + b"\x85" * 100_000 + b"Ns"), "nested tuples as keys"),
        "doubling tuples as a key": (with_tensor(b"}N" + b"2\x86" * 200 + b"Ns"), "nested tuples as keys"),
        "very long tuple as a key": (with_tensor(b"}(" + b"N" * 100_000 + b"tNs"), "long tuples, or very many"),
        "very many tuples as keys": (
            with_tensor(b"}(" + b"".join(whole(i) + b"K\x02\x86N" for i in range(5000)) + b"u"),
            "long tuples, or very many",
        ),
        "colliding numbers as keys": (
            with_tensor(b"}(" + b"".join(whole(i * (2**61 - 1)) + b"N" for i in range(100, 8000)) + b"u"),
            "giant numbers as keys",
        ),
        "lists nested 200,000 deep": (
            zipped(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
            "nested too deeply",
        ),
        "tuples nested 200,000 deep": (zipped(b"\x80\x02)" + b"\x85" * 200_000 + b"."), "nested too deeply"),
        "objects nested 100,000 deep": (
            zipped(
                b"\x80\x02Nq\x000" + b"cpytorch_lightning.a\nThing\nq\x010N" + b"\x85q\x020h\x01h\x02R" * 100_000 + b"."
            ),
            "holds no tensors",
        ),
        "list that holds itself": (zipped(b"\x80\x02]q\x00h\x00a."), "contains itself"),
        "dictionary that holds itself": (zipped(b"\x80\x02}q\x00" + text("a") + b"h\x00s."), "contains itself"),
        "billion laughs of lists": (zipped(b"\x80\x02(" + laughs + b"l."), "unfolds to more"),
        "billion laughs of dictionaries": (zipped(b"\x80\x02(" + dictionaries + b"l."), "unfolds to more"),
        "text of 2**60 bytes": (with_tensor(b"\x8d" + struct.pack("<Q", 2**60)), "ends in the middle"),
        "text of 4 GiB": (with_tensor(b"X\xff\xff\xff\xff"), "ends in the middle"),
        "bytes of 2**63": (with_tensor(b"\x8e" + struct.pack("<Q", 2**63)), "ends in the middle"),
        "bytearray of 2**62": (with_tensor(b"\x96" + struct.pack("<Q", 2**62)), "ends in the middle"),
        "frame of 2**62": (with_tensor(b"\x95" + struct.pack("<Q", 2**62)), "ends in the middle"),
        "number of 2 GiB": (with_tensor(b"\x8b\xff\xff\xff\x7f"), "number of 2147483647 bytes"),
        "number of 100,000 bytes": (with_tensor(b"\x8b\xa0\x86\x01\x00" + b"\x7f" * 100_000), "number of 100000 bytes"),
        "number of 100,000 digits": (with_tensor(b"L" + b"9" * 100_000 + b"L\n"), "where a number must be"),
        "memo at a place of 100 digits": (with_tensor(b"Np" + b"9" * 100 + b"\n"), "impossible place"),
        "steps without end": (zipped(b"\x80\x02" + b"N0" * 800_000 + b"N."), "more than 1500000 steps"),
        "a million open lists": (zipped(b"\x80\x02" + b"(" * 1_000_000 + b"."), "there is none"),
        "line without end": (with_tensor(b"c" + b"a" * 1_000_000), "ends in the middle"),
        "the same text encoded again and again": (with_tensor(copies), "over and over"),
        "the same counter copied again and again": (with_tensor(counters), "over and over"),
        "key of 100,000 characters": (
            zipped(b"\x80\x02}" + text("k" * 100_000) + tensor_node() + b"s.", STORAGE),
            "100000 characters long",
        ),
        "two tensors of one name": (
            zipped(
                b"\x80\x02}(" + text("a.b") + tensor_node() + text("a") + b"}" + text("b") + tensor_node() + b"su.",
                STORAGE,
            ),
            r"two tensors named 'a\.b'",
        ),
    }


def _tensor_lies() -> dict[str, tuple[bytes, str]]:
    v2 = b"ctorch._utils\n_rebuild_tensor_v2\n"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)tR(K\x01"
    dtype = b"cnumpy\ndtype\n(" + text("f4") + b"K\x00K\x01tR(K\x03" + text("<") + b"NNNtb"
    return {
        "beyond the storage": (tensor_file(size=(4,)), "beyond its tensor data"),
        "offset beyond the storage": (tensor_file(offset=1), "beyond its tensor data"),
        "stride beyond the storage": (tensor_file(size=(2,), stride=(3,)), "beyond its tensor data"),
        "offset of nothing beyond the storage": (tensor_file(size=(0,), offset=5), "beyond its tensor data"),
        "negative offset": (tensor_file(offset=-1), "cannot be"),
        "negative size": (tensor_file(size=(-3,)), "of 0 or more"),
        "negative sizes whose product is positive": (tensor_file(size=(-1, -3), stride=(1, 1)), "of 0 or more"),
        "negative stride": (tensor_file(stride=(-1,)), "cannot be"),
        "sizes that overflow": (tensor_file(size=(2**32, 2**32), stride=(0, 0)), "larger than any real"),
        "sizes that overflow but hold nothing": (
            tensor_file(size=(2**62, 2**62, 0), stride=(1, 1, 1)),
            "larger than any",
        ),
        "stride that overflows": (tensor_file(size=(2,), stride=(2**63,)), "cannot be"),
        "one number repeated to 400 GB": (tensor_file(size=(10**6, 10**5), stride=(0, 0)), "repeats a few bytes"),
        "65 dimensions": (tensor_file(size=(1,) * 65, stride=(1,) * 65), "65 dimensions"),
        "more sizes than strides": (tensor_file(size=(1, 1)), "cannot be"),
        "storage longer than its member": (tensor_file(numel=4), "12 bytes where 16 were declared"),
        "storage of negative length": (tensor_file(numel=-3), "impossible length"),
        "storage of 2**70": (tensor_file(numel=2**70), "impossible length"),
        "storage of an unknown type": (tensor_file(kind="torch\nQInt8Storage"), "unknown type"),
        "storage of a foreign type": (tensor_file(kind="omegaconf\nFloatStorage"), "unknown type"),
        "storage missing": (tensor_file(key="7"), "are missing"),
        "storage of two types": (
            zipped(b"\x80\x02](" + tensor_node() + tensor_node(kind="torch\nIntStorage") + b"e.", STORAGE),
            "declared twice, differently",
        ),
        "tensor without storage": (with_tensor(v2 + b"(NK\x00))\x89NtR"), "no tensor data"),
        "tensor without anything": (with_tensor(v2 + b")R"), "wrong number"),
        "conjugated tensor": (
            zipped(b"\x80\x02}" + text("w") + tensor_node()[:-2] + b"}" + text("conj") + b"\x88stRs.", STORAGE),
            "conjugated",
        ),
        "array shorter than its shape": (with_tensor(array + numbers((9,)) + dtype + b"\x89C\x04aaaatb"), "beyond its"),
        "array of negative shape": (
            with_tensor(array + numbers((-1,)) + dtype + b"\x89C\x04aaaatb"),
            "shape is damaged",
        ),
        "number that is no tensor": (zipped(b"\x80\x02K\x01."), "holds no tensors"),
        "nothing": (zipped(b"\x80\x02}."), "holds no tensors"),
    }


def _python_zip(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    return buffer.getvalue()


def _good_members() -> dict[str, bytes]:
    pickled = b"\x80\x02}" + text("w") + tensor_node() + b"s."
    return {"archive/data.pkl": pickled, "archive/data/0": STORAGE, "archive/version": b"3\n"}


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]


def _central(data: bytes, name: bytes) -> int:
    """Where the directory entry of a member begins."""
    at = data.find(b"PK\x01\x02")
    while data[at + 46 : at + 46 + len(name)] != name:
        at = data.index(b"PK\x01\x02", at + 4)
    return at


def _zip_lies() -> dict[str, tuple[bytes, str]]:
    members = _good_members()
    good = _python_zip(members)
    first = _central(good, b"archive/data.pkl")
    second = _central(good, b"archive/data/0")
    local = struct.unpack_from("<I", good, second + 42)[0]
    end = len(good) - 22
    twice = good.replace(b"archive/version", b"archive/data/00").replace(b"archive/data/00", b"archive/data/0\x00")
    files = {
        "truncated at half": (good[: len(good) // 2], "not end with a directory"),
        "truncated by one byte": (good[:-1], "not end with a directory"),
        "bytes before the archive": (b"PK\x03\x04" + good, "directory is not where"),
        "bytes behind the archive": (good + b"\x00", "not end with a directory"),
        "comment": (_python_zip(members, comment=b"hello"), "not end with a directory|unusual"),
        "archive hidden in a comment": (_python_zip(members, comment=good), "is not where it should be|unusual"),
        "deflated": (_python_zip(members, compression=zipfile.ZIP_DEFLATED), "compressed"),
        "deflate bomb": (
            _python_zip(members | {"archive/data/0": bytes(10_000_000)}, compression=zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        "encrypted": (_patched(good, first + 8, b"\x01\x00"), "compressed or encrypted"),
        "folder attribute": (_patched(good, second + 38, b"\x10\x00\x00\x00"), "folder or a link"),
        "symbolic link": (_patched(good, second + 38, b"\x00\x00\xff\xa1"), "folder or a link"),
        "folder": (_python_zip(members | {"archive/data/": b""}), "folder or a link"),
        "upward name": (_python_zip(members | {"archive/../../evil": b"x"}), "leads elsewhere"),
        "absolute name": (_python_zip({"/etc/data.pkl": b"x"}), "leads elsewhere"),
        "backslash in a name": (_python_zip(members | {"archive/data\\1": b"x"}), "leads elsewhere"),
        "control character in a name": (twice, "leads elsewhere"),
        "second folder": (_python_zip(members | {"other/data.pkl": members["archive/data.pkl"]}), "never writes"),
        "unknown member": (_python_zip(members | {"archive/run.py": b"import os"}), "never writes"),
        "TorchScript": (
            _python_zip(members | {"archive/code/m.py": b"x", "archive/constants.pkl": b"x"}),
            "TorchScript",
        ),
        "wrong CRC of the pickle": (
            _patched(_patched(good, first + 16, b"\0\0\0\0"), 14, b"\0\0\0\0"),
            r"data\.pkl' is damaged",
        ),
        "wrong CRC in the directory": (_patched(good, first + 16, b"\0\0\0\0"), "contradicts the directory"),
        "two sizes": (_patched(good, second + 20, b"\x01\x00\x00\x00"), "two sizes"),
        "size beyond the file": (_patched(good, second + 20, b"\xff\xff\xff\x7f" * 2), "outside the file"),
        "offset beyond the file": (_patched(good, second + 42, b"\xff\xff\xff\x7f"), "overlap or leave a gap"),
        "overlapping members": (_patched(good, second + 42, b"\0\0\0\0"), "overlap or leave a gap"),
        "another name in the member": (_patched(good, local + 30, b"archive/data/1"), "contradicts the directory"),
        "another method in the member": (_patched(good, local + 8, b"\x08"), "contradicts the directory"),
        "size in the member": (_patched(good, local + 22, b"\x01"), "contradicts the directory"),
        "65,535 members": (_patched(good, end + 8, b"\xff\xff" * 2), "claims 65535 members"),
        "fewer members": (_patched(good, end + 8, b"\x02\x00" * 2), "behind its last entry"),
        "directory elsewhere": (_patched(good, end + 16, b"\x05\x00\x00\x00"), "not where it should be"),
        "several disks": (_patched(good, end + 4, b"\x01\x00"), "unusual directory"),
        "no data.pkl": (_python_zip({"archive/version": b"3\n"}), r"without data\.pkl"),
        "empty archive": (_python_zip({}), r"without data\.pkl"),
        "big-endian": (_python_zip(members | {"archive/byteorder": b"big"}), "big-endian"),
        "any other zip": (_python_zip({"word/document.xml": b"<xml/>"}), "never writes"),
    }
    both = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 10, 20)
    both += b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1) + good[end:]
    files["two directories"] = good[:end] + both, "contradict each other"
    files["second directory elsewhere"] = good[:end] + both[:56] + b"PK\x06\x07" + bytes(16) + good[end:], "unusual"
    again = io.BytesIO()
    archive = ZipWriter(again)
    for name in ("archive/data.pkl", "archive/data/0", "archive/data.pkl"):
        archive.add(name, len(members[name]), lambda name=name: members[name])
    archive.close()
    files["the same member twice"] = again.getvalue(), "twice"
    return files


def _legacy_lies() -> dict[str, tuple[bytes, str]]:
    pickled = b"\x80\x02}" + text("w") + tensor_node(more=b"N") + b"s."
    data = struct.pack("<Q", 3) + STORAGE

    def part(*values: int) -> bytes:
        more = b"(" + text("v") + b"".join(map(whole, values)) + b"t"
        return legacy(b"\x80\x02}" + text("w") + tensor_node(more=more) + b"s.", ["0"], data)

    return {
        "legacy: other protocol": (legacy(pickled, ["0"], data, protocol=1002), "unknown version"),
        "legacy: big-endian": (legacy(pickled, ["0"], data, little_endian=False), "big-endian"),
        "legacy: truncated": (legacy(pickled, ["0"], data[:-1]), "ends before its tensor data"),
        "legacy: trailing bytes": (legacy(pickled, ["0"], data + b"\0"), "1 bytes follow"),
        "legacy: other length": (legacy(pickled, ["0"], struct.pack("<Q", 2) + STORAGE), "another length"),
        "legacy: negative length": (legacy(pickled, ["0"], struct.pack("<q", -3) + STORAGE), "another length"),
        "legacy: missing key": (legacy(pickled, [], b""), "does not match"),
        "legacy: key twice": (legacy(pickled, ["0", "0"], data * 2), "does not match"),
        "legacy: keys that are none": (legacy(pickled, {"0": 1}, data), "list of tensor data is damaged"),
        "legacy: part beyond its storage": (part(2, 2), "reaches beyond them"),
        "legacy: negative part": (part(-1, 2), "reaches beyond them"),
        "legacy: part without numbers": (part(), "reference to tensor data is damaged"),
        "legacy: evil keys": (legacy(pickled, [Evil()], data), r"the global (posix|nt)\.system"),
        "legacy: evil system information": (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(Evil(), 2),
            r"the global (posix|nt)\.system",
        ),
        "legacy: only the magic number": (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "ends in the middle"),
    }


def _safetensors_lies() -> dict[str, tuple[bytes, str]]:
    entry = '"dtype":"F32","shape":[3],"data_offsets":[0,12]'
    return {
        "header longer than the file": (safetensors("{}", length=1000), "claims 1000 bytes but the file has"),
        "header of 2**63 bytes": (safetensors("{}", length=2**63), "more than any real file"),
        "header of 4 GiB": (safetensors("{}", length=2**32 - 1), "more than any real file"),
        "header of no bytes": (safetensors("", b"{}"), "does not begin with a brace"),
        "leading space": (safetensors(' {"w":{' + entry + "}}", STORAGE), "does not begin with a brace"),
        "duplicate tensor": (safetensors('{"w":{' + entry + '},"w":{' + entry + "}}", STORAGE), "same thing twice"),
        "duplicate field": (safetensors('{"w":{' + entry + ',"dtype":"F32"}}', STORAGE), "same thing twice"),
        "duplicate metadata": (safetensors('{"__metadata__":{"a":"1","a":"2"}}'), "same thing twice"),
        "metadata of numbers": (one_tensor(more=',"__metadata__":{"a":1}'), "not a table of texts"),
        "metadata that is a list": (one_tensor(more=',"__metadata__":[]'), "not a table of texts"),
        "unknown field": (safetensors('{"w":{' + entry + ',"x":1}}', STORAGE), "not described by"),
        "missing field": (safetensors('{"w":{"dtype":"F32","shape":[3]}}', STORAGE), "not described by"),
        "unknown type": (one_tensor(dtype='"F7"'), "unknown type 'F7'"),
        "type that is a number": (one_tensor(dtype="32"), "unknown type"),
        "shape and bytes differ": (one_tensor(shape="[4]"), "needs 16 bytes but its offsets span 12"),
        "negative shape": (one_tensor(shape="[-3]"), "of 0 or more"),
        "fractional shape": (one_tensor(shape="[3.0]"), "of 0 or more"),
        "true as a shape": (one_tensor(shape="[true,3]"), "of 0 or more"),
        "shape that overflows": (one_tensor(shape="[4294967296,4294967296]"), "larger than any real"),
        "shape of nothing that overflows": (
            one_tensor(shape=f"[{2**62},{2**62},0]", offsets="[0,0]"),
            "larger than any",
        ),
        "shape of 1000 dimensions": (one_tensor(shape=str([1] * 1000)), "1000 dimensions"),
        "offsets backwards": (one_tensor(offsets="[12,0]"), "span -12"),
        "negative offsets": (one_tensor(offsets="[-12,0]"), "span 12"),
        "offsets beyond the file": (one_tensor(offsets="[4,16]"), "overlaps another one or leaves a hole"),
        "three offsets": (one_tensor(offsets="[0,12,12]"), "no valid data_offsets"),
        "fractional offsets": (one_tensor(offsets="[0,12.0]"), "no valid data_offsets"),
        "truncated data": (one_tensor()[:-1], "tensors need"),
        "trailing data": (one_tensor() + b"\0", "1 bytes follow"),
        "overlapping tensors": (safetensors('{"v":{' + entry + '},"w":{' + entry + "}}", STORAGE), "overlaps another"),
        "hole": (
            safetensors('{"w":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}', STORAGE),
            "leaves a hole",
        ),
        "nested 50,000 deep": (safetensors('{"w":' + "[" * 50_000 + "]" * 50_000 + "}"), "not valid JSON"),
        "millions of empty lists": (safetensors('{"w":[' + "[]," * 2_600_000 + "[]]}"), "far more entries"),
        "number of 10,000 digits": (one_tensor(shape=f"[{'9' * 10_000}]"), "not valid JSON"),
        "NaN": (one_tensor(shape="[NaN]"), "not valid JSON"),
        "Infinity": (one_tensor(offsets="[0,Infinity]"), "not valid JSON"),
        "not UTF-8": (safetensors(b'{"\xff":1}'), "not valid JSON"),
        "lone surrogate in a name": (safetensors('{"\\ud800":{' + entry + "}}", STORAGE), "not valid Unicode"),
        "name of 5000 characters": (
            safetensors('{"' + "n" * 5000 + '":{' + entry + "}}", STORAGE),
            "5000 characters long",
        ),
        "text behind the header": (safetensors('{"w":{' + entry + "}}{}", STORAGE), "not valid JSON"),
        "cut-off header": (safetensors('{"w":{' + entry, STORAGE), "not valid JSON"),
    }


def _other_files() -> dict[str, tuple[bytes, str]]:
    return {
        "empty file": (b"", "is empty"),
        "three bytes": (b"abc", "known form"),
        "web page": (b"<!DOCTYPE html><html><title>404</title></html>", "a web page"),
        "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        "picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "a picture"),
        "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
        "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(64), "gzip"),
        "tar": (bytes(257) + b"ustar\x0000" + bytes(800), "tar archive"),
        "zeros": (bytes(4096), "header"),
        "ones": (b"\xff" * 4096, "known form"),
        "bare pickle": (pickle.dumps({"a": 1}, 4), "plain pickle"),
        "bare text pickle": (pickle.dumps({"a": 1}, 0), "plain pickle"),
    }
