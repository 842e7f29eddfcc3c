"""Which tensors learn how fast: parts, blocks, LoRA+, and the step at which the text encoder stops. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from loraloom.adapters.blocks import BLOCK_SECTIONS, BlockSections, block_index
from loraloom.errors import SettingsError
from loraloom.training.block_shapes import block_weights
from loraloom.training.lr_schedules import LrSchedule

if TYPE_CHECKING:
    import torch

    from loraloom.adapters.attach import AdapterSet
    from loraloom.formats.adapter_file import AdapterTarget
    from loraloom.training.settings import OptimizerSettings

__all__ = [
    "PlannedGroup",
    "block_factors",
    "parameter_groups",
    "part_rates",
    "plan_groups",
    "rate_metadata",
    "rates_at",
    "set_learning_rates",
    "stop_step",
    "text_encoder_stopped",
]

UP = "up"
"""Last part of the name of an adapter's parameter that LoRA+ speeds up: the factor that starts at zero."""


def block_factors(settings: OptimizerSettings, family: str) -> list[float] | None:
    """The factor of every block of the U-Net, None where none is set. SettingsError for lists of a wrong length."""
    given = settings.block_lr
    if given.down is None and given.mid is None and given.up is None:
        return None
    if family not in BLOCK_SECTIONS:
        raise SettingsError([f"optimizer.block_lr: the blocks of {family} have no numbers"], "unset optimizer.block_lr")

    sections: BlockSections = BLOCK_SECTIONS[family]
    problems: list[str] = []
    factors = [1.0] * sections.before
    for name, value, count in (
        ("down", given.down, sections.down),
        ("mid", given.mid, sections.mid),
        ("up", given.up, sections.up),
    ):
        values = block_weights(value, count) if isinstance(value, str) else (1.0,) if value is None else value
        values = values * count if len(values) == 1 else values
        if len(values) != count:
            problems.append(f"optimizer.block_lr.{name} has {len(values)} factors; {family} has {count} such blocks")
        # sd-scripts' block_lr_zero_threshold: what is not above it is not trained at all.
        factors += [weight if weight > given.zero_threshold else 0.0 for weight in values]

    if problems:
        raise SettingsError(problems, "one factor is used for all blocks of its section")
    return factors + [1.0] * sections.after


@dataclass(frozen=True)
class PlannedGroup:
    """Parameters that learn at one rate. ``members`` are (name of the layer, name of the adapter's parameter)."""

    name: str
    part: str
    rate: float
    members: tuple[tuple[str, str], ...]


def _is_up(name: str) -> bool:
    return name.rpartition(".")[2] == UP


def plan_groups(
    layers: Iterable[tuple[AdapterTarget, Sequence[str]]], settings: OptimizerSettings, family: str
) -> list[PlannedGroup]:
    """The groups of a run, from its layers and the names of their adapters' parameters; no tensor is needed.

    Without block rates and LoRA+ there is one group for each part. Layers in blocks with factor 0 are in no group.
    Raises SettingsError.
    """
    layers = list(layers)
    rates = part_rates(list(dict.fromkeys(target.part for target, _ in layers)), settings)
    factors = block_factors(settings, family)
    ratios = {part: _loraplus(part, settings) for part in rates}
    has_up = any(_is_up(name) for _, names in layers for name in names)

    if any(ratio != 1.0 for ratio in ratios.values()) and not has_up:
        raise SettingsError(
            ["LoRA+ needs up matrices, and this kind of adapter has none"], "unset optimizer.loraplus_*"
        )

    members: dict[tuple[str, float, bool], list[tuple[str, str]]] = {}
    blocks: dict[tuple[str, float, bool], set[int]] = {}
    for target, names in layers:
        block = block_index(target, family) if factors is not None else None
        factor = 1.0 if factors is None or block is None else factors[block]
        if factor == 0.0:
            continue
        for name in names:
            faster = _is_up(name) and ratios[target.part] != 1.0
            key = target.part, factor, faster
            members.setdefault(key, []).append((target.name, name))
            if block is not None:
                blocks.setdefault(key, set()).add(block)

    if not members:
        raise SettingsError(["optimizer.block_lr: the factor of every trained block is 0"], "nothing would be trained")

    # Each part's groups together, in the order of the parts.
    order = sorted(members, key=lambda key: list(rates).index(key[0]))
    return [
        PlannedGroup(
            name=part + _blocks_name(blocks.get((part, factor, faster), ())) + (" up" if faster else ""),
            part=part,
            rate=rates[part] * factor * (ratios[part] if faster else 1.0),
            members=tuple(members[part, factor, faster]),
        )
        for part, factor, faster in order
    ]


