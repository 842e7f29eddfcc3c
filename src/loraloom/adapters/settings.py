"""Settings of adapters. No torch here: the command line reads this file to print help."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from loraloom.adapters.strength import LoraStrength
from loraloom.errors import SettingsError
from loraloom.formats.adapter_kinds import ADAPTERS, KindEntry, trained_kinds, traits_of
from loraloom.idle import Remark, is_set
from loraloom.plain_data import is_slow_expression
from loraloom.setting_marks import Choices, ForBeginners, Kohya
from loraloom.settings import Settings

__all__ = ["AdapterSettings", "adapter_notices", "adapter_remarks", "parse_base_lora"]

Rank = Annotated[int, Field(ge=0, le=4096)]
Alpha = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
AdapterArgument = bool | int | float | str | tuple[float, ...]


class AdapterSettings(Settings):
    """What is trained on top of the frozen checkpoint."""

    kind: Annotated[str, Kohya("algo"), Choices(trained_kinds, ADAPTERS)] = "lora"
    """Kind of adapter: lora is read by every program; docs/adapters.md says what the others are for and
    which programs read them."""
    rank: Annotated[int, Kohya("network_dim"), Field(ge=1, le=4096), ForBeginners()] = 16
    """Rank of the update of each layer: more can learn more, and costs file size (SD 1.5 in fp16: 1.2 MB per rank)."""
    alpha: Annotated[float | None, Kohya("network_alpha"), Field(gt=0)] = None
    """The update is scaled by alpha / rank. Unset: equal to rank (scale 1)."""
    conv_rank: Annotated[int, Kohya("conv_dim"), Field(ge=0, le=4096)] = 0
    """Rank for 3x3 convolutions (0: they are not trained). When set, the other layers of the res blocks are too."""
    conv_alpha: Annotated[float | None, Kohya("conv_alpha"), Field(gt=0)] = None
    """Alpha of the 3x3 convolutions. Unset: equal to conv_rank."""
    rank_stabilized: Annotated[bool, Kohya("rs_lora", "use_rslora")] = False
    """Scale by alpha / sqrt(rank), so that a higher rank does not learn more slowly. The alpha in the file is written
    so that programs which divide by the rank get the same result."""
    init: Literal["default", "pissa", "orthogonal"] = "default"
    """Where the two matrices start. default: down random, up zero. pissa: the largest singular values of the layer's
    weight (the file has twice the rank). orthogonal: down with orthogonal rows, up zero."""
    dropout: Annotated[Probability, Kohya("network_dropout")] = 0.0
    """Probability that a component of the low-rank activation is dropped in a training step."""
    rank_dropout: Annotated[Probability, Kohya("rank_dropout")] = 0.0
    """Probability that a rank is left out for an image in a training step (other kinds: an output channel)."""
    module_dropout: Annotated[Probability, Kohya("module_dropout")] = 0.0
    """Probability that a layer's whole adapter is left out in a training step."""
    max_norm: Annotated[float, Kohya("scale_weight_norms"), Field(ge=0)] = 0.0
    """After each step, a layer's change whose norm (Frobenius) is above this is scaled down to it. 0: never. 1 is
    common."""
    block_ranks: Annotated[tuple[Rank, ...] | None, Kohya("block_dims")] = None
    """Rank for each block of the U-Net, instead of rank: 25 numbers for SD 1 and 2, 23 for SDXL; 0: not trained."""
    block_alphas: Annotated[tuple[Alpha, ...] | None, Kohya("block_alphas")] = None
    """Alpha for each block of the U-Net, instead of alpha; 0: equal to the block's rank."""
    conv_block_ranks: Annotated[tuple[Rank, ...] | None, Kohya("conv_block_dims")] = None
    """Rank of the 3x3 convolutions for each block, instead of conv_rank; 0: not trained."""
    conv_block_alphas: Annotated[tuple[Alpha, ...] | None, Kohya("conv_block_alphas")] = None
    """Alpha of the 3x3 convolutions for each block, instead of conv_alpha; 0: equal to the block's rank."""
    include: tuple[str, ...] = ()
    """Regular expressions: only layers are trained whose name (lora_unet_..., lora_te_...) contains a match of one of
    them."""
    exclude: tuple[str, ...] = ()
    """Regular expressions: layers whose name contains a match of one of them are not trained."""
    dora_axis: Literal["input", "output"] = "input"
    """Whose magnitudes dora trains: those of input channels mean the same in AUTOMATIC1111, Forge and ComfyUI; those of
    output channels are what PEFT and LyCORIS train and what their loaders read."""
    lokr_factor: Annotated[int, Kohya("factor"), Field(ge=-1)] = -1
    """lokr: size of the first matrix's sides where it divides the layer's. -1: as square as possible, the smallest
    file; 8 or 16 learn more."""
    lokr_decompose_both: Annotated[bool, Kohya("decompose_both")] = False
    """lokr: the first matrix of low rank as well, not only the second."""
    lokr_full_matrix: Annotated[bool, Kohya("full_matrix")] = False
    """lokr: both matrices whole, whatever the rank."""
    args: dict[str, AdapterArgument] = Field(default_factory=dict)
    """Settings of a kind that another package adds, by its own names: adapter.args.start=0.5."""
    start_from: Annotated[Path | None, Kohya("network_weights")] = None
    """A LoRA file to go on from, instead of a new one."""
    rank_from_file: Annotated[bool, Kohya("dim_from_weights")] = False
    """Take layers, ranks and alphas from start_from, instead of from the settings."""
    base_loras: Annotated[tuple[str, ...], Kohya("base_weights")] = ()
    """LoRA files merged into the checkpoint in memory before training, each "file" or "file:weight" or
    "file:text encoder weight:U-Net weight". The checkpoint file stays as it is."""
    unet: bool = True
    """Train the U-Net."""
    text_encoder: Annotated[bool, ForBeginners()] = True
    """Train the text encoder(s)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = list(self._problems_of_kind())
        if self.init != "default" and self.start_from is not None:
            problems.append("adapter.init and adapter.start_from both say where the adapter starts; set one of them")
        if self.rank_from_file and self.start_from is None:
            problems.append("adapter.rank_from_file needs adapter.start_from, the file to take the ranks from")
        if self.lokr_factor == 0:
            problems.append("adapter.lokr_factor is 1 or more, or -1")

        # Patterns are looked for in hundreds of names: one that goes back and forth without end would hang the run.
        for key, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    problems.append(f"adapter.{key}: {pattern!r} is not a regular expression ({error})")
                if is_slow_expression(pattern):
                    problems.append(
                        f"adapter.{key}: {pattern!r} repeats too often: searching for it could take for ever"
                    )
        for text in self.base_loras:
            try:
                parse_base_lora(text)
            except ValueError as error:
                problems.append(f"adapter.base_loras: {error}")

        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_kind(self) -> Iterator[str]:
        """What the kind has no use for. Only one of another package is imported, where it is given arguments."""
        if self.init != "default" and not traits_of(self.kind).is_low_rank:
            able = [name for name in trained_kinds() if traits_of(name).is_low_rank]
            yield f"adapter.init={self.init} is for {', '.join(able)}, not for {self.kind}"
        if self.args and _is_own(self.kind):
            yield f"adapter.args: {self.kind} has no settings of its own"
        elif self.args:
            try:
                _kind(self.kind).own_args(self)
            except SettingsError as error:
                yield from error.problems

    def trains_part(self, part: str) -> bool:
        """Whether layers of this part (``unet``, ``text_encoder``, ``text_encoder_2``) are trained."""
        return self.unet if part == "unet" else self.text_encoder

    @property
    def trains_convolutions(self) -> bool:
        """Whether any 3x3 convolution of the U-Net is trained."""
        return any(self.conv_block_ranks) if self.conv_block_ranks is not None else self.conv_rank > 0


def parse_base_lora(text: str) -> tuple[Path, LoraStrength]:
    """``file[:weight]`` or ``file:text encoder weight:U-Net weight`` as file and strength; ValueError."""
    name, weights = text, list[float]()
    while len(weights) < 2:
        rest, colon, last = name.rpartition(":")
        try:
            weight = float(last)
        except ValueError:
            break
        if not colon:
            break
        name, weights = rest, [weight, *weights]
    if not name.strip():
        raise ValueError(f"{text!r} names no file")
    if any(not abs(weight) < float("inf") for weight in weights):
        raise ValueError(f"{text!r} has a weight that is not a number")
    weights = weights or [1.0]
    return Path(name).expanduser(), LoraStrength(weights[-1], weights[0])


def adapter_notices(settings: AdapterSettings) -> list[str]:
    """What was set and has no effect, one sentence each."""
    return [remark.text for remark in adapter_remarks(settings)]


def adapter_remarks(settings: AdapterSettings) -> list[Remark]:
    """The same with the settings that each sentence is about."""
    name, traits = settings.kind, traits_of(settings.kind)
    own = {kind: traits_of(kind).own_settings for kind in reversed(trained_kinds()) if _is_own(kind)}
    told: list[Remark] = []
    given = {name for name in type(settings).model_fields if is_set(settings, name)}

    def tell(names: tuple[str, ...], why: str) -> None:
        paths = (f"adapter.{name}" for name in names if name in given)
        told.extend(Remark(f"{path} has no effect {why}", (path,)) for path in paths)

    if settings.rank_from_file:
        names: tuple[str, ...] = ("rank", "alpha", "conv_rank", "conv_alpha", "rank_stabilized")
        names += tuple(name for names in own.values() for name in names)
        names += ("block_ranks", "block_alphas", "conv_block_ranks", "conv_block_alphas")
        tell(names, "with adapter.rank_from_file, which takes the ranks from the file")
        # First, so that there is no second notice about what the file decides.
        given -= set(names)
    if not traits.has_rank:
        names = ("rank", "alpha", "rank_stabilized", "block_alphas", "conv_block_alphas", "conv_alpha")
        tell(names, f"with adapter.kind={name}, which has no rank")
    if not traits.is_low_rank:
        tell(("dropout",), f"with adapter.kind={name}; rank_dropout and module_dropout have")
    for others in own.values():
        tell(tuple(one for one in others if one not in traits.own_settings), f"with adapter.kind={name}")
    for names, why in _of_kind(settings):
        tell(names, why)
    _tell_combinations(settings, tell)
    return list(dict.fromkeys(told))


def _tell_combinations(settings: AdapterSettings, tell: Callable[[tuple[str, ...], str], None]) -> None:
    """What is without effect beside other settings, whatever the kind."""
    if settings.conv_block_ranks is not None:
        tell(("conv_rank",), "with adapter.conv_block_ranks")
    if settings.block_alphas is not None and settings.alpha is not None and not settings.text_encoder:
        tell(("alpha",), "with adapter.block_alphas and no text encoder")
    if not settings.trains_convolutions:
        tell(("conv_alpha", "conv_block_alphas"), "without adapter.conv_rank")
    if not settings.unet:
        names = ("conv_rank", "conv_alpha", "block_ranks", "block_alphas", "conv_block_ranks", "conv_block_alphas")
        tell(names, "with adapter.unet=false")


def _of_kind(settings: AdapterSettings) -> Iterable[tuple[tuple[str, ...], str]]:
    """What the kind makes of other settings."""
    if settings.lokr_full_matrix and "lokr_full_matrix" in traits_of(settings.kind).own_settings:
        names = ("rank", "alpha", "rank_stabilized", "lokr_decompose_both", "block_alphas", "conv_alpha")
        yield names, "with adapter.lokr_full_matrix"
    if not _is_own(settings.kind):
        yield from _kind(settings.kind).without_effect(settings)


def _is_own(name: str) -> bool:
    """Whether a kind is this package's own, of which all is known without its class."""
    entry = ADAPTERS[name]
    return isinstance(entry, KindEntry) and entry.traits is not None


def _kind(name: str) -> Any:
    """The class of a kind, a subclass of ``Adapter``; imports its module, which knows these settings."""
    return ADAPTERS.load(name)
