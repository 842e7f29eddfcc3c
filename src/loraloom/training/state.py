"""Exact resume: all that a run is at one step, in one file, so that it goes on as if it had never stopped.

A state is ``state/step-00000120.safetensors``: the tensors as tensors, everything else as JSON in the header, and a
SHA-256 over both. There is no pickle and so no code in it. All random draws of a run are pure functions of its seed
and the step, so the step is all there is to remember of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from loraloom.errors import FileError, FileFormatError, MissingFileError, OutputError, ResumeError
from loraloom.events import Listener, Notice
from loraloom.formats.files import make_folder
from loraloom.formats.tensors import bytes_of, open_tensors, write_tensors
from loraloom.training.identity import Identity, check_identity
from loraloom.training.trained import Trained

__all__ = [
    "EXPLODED",
    "ResumePoint",
    "RunState",
    "Stateful",
    "find_state",
    "largest_value",
    "placed",
    "read_state",
    "remove_older_states",
    "saved_states",
    "state_path",
    "unsound",
    "write_state",
]

_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_MARK = "loraloom_state"
_VERSION = "1"
EXPLODED = 1000.0
"""A trained weight this large is not a result of learning: in LoRAs they stay below 10, in checkpoints below 100."""


@dataclass(frozen=True)
class RunState:
    """One state file: the run after ``step`` steps. ``values`` are nested tables of plain values and tensors."""

    path: Path
    step: int
    values: Mapping[str, Any]


class Stateful(Protocol):
    """A part of a run that changes from step to step."""

    def state_dict(self) -> Mapping[str, Any]:
        """What :func:`write_state` can hold."""

    def load_state_dict(self, values: Mapping[str, Any], /) -> object:
        """The inverse."""


@dataclass
class ResumePoint:
    """Where a run goes on: from ``state``, in its own folder or (``branch``) as a new run.

    ``force``: go on although dataset, checkpoint or settings differ. ``changed``: settings found to differ.
    """

    state: RunState
    branch: bool = False
    force: bool = False
    changed: list[str] = field(default_factory=list)

    def check(self, identity: Identity, precision: str, listener: Listener) -> None:
        """Refuse a run that is not the one that wrote the state; see :func:`check_identity`."""
        values = self.state.values
        self.changed = check_identity(values["identity"], identity, listener, force=self.force, branch=self.branch)
        if values["precision"] != precision:
            text = f"mixed precision is {precision} on this device and was {values['precision']}: results will differ"
            listener(Notice(text, "warning"))

    def load_adapters(self, adapters: Trained, device: torch.device) -> None:
        """Put the saved tensors into ``adapters``; ResumeError when they are of other layers or ranks."""
        saved = placed(dict(self.state.values["adapters"]), device)
        shapes = {name: tuple(tensor.shape) for name, tensor in adapters.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        if shapes != found:
            first = next(name for name in {**shapes, **found} if shapes.get(name) != found.get(name))
            raise ResumeError(
                f"{self.state.path}: its LoRA has other layers or ranks ({first}: {found.get(first, 'not there')} in "
                f"the state, {shapes.get(first, 'not there')} in this run)",
                "a LoRA cannot change its shape during a run: leave adapter.* as it was",
            )
        adapters.load_state_dict(saved)


# -- files -----------------------------------------------------------------------------------------------------------


def state_path(folder: Path, step: int) -> Path:
    """The file of a state."""
    return folder / f"step-{step:08d}.safetensors"


def saved_states(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every state in ``folder``, the newest last."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    found = [(int(match[1]), folder / name) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(found)


def write_state(folder: Path, step: int, values: Mapping[str, Any], *, keep: int = 0) -> Path:
    """Write the state of ``step``, read it back, then remove all but the newest ``keep`` (0: none is removed).

    ``values``: nested mappings, lists and tuples of tensors, numbers, texts, None, dtypes and devices. Raises
    OutputError when it cannot be written or does not read back, ResumeError for a value that no file can hold.
    """
    path = state_path(folder, step)
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(values, tensors, "state"), ensure_ascii=False, separators=(",", ":"))
    digest = _digest(text, tensors)
    make_folder(folder, hint="free some space or check its permissions")
    write_tensors(path, tensors, metadata={_MARK: _VERSION, "step": str(step), "values": text, "sha256": digest})
    with open_tensors(path) as file:
        if file.metadata.get("sha256") != digest or _digest(file.metadata["values"], file) != digest:
            raise OutputError(f"{path}: the written file cannot be read back", "the disk or its cable may be failing")
    remove_older_states(folder, step, keep=keep)
    return path


def remove_older_states(folder: Path, step: int, *, keep: int) -> None:
    """Of the states up to ``step`` leave the newest ``keep``; 0 leaves all. One that cannot be removed stays."""
    if keep:
        for _, old in [entry for entry in saved_states(folder) if entry[0] <= step][:-keep]:
            with suppress(OSError):
                old.unlink(missing_ok=True)


def unsound(adapters: Mapping[str, Any], optimizer: Mapping[str, Any]) -> str:
    """Why nobody should go on from these weights and moments: the training has exploded. An empty text: they are sound.

    ``adapters``: trained tensors by name; ``optimizer``: what
    :func:`loraloom.training.optimizer_state.optimizer_values` gives. Of the moments those that are a number for each
    weight count; others may be infinite where an optimizer has not begun.
    """
    largest = largest_value(tensor for _, tensor in _tensors_in(adapters))
    if not largest < EXPLODED:
        return f"its weights reach {largest:.3g}" if math.isfinite(largest) else "its weights are not finite"
    moments = (tensor for _, tensor in _tensors_in(optimizer) if tensor.ndim and tensor.numel() > 1)
    if not math.isfinite(largest_value(moments)):
        return "the optimizer's moments are not finite"
    return ""


def largest_value(tensors: Iterable[Tensor]) -> float:
    """The largest magnitude in floating point tensors of any shape; NaN or infinity where they hold it."""
    largest = 0.0
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            value = float(tensor.detach().abs().max())
            if not math.isfinite(value):
                return value
            largest = max(largest, value)
    return largest


def _tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested tables and lists, with the path to it."""
    match value:
        case Tensor():
            yield name, value
        case _OnDevice():
            yield name, value.tensor
        case Mapping():
            for key, item in value.items():
                yield from _tensors_in(item, f"{name}.{key}")
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _tensors_in(item, f"{name}.{index}")


