"""Optimizers made from settings, tried before a run, and what they do with weights and rates. No torch is imported here
until one is made."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loraloom.errors import HardwareError, SettingsError, nearest
from loraloom.plain_data import shown
from loraloom.training.optimizer_names import Recipe, find_recipe

if TYPE_CHECKING:
    import torch

    from loraloom.training.settings import OptimizerSettings

__all__ = ["create_optimizer", "evaluating", "optimizer_title", "try_optimizer"]

_HOW_FAST = {"fused", "foreach", "capturable", "differentiable"}
"""Arguments of torch's optimizers that say how to compute; only one of them can be given."""
REFUSALS = (
    TypeError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    AttributeError,
    AssertionError,
    LookupError,
    OSError,
)
"""What optimizers raise for arguments, shapes and devices that they cannot work with."""


def optimizer_title(settings: OptimizerSettings) -> str:
    """The optimizer as sd-scripts writes it in a LoRA file's metadata: ``torch.optim.AdamW(weight_decay=0.1)``."""
    recipe = find_recipe(settings.name)
    arguments = ",".join(f"{key}={value}" for key, value in _given_arguments(recipe, settings).items())
    return recipe.path + (f"({arguments})" if arguments else "")


def _given_arguments(recipe: Recipe, settings: OptimizerSettings) -> dict[str, Any]:
    """Every argument but the rate that is not left at the class's default."""
    general = {key: getattr(settings, key) for key in ("weight_decay", "betas", "eps")}
    own = {recipe.renamed.get(key, key): value for key, value in settings.args.items()}
    return {**recipe.args, **{key: value for key, value in general.items() if value is not None}, **own}


def _arguments(cls: Any, recipe: Recipe, settings: OptimizerSettings) -> dict[str, Any]:
    """The arguments, checked against the class's signature."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [item for item in inspect.signature(cls.__init__).parameters.values() if item.kind in named][1:]
    known = [item.name for item in parameters if item.name not in ("params", "lr")]
    given = _given_arguments(recipe, settings)
    problems = []

    # Faults are collected: whoever writes arguments by hand should see all of them at once.
    for key in given:
        if key in known:
            continue
        if key == "lr":
            problems.append("optimizer.args.lr: the learning rate is the setting optimizer.lr")
            continue
        where = f"optimizer.args.{key}" if key in settings.args else f"optimizer.{key}"
        accepted = [*known, *(old for old, new in recipe.renamed.items() if new in known)]
        close = nearest(key, accepted)
        meant = f", did you mean {close[0]!r}?" if close else ""
        problems.append(f"{where}: {recipe.class_name} has no such argument{meant} It has: {', '.join(sorted(known))}")

    if problems:
        raise SettingsError(problems)
    return given


def create_optimizer(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    ``groups`` are ``{"params", "lr", "base_lr", "name", "part"}``. An optimizer that finds its rate works with one
    rate for all: its groups get ``optimizer.lr`` as ``base_lr``, and ``scale``, by which each group's steps are
    multiplied. Raises SettingsError for a missing library and for arguments that the class refuses.
    """
    recipe = find_recipe(settings.name)
    cls = recipe.load(settings.name)
    arguments = _arguments(cls, recipe, settings)

    if recipe.adaptive:
        groups = [_with_common_rate(group, settings) for group in groups]
        if recipe.one_rate and any(group["scale"] != 1.0 for group in groups):
            raise SettingsError(
                [f"optimizer {settings.name} has one learning rate for everything, and the settings ask for several"],
                "leave out unet_lr, text_encoder_lr, block_lr and loraplus_*, or use prodigy or dadapt_adam",
            )

    try:
        quick = {} if _HOW_FAST & arguments.keys() else recipe.quick
        optimizer: torch.optim.Optimizer = cls(groups, lr=settings.learning_rate, **quick, **arguments)
    except REFUSALS as error:
        raise SettingsError(
            [f"optimizer {settings.name} refuses its arguments: {error or type(error).__name__}"],
            f"given: {', '.join(f'{key} = {shown(value)}' for key, value in arguments.items()) or 'none but the rate'}",
        ) from error

    if recipe.adaptive and any(group["scale"] != 1.0 for group in groups):
        _scale_steps(optimizer)
    if _averages(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _with_common_rate(group: dict[str, Any], settings: OptimizerSettings) -> dict[str, Any]:
    rate = settings.learning_rate
    return {**group, "lr": rate, "base_lr": rate, "scale": group.get("base_lr", rate) / rate if rate else 1.0}


def _scale_steps(optimizer: torch.optim.Optimizer) -> None:
    """Multiply the steps of every group by its ``scale``.

    The estimate of the rate stays valid: its bound (Defazio and Mishchenko, arXiv:2301.07733) holds for gradients at
    any sequence of points, however these were reached.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor, float]] = []

    def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        kept.clear()
        for group in optimizer.param_groups:
            if group["scale"] != 1.0:
                kept.extend((p, p.detach().clone(), group["scale"]) for p in group["params"] if p.grad is not None)

    def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, old, scale in kept:
            parameter.data.sub_(old).mul_(scale).add_(old)
        kept.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights in training are not those to use (schedule-free: Defazio et al., arXiv:2405.15682)."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the parameters are those to save and to paint with; afterwards bit for bit those to train on.

    Only schedule-free optimizers tell the two apart; for the others nothing happens.
    """
    if not _averages(optimizer):
        yield
        return
    kept = [(p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        for parameter, value in kept:
            # Going to the average and back by the formula would round, and a preview would change the run.
            parameter.data.copy_(value)


def try_optimizer(settings: OptimizerSettings, device: torch.device) -> None:
    """Take one step with a matrix and a convolution kernel, so that a run fails before its long preparation.

    Raises SettingsError for a missing library or wrong arguments, HardwareError for a device that does not do.
    """
    import torch

    recipe = find_recipe(settings.name)
    if recipe.paged and device.type not in ("cuda", "xpu"):
        raise HardwareError(
            f"optimizer {settings.name} pages its state out of GPU memory, and the device is {device}",
            "use the same optimizer without paged",
        )
    parameters = [torch.nn.Parameter(torch.zeros(size, device=device)) for size in ((64, 64), (8, 4, 3, 3))]
    rates = {"lr": settings.learning_rate, "base_lr": settings.learning_rate, "name": "trial", "part": "unet"}
    optimizer = create_optimizer([{"params": parameters, **rates}], settings)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    except REFUSALS as error:
        hint = "adamw works everywhere"
        if device.type == "mps" and recipe.package == "bitsandbytes":
            hint = "8-bit optimizers need an NVIDIA, AMD or Intel GPU, or a CPU; adamw works everywhere"
        raise HardwareError(
            f"optimizer {settings.name} cannot take a step on {device}: {error or type(error).__name__}", hint
        ) from error
