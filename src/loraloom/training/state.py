"""Exact resume: all that a run is at one step, in one file, so that it goes on as if it had never stopped.

A state is ``state/step-00000120.safetensors``: the tensors as tensors, everything else as JSON in the header, and a
SHA-256 over both. There is no pickle and so no code in it. All random draws of a run are pure functions of its seed
and the step, so the step is all there is to remember of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from loraloom.actions import Action, Sentence
from loraloom.data.sample import Dataset, Sample
from loraloom.errors import FileError, FileFormatError, MissingFileError, OutputError, ResumeError, SettingsError
from loraloom.events import Listener, Notice
from loraloom.formats.files import make_folder, sha256_of
from loraloom.formats.tensors import bytes_of, open_tensors, write_tensors
from loraloom.models.checkpoint import Checkpoint
from loraloom.plain_data import shown
from loraloom.training.settings import TrainSettings

__all__ = [
    "EXPLODED",
    "Identity",
    "ResumePoint",
    "RunState",
    "Stateful",
    "check_alike",
    "check_identity",
    "checkpoint_fingerprint",
    "find_state",
    "identity_of",
    "largest_value",
    "load_optimizer",
    "optimizer_options",
    "optimizer_values",
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
"""A trained weight this large is no result of learning: in LoRAs they stay below 10, in checkpoints below 100."""
_LISTED_SAMPLES = 20_000
"""Up to so many pictures are remembered one by one, so that a changed dataset can be told picture by picture."""

FREE_SETTINGS = (
    "name",
    "output",
    "checkpoint",
    "epochs",
    "steps",
    "branched_from",
    "device",
    "low_memory",
    "gradient_checkpointing",
    "keep_file_precision",
    "saving.",
    "preview.",
    "tensorboard",
    "validation.every_epochs",
    "validation.every_steps",
    "validation.patience",
    "validation.save_best",
    "validation.image_losses",
    "ema.save",
    "dataset.folder",
    "dataset.regularization_folder",
    "dataset.mask_folder",
    "dataset.captions.table",
    "dataset.cache_to_disk",
    "dataset.cache_text_to_disk",
    "dataset.cache_folder",
)
"""Settings that a run may go on with in another value (a final dot: the whole group). The checkpoint and the dataset
are compared by their content instead of their paths."""
MACHINE_SETTINGS = (
    "output",
    "checkpoint",
    "device",
    "low_memory",
    "keep_file_precision",
    "dataset.folder",
    "dataset.regularization_folder",
    "dataset.mask_folder",
    "dataset.captions.table",
    "dataset.cache_to_disk",
    "dataset.cache_text_to_disk",
    "dataset.cache_folder",
    "saving.",
    "preview.",
    "tensorboard",
)
"""Settings that may differ between processes that train one run together: where things lie, and what one alone does."""
ROUNDING_SETTINGS = ("device", "low_memory", "gradient_checkpointing", "keep_file_precision")
"""Those that change results by rounding only."""


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

    def load_adapters(self, adapters: nn.Module, device: torch.device) -> None:
        """Put the saved tensors into ``adapters``; ResumeError when they are of other layers or ranks."""
        saved = placed(dict(self.state.values["adapters"]), device)
        shapes = {name: tuple(tensor.shape) for name, tensor in adapters.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        if shapes != found:
            first = next(name for name in {**shapes, **found} if shapes.get(name) != found.get(name))
            raise ResumeError(
                f"{self.state.path}: its LoRA has other layers or ranks ({first}: {found.get(first, 'not there')} in "
                f"the state, {shapes.get(first, 'not there')} in this run)",
                "a LoRA cannot change its shape on the way: leave adapter.* as it was",
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
    make_folder(folder, hint="free some space or check its rights")
    write_tensors(path, tensors, metadata={_MARK: _VERSION, "step": str(step), "values": text, "sha256": digest})
    with open_tensors(path) as file:
        if file.metadata.get("sha256") != digest or _digest(file.metadata["values"], file) != digest:
            raise OutputError(f"{path}: what was written does not read back", "the disk or its cable may be failing")
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

    ``adapters``: trained tensors by name; ``optimizer``: what :func:`optimizer_values` gives. Of the moments those that
    are a number for each weight count; others may be infinite where an optimizer has not begun.
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
    """Read and verify one state. Raises FileFormatError when it is damaged or is no state of this version."""
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
        listener(Notice(f"the state of step {number} is passed over, the training had exploded: {reason}", "warning"))
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
            # Where it goes is for whoever takes it to say: "cpu" stays on the CPU, anything else follows its parameter.
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


# -- the optimizer ---------------------------------------------------------------------------------------------------


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of each parameter group, without its parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _keeps_own_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the class changed what is saved; then it must read that itself."""
    cls, plain = type(optimizer), torch.optim.Optimizer
    return cls.state_dict is not plain.state_dict or cls.load_state_dict is not plain.load_state_dict


