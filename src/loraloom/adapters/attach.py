"""A LoRA in memory (AdapterSet), and putting it on a live model (Attachment) without touching any weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loraloom.adapters.adapter import Adapter, Rows
from loraloom.adapters.blocks import BLOCK_COUNTS, block_index
from loraloom.adapters.kinds import adapter_from_tensors
from loraloom.adapters.settings import AdapterSettings
from loraloom.adapters.strength import LoraStrength
from loraloom.control import Control, heed, keep_going
from loraloom.errors import AdapterError, SettingsError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.adapter_file import AdapterFile, AdapterTarget, layer_keys, read_adapter_file
from loraloom.formats.adapter_kinds import ADAPTERS, trained_kinds
from loraloom.formats.lora_family import family_of_layers
from loraloom.randomness import seed_of

__all__ = ["AdapterSet", "Attachment", "attach", "choose_targets", "create_adapters", "match_layers", "read_adapters"]


class AdapterSet(nn.Module):
    """Adapters by target: a whole LoRA. ``len()`` is the number of layers.

    ``words``: textual-inversion vectors that its file contains, by word and encoder (``any``, ``clip_l``, ``clip_g``).
    """

    def __init__(
        self,
        adapters: Mapping[AdapterTarget, Adapter],
        metadata: Mapping[str, str] | None = None,
        words: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.targets = {target.name: target for target in adapters}
        self.adapters = nn.ModuleDict({target.name: adapter for target, adapter in adapters.items()})
        self.metadata = dict(metadata or {})
        self.words = dict(words or {})

    def in_blocks(self, strength: LoraStrength) -> AdapterSet:
        """The same adapters, but for those in blocks of weight 0. AdapterError for a block that the list leaves out."""
        kept = {target: adapter for target, adapter in self.items() if strength.of_block(target.name)}
        return AdapterSet(kept, self.metadata, self.words).eval()

    def __len__(self) -> int:
        return len(self.targets)

    def items(self) -> Iterator[tuple[AdapterTarget, Adapter]]:
        """Every target with its adapter."""
        for name, target in self.targets.items():
            yield target, self.adapter(name)

    def adapter(self, name: str) -> Adapter:
        """The adapter of the layer with this kohya name; KeyError when there is none."""
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def parts(self) -> list[str]:
        """The parts of the model that this LoRA changes, in the order of their first layer."""
        return list(dict.fromkeys(target.part for target in self.targets.values()))

    def part_parameters(self, part: str) -> list[nn.Parameter]:
        """The trainable tensors of one part."""
        return [
            parameter
            for target, adapter in self.items()
            if target.part == part
            for parameter in adapter.parameters()
            if parameter.requires_grad
        ]

    def file_tensors(self) -> dict[str, Tensor]:
        """Every tensor under its kohya key."""
        return {
            key: tensor
            for target, adapter in self.items()
            for key, tensor in layer_keys(target.name, adapter.tensors()).items()
        }

    def ranks(self) -> dict[int, int]:
        """How many factorizations of each rank the file has; empty for kinds without ranks."""
        counts: dict[int, int] = {}
        for _, adapter in self.items():
            for rank in adapter.ranks:
                counts[rank] = counts.get(rank, 0) + 1
        return counts

    def seed_step(self, *key: int | str) -> None:
        """Make this step's dropout a function of ``key`` and the layer alone."""
        for target, adapter in self.items():
            if adapter.dropout or adapter.rank_dropout or adapter.module_dropout:
                adapter.dropout_seed = seed_of(*key, "dropout", target.name)

    def take_rows(self, unet: Rows | None, text_encoder: Rows | None) -> None:
        """Say which rows of a larger batch come next, so that each drops what it would have dropped there."""
        for target, adapter in self.items():
            adapter.rows = unet if target.part == "unet" else text_encoder

    def rest_text_encoders(self) -> None:
        """Drop nothing in the text encoders, which learn no more, until the next ``train()``."""
        for target, adapter in self.items():
            if target.part != "unet":
                adapter.eval()

    def put_on(self, layers: Mapping[str, nn.Module]) -> Attachment:
        """The same as :func:`attach`, at full weight. Raises AdapterError for a model without all of the layers."""
        return attach(self, layers)

    @torch.no_grad()
    def apply_max_norm(self, limit: float) -> tuple[int, float]:
        """Scale down every adapter whose change has a norm above ``limit`` (Frobenius, scale included).

        Returns how many were, and the mean norm afterwards. The norm of a LoRA is found from products of the size of
        its rank, and the device is waited for once.
        """
        adapters = [adapter for _, adapter in self.items()]
        norms: list[float] = torch.stack([adapter.norm() for adapter in adapters]).tolist()
        scaled = 0
        for adapter, norm in zip(adapters, norms, strict=True):
            if norm > limit:
                adapter.scale_by(limit / norm)
                scaled += 1
        return scaled, sum(min(norm, limit) for norm in norms) / len(norms)