def read_state(path: Path) -> RunState:
    """Read and verify one state. Raises FileFormatError when it is damaged or is not a state of this version."""
    with open_tensors(path) as file:
        metadata = file.metadata
        if metadata.get(_MARK) != _VERSION or not {"step", "values", "sha256"} <= set(metadata):
            raise FileFormatError(f"{path}: is no saved state that this version of Loraloom reads")
        if _digest(metadata["values"], file) != metadata["sha256"]:
            raise FileFormatError(f"{path}: is damaged, its checksum is wrong", "an older state may be whole")
        # Copies: the file may be removed (which Windows refuses while it is mapped) before they are used up.
        tensors = {name: file[name].clone() for name in file}
        values = _unpack(json.loads(metadata["values"]), tensors)
        return RunState(path, int(metadata["step"]), values)


def find_state(folder: Path, listener: Listener, *, step: int | None = None) -> RunState | None:
    """The newest state of ``folder`` that is whole and sound (a warning tells of others), or that of ``step`` exactly.

    None when there is no state. Raises ResumeError when none can be used, or when there is none of ``step``.
    """
    states = saved_states(folder)
    if step is not None:
        known = dict(states)
        if step not in known:
            there = ", ".join(str(number) for number in known) or "none"
            raise ResumeError(f"{folder}: there is no state of step {step}", f"states are kept of steps: {there}")
        return read_state(known[step])
    for number, path in reversed(states):
        try:
            state = read_state(path)
        except MissingFileError:
            continue
        except FileError as error:
            listener(Notice(f"the state of step {number} cannot be used: {error.problem}", "warning"))
            continue
        reason = unsound(state.values.get("adapters", {}), state.values.get("optimizer", {}))
        if not reason:
            return state
        listener(Notice(f"the state of step {number} is skipped, the training had exploded: {reason}", "warning"))
    if states:
        raise ResumeError(
            f"{folder}: none of its {len(states)} states can be used", "start again from the settings.toml of the run"
        )
    return None


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """JSON for ``value``; its tensors go into ``tensors`` under their path."""
    match value:
        case None | bool() | int() | float() | str():
            # numpy's float64 is a float too, but would come back as another type than it went.
            if type(value) in (type(None), bool, int, float, str):
                return value
        case Tensor() if type(value) in (Tensor, nn.Parameter, nn.Buffer) and value.layout == torch.strided:
            tensors[name] = value.detach()
            return {"$tensor": name, "on": value.device.type}
        case torch.dtype():
            return {"$dtype": str(value).removeprefix("torch.")}
        case torch.device():
            return {"$device": str(value)}
        case Mapping():
            # JSON has texts for keys and nothing else, and a $ marks what is packed.
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: _pack(item, tensors, f"{name}.{key}") for key, item in value.items()}
            return {
                "$pairs": [
                    [_pack(key, tensors, f"{name}.key{index}"), _pack(item, tensors, f"{name}.{index}")]
                    for index, (key, item) in enumerate(value.items())
                ]
            }
        case list():
            return [_pack(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]
        case tuple():
            return {"$tuple": [_pack(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]}
        case set() | frozenset():
            return {"$set": [_pack(item, tensors, f"{name}.{index}") for index, item in enumerate(sorted(value))]}

    raise ResumeError(
        f"{name} is a {type(value).__name__}, which a state file cannot hold", "set saving.state=false to train without"
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value

    match value:
        case {"$tensor": name, "on": str(device)}:
            # Where it goes is for the user of the state to decide: "cpu" stays on the CPU, anything else follows its
            # parameter.
            tensor = tensors[name]
            return tensor if device == "cpu" else _OnDevice(tensor)
        case {"$dtype": str(name)}:
            return _dtype(name)
        case {"$device": str(name)}:
            return torch.device(name)
        case {"$pairs": pairs}:
            return {_unpack(key, tensors): _unpack(item, tensors) for key, item in pairs}
        case {"$tuple": items}:
            return tuple(_unpack(item, tensors) for item in items)
        case {"$set": items}:
            return {_unpack(item, tensors) for item in items}
    return {key: _unpack(item, tensors) for key, item in value.items()}


def _dtype(name: str) -> torch.dtype:
    """A type by its name; a state file is data, so no other attribute of torch is handed out."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        problem = f"a state file names the type {name!r}, which does not exist"
        raise FileFormatError(problem, "an older state may be whole")
    return found


@dataclass(frozen=True)
class _OnDevice:
    """A tensor that was on an accelerator when it was saved."""

    tensor: Tensor


def placed(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor that was on an accelerator put on ``device``."""
    match value:
        case _OnDevice():
            return value.tensor.to(device)
        case dict():
            return {key: placed(item, device) for key, item in value.items()}
        case list():
            return [placed(item, device) for item in value]
        case tuple():
            return tuple(placed(item, device) for item in value)
    return value