def optimizer_values(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], initial: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the optimizer has come to. ``names``: of parameters by id(); ``initial``: its options when it was new."""
    values = {"class": type(optimizer).__qualname__, "initial": [dict(group) for group in initial]}
    if _keeps_own_state(optimizer):
        return values | {"own": optimizer.state_dict()}
    state = {names[id(key)]: value for key, value in optimizer.state.items() if isinstance(key, Tensor)}
    other = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
    return values | {"groups": optimizer_options(optimizer), "state": state, "other": other}


def load_optimizer(
    optimizer: torch.optim.Optimizer, values: Mapping[str, Any], names: Mapping[int, str], device: torch.device
) -> bool:
    """Give a new optimizer what :func:`optimizer_values` kept; False (and nothing done) for one of another class.

    An option whose first value differs was changed in the settings since: its new value stays. Moments are set as
    they were, in their own type, which ``Optimizer.load_state_dict`` would convert to that of the parameter.
    """
    if values["class"] != type(optimizer).__qualname__:
        return False
    values = placed(dict(values), device)
    if "own" in values:
        changed = _changed_options(optimizer, values["initial"])
        optimizer.load_state_dict(values["own"])
        for group, options in zip(optimizer.param_groups, changed, strict=True):
            group.update(options)
        return True
    changed = _changed_options(optimizer, values["initial"])
    saved_groups = _by_name(values["groups"])
    for index, group in enumerate(optimizer.param_groups):
        saved = saved_groups.get(_group_name(group, index))
        if saved is not None:
            group.update({key: value for key, value in saved.items() if key not in changed[index]})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = values["state"].get(names[id(parameter)])
            if state is not None:
                optimizer.state[parameter] = state
    for key, value in values["other"].items():
        optimizer.state[key] = value
    return True


def _group_name(group: Mapping[str, Any], index: int) -> str:
    return str(group.get("name", index))


def _by_name(groups: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {_group_name(group, index): group for index, group in enumerate(groups)}


def _changed_options(optimizer: torch.optim.Optimizer, initial: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each group the options that begin otherwise than they did when the state's run began."""
    before = _by_name(initial)
    changed = []
    for index, options in enumerate(optimizer_options(optimizer)):
        old = before.get(_group_name(options, index), {})
        changed.append(
            {
                key: value
                for key, value in options.items()
                if key in old and not _same(placed(old[key], torch.device("cpu")), value)
            }
        )
    return changed


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    return bool(one == other)


# -- who the run is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to go on: the base, the pictures and captions, the settings that matter."""

    checkpoint: str
    dataset: str
    samples: Mapping[str, str]
    """Digest of each picture with its caption by identity; empty for a very large dataset."""
    settings: Mapping[str, Any]

    def to_values(self) -> dict[str, Any]:
        """As plain data."""
        return {
            field.name: dict(value) if isinstance(value := getattr(self, field.name), Mapping) else value
            for field in fields(self)
        }


def identity_of(settings: TrainSettings, dataset: Dataset, checkpoint: Checkpoint) -> Identity:
    """The identity of a run with these settings."""
    samples = {sample.identity: _sample_digest(sample) for sample in dataset.samples}
    digest = sha256()
    for identity in sorted(samples):
        digest.update(f"{identity}\0{samples[identity]}\n".encode("utf-8", "backslashreplace"))
    return Identity(
        checkpoint=checkpoint_fingerprint(checkpoint),
        dataset=digest.hexdigest(),
        samples=samples if len(samples) <= _LISTED_SAMPLES else {},
        settings=_flat(_dumped(settings)),
    )


def _dumped(settings: TrainSettings) -> dict[str, Any]:
    """All settings but where the concepts' files lie, and ``notify``, whose address may hold a secret.

    What is unset and was resolved stands as what it came to: writing that down changes no run.
    """
    data = settings.model_dump(mode="json", exclude={"notify"})
    data["optimizer"]["lr"] = settings.optimizer.learning_rate
    data["dataset"]["cache_to_disk"] = settings.dataset.latent_folder is not None
    places = {"folder", "mask_folder", "caption_table"}
    data["dataset"]["concepts"] = [
        concept.model_dump(mode="json", exclude_defaults=True, exclude=places) for concept in settings.dataset.concepts
    ]
    return data