def part_rates(parts: Sequence[str], settings: OptimizerSettings) -> dict[str, float]:
    """The learning rate of each part; SettingsError for two rates of one text encoder."""
    own = settings.text_encoder_rate
    encoders = [part for part in parts if part != "unet"]
    if isinstance(own, tuple) and len(encoders) == 1:
        raise SettingsError(
            ["optimizer.text_encoder_lr has two values, but the checkpoint has one text encoder"], "give one value"
        )
    rates = {"unet": settings.unet_rate}
    for index, part in enumerate(encoders):
        rates[part] = own[index] if isinstance(own, tuple) else own
    return {part: rates[part] for part in parts}


def _loraplus(part: str, settings: OptimizerSettings) -> float:
    """How many times as fast the up matrices of a part learn (LoRA+, Hayou et al., arXiv:2402.12354)."""
    own = settings.loraplus_unet_ratio if part == "unet" else settings.loraplus_text_encoder_ratio
    return own or settings.loraplus_ratio or 1.0


def _blocks_name(numbers: Collection[int]) -> str:
    """``{1, 2, 3, 7}`` -> `` blocks 1-3,7``; nothing for no blocks."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ]
    ranges = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f" block{'s' if len(numbers) > 1 else ''} {ranges}" if ranges else ""


def parameter_groups(adapters: AdapterSet, settings: OptimizerSettings, family: str) -> list[dict[str, Any]]:
    """The optimizer's groups: ``{"params", "lr", "base_lr", "name", "part"}``.

    Parameters that are in no group (blocks with factor 0) are frozen.
    """
    named = {target.name: dict(adapter.named_parameters()) for target, adapter in adapters.items()}
    layers = [
        (target, [name for name, parameter in named[target.name].items() if parameter.requires_grad])
        for target, _ in adapters.items()
    ]
    plan = plan_groups(layers, settings, family)

    # Gradients of what no optimizer steps would only cost time and memory.
    trained = {member for group in plan for member in group.members}
    for layer, parameters in named.items():
        for name, parameter in parameters.items():
            if (layer, name) not in trained:
                parameter.requires_grad_(False)

    return [
        {
            "params": [named[layer][name] for layer, name in group.members],
            "lr": group.rate,
            "base_lr": group.rate,
            "name": group.name,
            "part": group.part,
        }
        for group in plan
    ]


def stop_step(settings: OptimizerSettings, total: int) -> int:
    """The step (0-based) from which the text encoders learn no more; ``total`` where they learn to the end."""
    stop = settings.text_encoder_stop
    if stop is None:
        return total
    return min(total, round(stop * total) if stop <= 1 else int(stop))


def text_encoder_stopped(settings: OptimizerSettings, step: int, total: int) -> bool:
    """Whether the text encoders are at rest in this step."""
    return step >= stop_step(settings, total)


def rates_at(
    plan: Sequence[PlannedGroup], settings: OptimizerSettings, schedule: LrSchedule, step: int, total: int
) -> dict[str, float]:
    """The learning rate of every planned group in a step."""
    stopped = text_encoder_stopped(settings, step, total)
    return {group.name: 0.0 if stopped and group.part != "unet" else group.rate * schedule(step) for group in plan}


def set_learning_rates(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, schedule: LrSchedule, step: int, total: int
) -> dict[str, float]:
    """Make the optimizer ready for a step, from the step alone. Returns every group's rate by name.

    From its stop on, a text encoder's parameters take no gradient, so no optimizer moves or decays them.
    """
    factor, stopped = schedule(step), text_encoder_stopped(settings, step, total)
    rates = {}
    for group in optimizer.param_groups:
        rests = stopped and group["part"] != "unet"
        for parameter in group["params"]:
            parameter.requires_grad_(not rests)
            if rests:
                parameter.grad = None
        # An optimizer that finds the rate has one for all groups, so a resting group's must not differ.
        group["lr"] = group["base_lr"] * factor
        rates[group["name"]] = 0.0 if rests else group["lr"] * group.get("scale", 1.0)
    return rates


def rate_metadata(settings: OptimizerSettings) -> dict[str, object]:
    """Block rates and LoRA+ as they stand among sd-scripts' network arguments in a LoRA file's metadata."""
    blocks = settings.block_lr
    values: dict[str, object] = {
        "loraplus_lr_ratio": settings.loraplus_ratio,
        "loraplus_unet_lr_ratio": settings.loraplus_unet_ratio,
        "loraplus_text_encoder_lr_ratio": settings.loraplus_text_encoder_ratio,
        "down_lr_weight": blocks.down,
        "mid_lr_weight": blocks.mid,
        "up_lr_weight": blocks.up,
        "block_lr_zero_threshold": blocks.zero_threshold or None,
    }
    return {
        key: ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }
