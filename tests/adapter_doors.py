"""Every door through which a LoRA file comes in, and what must hold of them together, whatever the file is."""

from __future__ import annotations

import math
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import loraloom
from adapter_corpus import Draft, checkpoint_of, drafts, targets_of
from adapter_mutations import FLOATS, write
from loraloom.adapters.active import ActiveLoras
from loraloom.adapters.attach import AdapterSet, attach, create_adapters, read_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.adapters.strength import FULL, LoraStrength
from loraloom.errors import LoraloomError, SettingsError
from loraloom.formats.adapter_file import AdapterTarget, read_adapter_file
from loraloom.formats.embedding_file import embedding_of
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.family import Family
from loraloom.studio.library import scan
from loraloom.studio.weights import is_lora
from loraloom.weights.combine import combine_loras
from loraloom.weights.convert import convert_lora
from loraloom.weights.extract import extract_lora
from loraloom.weights.identify import identify
from loraloom.weights.inspect import inspect_file
from loraloom.weights.low_rank import Criterion
from loraloom.weights.merge import LoraWeight, merge
from loraloom.weights.metadata import edit_metadata, write_sidecars
from loraloom.weights.resize import resize_lora

__all__ = ["DOORS", "LIGHT_DOORS", "READING_DOORS", "Bench", "Fault", "examine", "remembered_names"]

TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
"""What ``inspect`` calls the families."""


@dataclass(frozen=True)
class Fault:
    """What a door did that no door may do: ``where`` is the same for all files that find the same fault."""

    door: str
    where: str
    what: str


@dataclass
class Bench:
    """A folder to work in, best one in memory, with a checkpoint of every family and a sound LoRA for it."""

    folder: Path
    sound: dict[str, Path] = field(default_factory=dict)

    def checkpoint(self, family: str, *, whole: bool) -> Path:
        """A tiny checkpoint of the family."""
        path = self.folder / f"{family}{'-whole' * whole}.safetensors"
        if not path.exists():
            write_tensors(path, checkpoint_of(family, whole=whole))
        return path

    def sound_lora(self, family: str) -> Path:
        """A LoRA without any fault."""
        if family not in self.sound:
            self.sound[family] = write(drafts()[f"{family}, lora, kohya"], self.folder, f"sound-{family}")
        return self.sound[family]

    def case(self) -> Path:
        """An empty folder for one file."""
        folder = self.folder / "case"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "out").mkdir(parents=True)
        return folder


@contextmanager
def remembered_names() -> Iterator[None]:
    """Within it the layers of a full-size model are listed once a family: that is half the time of a conversion."""
    listed = Family.all_targets
    known: dict[str, list[AdapterTarget]] = {}

    def remembered(family: Family) -> list[AdapterTarget]:
        if family.name not in known:
            known[family.name] = listed(family)
        return list(known[family.name])

    Family.all_targets = remembered  # type: ignore[method-assign]
    try:
        yield
    finally:
        Family.all_targets = listed  # type: ignore[method-assign]


def examine(
    draft: Draft, bench: Bench, outcomes: Counter[str], doors: Iterable[str] = (), *, refused_too: bool = True
) -> list[Fault]:
    """Bring the file to these doors, or to all. Returns the faults; ``outcomes`` counts what became of it at each.

    Without ``refused_too`` a file that the reader refuses is not brought to the tools, which ask the same reader.
    """
    folder = bench.case()
    path = write(draft, folder, "lora")
    before = path.read_bytes()
    visit = _Visit(draft, bench, path, folder / "out")
    answers: dict[str, Any] = {}
    faults: list[Fault] = []
    for door in doors or DOORS:
        if not refused_too and door not in READING_DOORS and isinstance(answers.get("read"), LoraloomError):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                answers[door] = DOORS[door](visit)
                outcomes[f"{door}: done"] += 1
            except LoraloomError as error:
                answers[door] = error
                outcomes[f"{door}: refused"] += 1
                faults += _unclear(door, error, path)
            except Exception as error:  # noqa: BLE001 - whatever comes out is the finding
                answers[door] = error
                outcomes[f"{door}: FAULT"] += 1
                faults.append(Fault(door, _place_of(error), f"{type(error).__name__}: {error}"))
    faults += _contradictions(answers)
    if path.read_bytes() != before:
        faults.append(Fault("all", "input", "the file was changed"))
    if left := [file.name for file in (folder / "out").iterdir() if file.name.startswith(".")]:
        faults.append(Fault("all", "output", f"left behind: {left}"))
    return faults


def _place_of(error: Exception) -> str:
    """The innermost line of the package, or of these tests where the package is not in it."""
    frames = traceback.extract_tb(error.__traceback__)
    root = str(Path(loraloom.__file__).parent)
    ours = [frame for frame in frames if frame.filename.startswith(root)] or list(frames)
    name = Path(ours[-1].filename)
    return f"{type(error).__name__} at {name.parent.name}/{name.name} {ours[-1].name}: {ours[-1].line}"


def _unclear(door: str, error: LoraloomError, path: Path) -> list[Fault]:
    """Refusals that a person cannot use: of several lines, or without the name of the file."""
    faults = []
    text = str(error)
    if not isinstance(error, SettingsError) and any(mark < " " for mark in text):
        faults.append(Fault(door, f"lines in {_place_of(error)}", repr(text)))
    is_of_the_sum = door == "merge" and "beyond the range" in text
    if path.name not in text and path.parent.name not in text and not is_of_the_sum:
        faults.append(Fault(door, f"no name in {_place_of(error)}", text))
    return faults


# ------------------------------------------------------------------------------------------------ the doors


@dataclass(frozen=True)
class _Visit:
    draft: Draft
    bench: Bench
    path: Path
    out: Path

    @property
    def checkpoint(self) -> Path:
        return self.bench.checkpoint(self.draft.family, whole=self.draft.whole_model)

    @property
    def targets(self) -> tuple[AdapterTarget, ...]:
        return targets_of(self.draft.family, whole=self.draft.whole_model)


def _read(visit: _Visit) -> None:
    """What the reader gives can be calculated with, and no alpha is out of range."""
    for name, roles in read_adapter_file(visit.path).layers.items():
        for role, tensor in roles.items():
            if role not in ("alpha", "on_input") and tensor.dtype not in FLOATS:
                raise AssertionError(f"{name} {role} was read as {tensor.dtype}")
        if "alpha" in roles and not math.isfinite(float(roles["alpha"])):
            raise AssertionError(f"{name} was read with an alpha that is not finite")


def _merge(visit: _Visit) -> None:
    out = visit.out / "merged.safetensors"
    merge(visit.checkpoint, [LoraWeight(visit.path, LoraStrength(0.7, 0.3))], out)
    with open_tensors(out) as tensors:
        _assert_sound({name: tensors[name] for name in tensors})


def _extract(visit: _Visit) -> None:
    """What was merged is a checkpoint that a LoRA can be made of."""
    merged = visit.out / "merged.safetensors"
    if merged.exists():
        out = visit.out / "extracted.safetensors"
        try:
            extract_lora(visit.checkpoint, merged, out, rank=2, precision="float")
        except LoraloomError as error:
            if "differs from" not in error.problem:
                raise AssertionError(f"a merged checkpoint was refused: {error}") from error
            return
        _assert_readable(out)


def _generate(visit: _Visit) -> None:
    """On the layers of a live model, both ways in which a LoRA acts on them; its words as a prompt uses them."""
    adapters = read_adapters(visit.path, visit.targets)
    for word, places in adapters.words.items():
        embedding_of(visit.path, word, places)
    layers = {name: _layer(target) for name, target in adapters.targets.items()}
    with torch.no_grad(), attach(adapters, layers, unet=0.7, text_encoder=0.3):
        beside = _run(adapters, layers)
    active = ActiveLoras([(adapters, FULL)], layers)
    active.weigh_unet([[0.7]])
    active.weigh_text([0.3])
    with torch.no_grad(), active.on():
        fused = _run(adapters, layers)
    for name, output in beside.items():
        largest = float(output.abs().max())
        if largest < 1e4 and not torch.allclose(output, fused[name], rtol=1e-2, atol=1e-3 * (1 + largest)):
            raise AssertionError(f"{name}: the two ways in which a LoRA acts give different pictures")


def _layer(target: AdapterTarget) -> nn.Module:
    if target.kind == "norm":
        is_group = target.part == "unet" and "transformer_blocks" not in target.module
        return nn.GroupNorm(1, *target.shape) if is_group else nn.LayerNorm(target.shape)
    outputs, inputs, *kernel = target.shape
    return nn.Conv2d(inputs, outputs, kernel[0], padding=kernel[0] // 2) if kernel else nn.Linear(inputs, outputs)


def _run(adapters: AdapterSet, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    outputs = {}
    for name, target in adapters.targets.items():
        made = torch.Generator().manual_seed(3)
        is_image = isinstance(layers[name], nn.Conv2d | nn.GroupNorm)
        channels = target.shape[1] if len(target.shape) > 1 else target.shape[0]
        x = torch.randn(1, channels, 2, 2, generator=made) if is_image else torch.randn(1, 2, channels, generator=made)
        outputs[name] = layers[name](x)
    return outputs


def _train(visit: _Visit) -> None:
    """As a LoRA that training goes on from."""
    kinds = {adapter.kind for _, adapter in read_adapters(visit.path, visit.targets).items()}
    for kind in sorted(kinds - {"norm"})[:1]:
        settings = AdapterSettings(kind=kind, start_from=visit.path, rank_from_file=True)  # type: ignore[arg-type]
        create_adapters(settings, visit.targets, seed=1)


def _combine(visit: _Visit) -> None:
    out = visit.out / "sum.safetensors"
    combine_loras(
        [LoraWeight(visit.path, LoraStrength(0.7, 0.3)), LoraWeight(visit.path, LoraStrength(-0.2, 0.4))], out, rank=2
    )
    _assert_readable(out)


def _combine_with_sound(visit: _Visit) -> None:
    """With a sound one of the same family and in the usual dialect."""
    other = visit.bench.sound_lora(visit.draft.family)
    combine_loras(
        [LoraWeight(other, LoraStrength(0.4)), LoraWeight(visit.path, LoraStrength(0.7, 0.3))],
        visit.out / "both.safetensors",
    )
    _assert_readable(visit.out / "both.safetensors")


def _resize(visit: _Visit) -> None:
    resize_lora(visit.path, visit.out / "small.safetensors", rank=2, conv_rank=1)
    _assert_readable(visit.out / "small.safetensors")


def _resize_dynamic(visit: _Visit) -> None:
    out = visit.out / "dynamic.safetensors"
    resize_lora(visit.path, out, rank=40, criterion=Criterion("sv_fro", 0.9), precision="bf16")
    _assert_readable(out)


def _convert(to: str) -> Callable[[_Visit], None]:
    def convert(visit: _Visit) -> None:
        out = visit.out / f"{to}.safetensors"
        convert_lora(visit.path, out, to=to)
        _assert_readable(out)

    return convert


def _metadata(visit: _Visit) -> None:
    edit_metadata(visit.path, visit.out / f"edited{visit.path.suffix}", {"title": "käthe", "ss_seed": "3"})


def _sidecars(visit: _Visit) -> None:
    copy = visit.out / f"copy{visit.path.suffix}"
    shutil.copyfile(visit.path, copy)
    try:
        write_sidecars(copy)
    except LoraloomError as error:
        raise type(error)(str(error).replace(copy.name, visit.path.name)) from error


def _library(visit: _Visit) -> None:
    report = scan([visit.path.parent], index=Path(":memory:"))
    for _, reason in report.broken:
        if "\n" in reason:
            raise AssertionError(f"a reason of several lines: {reason!r}")


def _assert_readable(path: Path) -> None:
    """What a tool wrote is a LoRA of finite numbers that Loraloom reads."""
    try:
        file = read_adapter_file(path)
    except LoraloomError as error:
        raise AssertionError(f"{path.name} was written and cannot be read: {error}") from error
    for name, roles in file.layers.items():
        _assert_sound({f"{name} {role}": tensor for role, tensor in roles.items()})


def _assert_sound(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise AssertionError(f"{name} was written with values that are not finite")


DOORS: Mapping[str, Callable[[_Visit], Any]] = {
    "read": _read,
    "inspect": lambda visit: inspect_file(visit.path),
    "inspect layers": lambda visit: inspect_file(visit.path, layers=True, hashes=True),
    "identify": lambda visit: identify(visit.path),
    "is LoRA": lambda visit: is_lora(visit.path),
    "merge": _merge,
    "extract": _extract,
    "generate": _generate,
    "train": _train,
    "combine": _combine,
    "combine with sound": _combine_with_sound,
    "resize": _resize,
    "resize dynamic": _resize_dynamic,
    "convert to kohya": _convert("kohya"),
    "convert to diffusers": _convert("diffusers"),
    "metadata": _metadata,
    "side files": _sidecars,
    "library": _library,
}
READING_DOORS = ("read", "inspect", "inspect layers", "identify", "is LoRA")
LIGHT_DOORS = (*READING_DOORS, "generate")
"""Those that write nothing."""


# ------------------------------------------------------------------------------------------------ all together


def _contradictions(answers: Mapping[str, Any]) -> list[Fault]:
    """Whether the doors say the same of one file."""
    found = dict.fromkeys(DOORS, False) | {door: not isinstance(given, Exception) for door, given in answers.items()}
    said = []
    if found["inspect"]:
        facts = answers["inspect"].facts
        is_lora_file = answers["inspect"].kind == "LoRA"
        usable = is_lora_file and "cannot be used" not in facts
        if usable and not found["read"]:
            said.append(f"inspect: a LoRA; the reader: {answers['read']}")
        if found["read"] and not usable and answers["inspect"].kind != "checkpoint":
            said.append(f"the reader: a LoRA; inspect: {answers['inspect'].title}, {facts.get('cannot be used')}")
        if found["identify"]:
            same = (answers["identify"].kind == "lora") == is_lora_file
            said += [] if same else [f"inspect: {answers['inspect'].kind}; library: {answers['identify'].kind}"]
            family = TITLES.get(answers["identify"].family, "") if is_lora_file else ""
            if family and facts.get("made for") != family:
                said.append(f"inspect: for {facts.get('made for')}; library: for {family}")
        if found["is LoRA"] and answers["is LoRA"] != is_lora_file and answers["inspect"].kind != "checkpoint":
            said.append(f"inspect: {answers['inspect'].kind}; merge takes it for a LoRA: {answers['is LoRA']}")
    if not found["read"]:
        doors = ("merge", "generate", "train", "combine", "resize", "convert to kohya", "convert to diffusers")
        said += [f"{door} takes what the reader refuses" for door in doors if found[door]]
    return [Fault("all", text.partition(":")[0] + " against another door", text) for text in said]