def _sample_digest(sample: Sample) -> str:
    """Of everything about a sample but where its files lie."""
    parts = [f"{sample.repeats} {sample.is_regularization}"]
    parts += [
        f"{part.name}={value!r}"
        for part in fields(sample)
        if part.name not in ("path", "concept", "caption_path", "captions")
        and not isinstance(value := getattr(sample, part.name), Path)
    ]
    parts.append(repr(sample.captions.model_dump(exclude_defaults=True, exclude={"table"})))
    if sample.mask_path is not None:
        parts.append(sha256_of(sample.mask_path))
    return sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of the names, types and shapes of all tensors and of up to 64 values of each, spread evenly.

    Any training or merge changes it, and it takes a moment where a hash of the whole file reads gigabytes.
    """
    digest = sha256()
    for name in sorted(checkpoint):
        tensor = checkpoint.mapped(name).reshape(-1)
        digest.update(f"{name}{tensor.dtype}{tuple(checkpoint.info(name).shape)}".encode())
        digest.update(bytes_of(tensor[:: max(1, len(tensor) // 64)][:64]))
    return digest.hexdigest()


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_one_of(path: str, names: Sequence[str]) -> bool:
    return any(path == name or (name.endswith(".") and path.startswith(name)) for name in names)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Paths of the settings that differ; one that is unknown on a side counts as its default there."""
    missing = object()
    return [
        path
        for path in sorted(set(before) | set(now))
        if path in now and before.get(path, defaults.get(path, missing)) != now[path]
    ]


def check_identity(
    before: Mapping[str, Any], now: Identity, listener: Listener, *, force: bool, branch: bool = False
) -> list[str]:
    """Compare the identity kept in a state with that of the run that is to go on; returns the changed settings.

    ResumeError that says what differs, unless ``force``: then a warning does. A ``branch`` is made to have other
    settings and may have other pictures; only its base must be the same.
    """
    changed = changed_settings(before["settings"], now.settings, _flat(_defaults()))
    told = [
        f"{path} = {_shown(now.settings[path])} (it was {_shown(before['settings'].get(path))})" for path in changed
    ]
    strict = [text for path, text in zip(changed, told, strict=True) if not _is_one_of(path, FREE_SETTINGS)]
    pictures = _dataset_differences(before, now)
    differences = [] if before["checkpoint"] == now.checkpoint else ["the checkpoint is another one"]
    if branch:
        for text in (*pictures, *strict):
            listener(Notice(f"other than in the run it branches from: {text}"))
    else:
        differences += [*pictures, *strict]
    if differences and not force:
        hint = Sentence("give it what it was started with")
        if not branch:
            hint = Sentence(hint, "; or ", Action.BRANCH_RUN, " starts a new run from here with other settings")
        hint = Sentence(hint, "; or ", Action.FORCE_RESUME)
        raise ResumeError("the run cannot go on exactly: " + "; ".join(differences), hint)
    for text in differences:
        listener(Notice(f"going on although {text}", "warning"))
    rounding = [path for path in changed if path in ROUNDING_SETTINGS]
    if rounding and not branch:
        listener(Notice(f"{', '.join(rounding)} changed: results may differ by rounding", "warning"))
    return changed


def check_alike(identities: Sequence[tuple[Identity, str]]) -> None:
    """Raise SettingsError where a process of a run was given something else than the first one.

    Each is what a process would train, and the name of its mixed precision.
    """
    (first, precision), problems = identities[0], []
    for rank, (other, own_precision) in enumerate(identities[1:], 1):
        differences = [] if other.checkpoint == first.checkpoint else ["the checkpoint is another one"]
        differences += _dataset_differences(first.to_values(), other)
        differences += [
            f"{path} = {_shown(other.settings.get(path))} instead of {_shown(value)}"
            for path, value in first.settings.items()
            if other.settings.get(path) != value and not _is_one_of(path, MACHINE_SETTINGS)
        ]
        if own_precision != precision:
            differences.append(f"mixed precision is {own_precision} instead of {precision}")
        problems += [f"process {rank} has not what process 0 has: {text}" for text in differences]
    if problems:
        raise SettingsError(problems, "every machine needs the same settings, pictures, captions and checkpoint")


def _defaults() -> Mapping[str, Any]:
    """The default of every setting that has one, nested."""
    return _group_defaults(TrainSettings)


def _group_defaults(cls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, info in cls.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
            found[name] = _group_defaults(annotation)
        elif not info.is_required():
            found[name] = _as_json(info.get_default(call_default_factory=True))
    return found


def _as_json(value: Any) -> Any:
    """The value of a setting as ``model_dump(mode="json")`` has it."""
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    return "not set" if value is None else shown(value)


def _dataset_differences(before: Mapping[str, Any], now: Identity) -> list[str]:
    if before["dataset"] == now.dataset:
        return []
    old = before["samples"]
    if not old or not now.samples:
        return ["the pictures or captions are not the same"]
    kinds = {
        "changed": [name for name in now.samples if name in old and old[name] != now.samples[name]],
        "new": [name for name in now.samples if name not in old],
        "missing": [name for name in old if name not in now.samples],
    }
    texts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    return [f"pictures or captions: {', '.join(texts)}"]