class Attachment:
    """A LoRA on a live model. Weights per part can be changed at any time; detach() leaves the model as it was.

    The adapters compute beside the layers (a side branch), so no weight of the model is ever written.
    """

    def __init__(self, adapters: AdapterSet, layers: Mapping[str, nn.Module]) -> None:
        self.adapters = adapters
        self._strength = LoraStrength()
        self._handles: list[RemovableHandle] = [
            layers[target.name].register_forward_hook(partial(self._hook, target.part, adapter))
            for target, adapter in adapters.items()
        ]

    def _hook(self, part: str, adapter: Adapter, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        weight = self._strength.of_part(part)
        return output if weight == 0.0 else adapter.add_to(output, inputs[0], layer, weight)

    def set_weights(self, *, unet: float, text_encoder: float) -> None:
        """Change how strongly each part is applied; 0 leaves the layer's output bit for bit."""
        self._strength = LoraStrength(unet, text_encoder)

    def detach(self) -> None:
        """Take the LoRA off. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    adapters: AdapterSet,
    layers: Mapping[str, nn.Module],
    *,
    unet: float = 1.0,
    text_encoder: float = 1.0,
) -> Attachment:
    """Put a LoRA on the layers of a live model (``layers``: module by kohya name). Returns the handle to remove it.

    Raises AdapterError for a model that lacks any of its layers.
    """
    missing = [name for name in adapters.targets if name not in layers]
    if missing:
        raise AdapterError(f"the model has no layer {missing[0]} ({len(missing)} of {len(adapters)} are missing)")
    attachment = Attachment(adapters, layers)
    attachment.set_weights(unet=unet, text_encoder=text_encoder)
    return attachment


def choose_targets(
    settings: AdapterSettings, targets: Sequence[AdapterTarget], *, family: str | None = None
) -> list[AdapterTarget]:
    """The layers that these settings train. ``family`` is needed for ranks that differ by block.

    Raises SettingsError for settings that choose no layer, or name one that is not there.
    """
    _check_block_counts(settings, family)
    trainable = _trainable(settings, targets, family)
    _check_patterns(settings, trainable)
    chosen = [target for target in trainable if _is_included(settings, target)]
    if not chosen:
        hint = "set adapter.unet or adapter.text_encoder to true"
        if settings.include or settings.exclude or settings.block_ranks is not None:
            hint = "adapter.include, adapter.exclude and adapter.block_ranks leave no layer"
        raise SettingsError(["adapter: nothing is trained"], hint)
    return chosen


def _trainable(settings: AdapterSettings, targets: Sequence[AdapterTarget], family: str | None) -> list[AdapterTarget]:
    """The layers that kind, parts and ranks leave, before any name is looked at."""
    kind: type[Adapter] = ADAPTERS.load(settings.kind)
    return [
        target
        for target in targets
        if kind.takes(target)
        and settings.trains_part(target.part)
        and (settings.trains_convolutions or not target.extended)
        and _rank_and_alpha(settings, target, family)[0] > 0
    ]


def _check_patterns(settings: AdapterSettings, trainable: Sequence[AdapterTarget]) -> None:
    """SettingsError for a pattern that finds nothing.

    It is a typing error: in silence it would leave out nothing, or everything.
    """
    for key, patterns in (("include", settings.include), ("exclude", settings.exclude)):
        for pattern in patterns:
            if not _is_found([pattern], trainable):
                names = f"the names look like {trainable[0].name}" if trainable else ""
                raise SettingsError([f"adapter.{key}: {pattern!r} matches no layer that would be trained"], names)


def _is_included(settings: AdapterSettings, target: AdapterTarget) -> bool:
    """Whether ``include`` and ``exclude`` leave a layer in; without ``include`` every layer is."""
    is_named = not settings.include or _is_found(settings.include, [target])
    return is_named and not _is_found(settings.exclude, [target])


def _is_found(patterns: Sequence[str], targets: Sequence[AdapterTarget]) -> bool:
    """Whether any of the patterns is in the name of any of the layers."""
    return any(re.search(pattern, target.name) for pattern in patterns for target in targets)


def _check_block_counts(settings: AdapterSettings, family: str | None) -> None:
    problems = []
    for name in ("block_ranks", "block_alphas", "conv_block_ranks", "conv_block_alphas"):
        given = getattr(settings, name)
        if given is None:
            continue
        if family is None:
            raise ValueError("ranks by block need the family of the checkpoint")
        wanted = BLOCK_COUNTS[family]
        if len(given) != wanted:
            problems.append(f"adapter.{name} has {len(given)} values; the U-Net of {family} has {wanted} blocks")
    if problems:
        raise SettingsError(problems, "the first value is for the first block on the way down; 0 leaves a block out")


def _rank_and_alpha(settings: AdapterSettings, target: AdapterTarget, family: str | None) -> tuple[int, float]:
    """Rank of a layer (0: not trained), and the alpha that, divided by the rank, gives the scale."""
    if target.kind == "conv3x3":
        rank, alpha = settings.conv_rank, settings.conv_alpha
        ranks, alphas = settings.conv_block_ranks, settings.conv_block_alphas
    else:
        rank, alpha, ranks, alphas = settings.rank, settings.alpha, settings.block_ranks, settings.block_alphas
    if family is not None and (ranks is not None or alphas is not None):
        block = block_index(target, family)
        if block is not None:
            rank = rank if ranks is None else ranks[block]
            alpha = alpha if alphas is None else alphas[block]
    alpha = alpha or float(rank)
    return rank, alpha * rank**0.5 if settings.rank_stabilized else alpha


def create_adapters(
    settings: AdapterSettings,
    targets: Sequence[AdapterTarget],
    *,
    seed: int,
    family: str | None = None,
    weight: Callable[[AdapterTarget], Tensor] | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> AdapterSet:
    """The adapters that the settings ask for: new ones, which change nothing yet, or those of ``start_from``.

    ``family`` is needed for ranks that differ by block; ``weight`` gives the weight of a layer, which DoRA and
    principal factors start from. ``control`` is heeded between layers. Raises SettingsError where the settings fit no
    layer, AdapterError where the file does not fit.
    """
    if settings.start_from is not None and settings.rank_from_file:
        adapters = _adapters_of_file(settings, settings.start_from, targets, listener)
    else:
        kind: type[Adapter] = ADAPTERS.load(settings.kind)
        needs_base = kind.needs_base or settings.init == "pissa"
        adapters = {}
        for target in choose_targets(settings, targets, family=family):
            heed(control)
            rank, alpha = _rank_and_alpha(settings, target, family)
            base = weight(target).detach() if weight is not None and needs_base else None
            adapters[target] = kind.create(target, settings, rank, alpha, seed=seed, base=base)
        if settings.start_from is not None:
            _start_from(adapters, settings, settings.start_from, targets, listener)
    for adapter in adapters.values():
        adapter.dropout = settings.dropout
        adapter.rank_dropout, adapter.module_dropout = settings.rank_dropout, settings.module_dropout
    return AdapterSet(adapters)


def _check_start(settings: AdapterSettings, path: Path, stored: AdapterSet) -> None:
    """AdapterError unless the file holds what the settings train, and can learn."""
    kind: type[Adapter] = ADAPTERS.load(settings.kind)
    for target, adapter in stored.items():
        if adapter.kind != kind.stored_as():
            raise AdapterError(
                f"adapter.start_from: {path} holds {adapter.kind} ({target.name}), adapter.kind is {settings.kind}",
                f"set adapter.kind={adapter.kind}" if adapter.kind in trained_kinds() else "it cannot be trained on",
            )
        if getattr(adapter, "scale", 1.0) == 0.0:
            raise AdapterError(
                f"adapter.start_from: {target.name} of {path} has alpha 0: what it learns would have no effect",
                "give the layer another alpha; sd-scripts would take the rank",
            )


def _adapters_of_file(
    settings: AdapterSettings, path: Path, targets: Sequence[AdapterTarget], listener: Listener
) -> dict[AdapterTarget, Adapter]:
    stored = read_adapters(path, targets, listener=listener)
    _check_start(settings, path, stored)
    kind: type[Adapter] = ADAPTERS.load(settings.kind)
    chosen = {
        target: kind.from_tensors(adapter.tensors(), target)
        for target, adapter in stored.items()
        if settings.trains_part(target.part) and _is_included(settings, target)
    }
    if len(chosen) < len(stored):
        left = len(stored) - len(chosen)
        raise AdapterError(
            f"adapter.start_from: the settings leave out {left} of the {len(stored)} layers of {path}, "
            "which would be missing in the new LoRA",
            "train all of them, or start without adapter.rank_from_file",
        )
    return chosen


def _start_from(
    adapters: dict[AdapterTarget, Adapter],
    settings: AdapterSettings,
    path: Path,
    targets: Sequence[AdapterTarget],
    listener: Listener,
) -> None:
    """Give adapters the values of a file, alphas included; a notice names the layers that only one of the two has."""
    stored = read_adapters(path, targets, listener=listener)
    _check_start(settings, path, stored)

    # Settings and file may each have layers that the other lacks; shapes that differ cannot be taken over at all.
    lost = 0
    for target, source in stored.items():
        if target not in adapters:
            lost += 1
            continue
        made, values = adapters[target].tensors(), source.tensors()
        if {role: t.shape for role, t in made.items()} != {role: t.shape for role, t in values.items()}:
            ranks = ["/".join(map(str, adapter.ranks)) or "none" for adapter in (source, adapters[target])]
            raise AdapterError(
                f"adapter.start_from: layer {target.name} of {path} has rank {ranks[0]} and other sizes than the "
                f"settings make (rank {ranks[1]})",
                "set adapter.rank_from_file=true to take ranks and alphas from the file",
            )
        adapters[target] = type(adapters[target]).from_tensors(values, target)

    matched = len(stored) - lost
    if matched == 0:
        raise AdapterError(
            f"adapter.start_from: none of the {len(stored)} layers of {path} is trained with these settings"
        )
    if lost:
        text = f"{lost} of the {len(stored)} layers of {path} are not trained: the new LoRA will not have them"
        listener(Notice(f"adapter.start_from: {text}", "warning"))

    if len(adapters) > matched:
        text = f"{len(adapters) - matched} trained layers are not in {path}: they start from scratch"
        listener(Notice(f"adapter.start_from: {text}", "warning"))


def match_layers(file: AdapterFile, targets: Sequence[AdapterTarget]) -> dict[AdapterTarget, str]:
    """Which layer of the file belongs to which target; AdapterError unless every layer of the file finds its own."""
    known: dict[str, AdapterTarget] = {}
    for target in targets:
        names = (target.name, *target.aliases, *_dotted_names(target), *_lycoris_names(target), *_comfy_names(target))
        known.update(dict.fromkeys(names, target))
    matched: dict[AdapterTarget, str] = {}
    unknown = []
    for name in file.layers:
        found = known.get(name)
        if found is None:
            unknown.append(name)
        elif found in matched:
            raise AdapterError(f"{file.path} names layer {found.name} twice: {matched[found]} and {name}")
        else:
            matched[found] = name
    if not matched:
        raise AdapterError(
            f"{file.path}: 0 of its {len(file.layers)} layers exist in this model "
            f"(the first is {next(iter(file.layers))})",
            _family_hint(file),
        )
    if unknown:
        raise AdapterError(
            f"{file.path}: {len(unknown)} of its {len(file.layers)} layers do not exist in this model "
            f"(the first is {unknown[0]})",
            _family_hint(file),
        )
    return matched


def read_adapters(path: Path, targets: Sequence[AdapterTarget], *, listener: Listener = ignore) -> AdapterSet:
    """Read a LoRA file for a model with these targets; AdapterError when it was made for another one.

    What is odd about it (an alpha of zero, say) goes to the ``listener``.
    """
    file = read_adapter_file(path)
    for doubt in file.doubts:
        listener(Notice(f"{path}: {doubt.sentence}", "warning"))
    adapters: dict[AdapterTarget, Adapter] = {}
    for target, name in match_layers(file, targets).items():
        try:
            adapters[target] = adapter_from_tensors(file.layers[name], target)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error.problem}", error.hint or _family_hint(file)) from error
    adapter_set = AdapterSet(adapters, file.metadata, file.embeddings)
    adapter_set.requires_grad_(False)
    return adapter_set.eval()


def _dotted_names(target: AdapterTarget) -> list[str]:
    """diffusers' spellings of a layer; transformers 5 dropped the ``text_model`` level that files still carry."""
    short = target.diffusers_name.removeprefix("text_model.")
    paths = [target.diffusers_name] if target.part == "unet" else [short, f"text_model.{short}"]
    names = [f"{target.part}.{path}" for path in paths] + [f"base_model.model.{path}" for path in paths]
    return names + (paths if target.part == "unet" else [])


_COMFY_ENCODERS = {"text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",)}
"""ComfyUI's names of the text encoders of SD 1, SD 2 and SDXL."""


def _comfy_names(target: AdapterTarget) -> list[str]:
    """ComfyUI's spelling: the U-Net by the checkpoint's names, text encoders by those of transformers."""
    if target.part == "unet":
        return [f"diffusion_model.{target.module}"]
    short = target.diffusers_name.removeprefix("text_model.")
    encoders = _COMFY_ENCODERS.get(target.part, ())
    return [f"text_encoders.{encoder}.transformer.text_model.{short}" for encoder in encoders]


def _lycoris_names(target: AdapterTarget) -> list[str]:
    """What LyCORIS calls a layer of a diffusers model that it was given on its own."""
    if target.part == "text_encoder_2":  # the same names as the first one's
        return []
    short = target.diffusers_name.removeprefix("text_model.")
    return [f"lycoris_{path.replace('.', '_')}" for path in dict.fromkeys((target.diffusers_name, short))]


def _family_hint(file: AdapterFile) -> str:
    return f"it was made for {family_of_layers(file.layers, file.metadata)}: use a checkpoint of that family"
