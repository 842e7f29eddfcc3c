"""What the choices of an optimizer, an lr schedule or a method make of other settings: rows of a table.

They are judged by the settings alone; :mod:`loraloom.training.without_effect` says them. What a kind of adapter has no
use for, it says itself (:func:`loraloom.adapters.settings.adapter_notices`).
"""

from __future__ import annotations

from loraloom.adapters.settings import AdapterSettings
from loraloom.idle import Row
from loraloom.training.lr_schedule_names import OPTIONS, USES, find_schedule, registered_name
from loraloom.training.optimizer_names import find_optimizer, find_recipe
from loraloom.training.parameter_groups import part_rates
from loraloom.training.settings import TrainSettings

__all__ = ["OPTIMIZER_ROWS", "WHOLE_ROWS"]

HIGH_RATE = 2e-5
"""Learning rates above this one usually destroy a checkpoint whose own weights are trained."""


# -- the optimizer and its schedule ----------------------------------------------------------------------------------


def _is_idle_option(settings: TrainSettings, option: str) -> bool:
    """Whether the lr schedule does not look at one of its settings."""
    name = find_schedule(settings.lr_schedule.name)
    uses = ("warmup_steps", "args") if "." in name else USES.get(registered_name(name), OPTIONS)
    return option not in uses


def _why_idle(settings: TrainSettings, option: str) -> str:
    name = settings.lr_schedule.name
    if find_schedule(name) == "constant" and option == "warmup_steps":
        return f"has no effect with {name}; constant_with_warmup uses it"
    others = ", ".join(key for key, used in USES.items() if option in used) or "class paths"
    return f"has no effect with {name}; used by {others}"


def _option_row(option: str) -> Row[TrainSettings]:
    return Row(
        (f"lr_schedule.{option}",),
        lambda own: _is_idle_option(own, option),
        lambda own: _why_idle(own, option),
    )


def _finds_its_rate(own: TrainSettings) -> bool:
    return find_recipe(own.optimizer.name).adaptive


def _far_rates(own: TrainSettings) -> list[float]:
    """Rates that do not suit an optimizer which multiplies its own by them."""
    optimizer = own.optimizer
    given = (optimizer.learning_rate, optimizer.unet_lr, optimizer.text_encoder_lr)
    rates = [rate for value in given for rate in (value if isinstance(value, tuple) else (value,))]
    return sorted({rate for rate in rates if rate is not None and rate != 0 and not 0.1 <= rate <= 10})


def _is_steady(own: TrainSettings) -> bool:
    return find_schedule(own.lr_schedule.name) in ("constant", "constant_with_warmup")


def _wants_safeguard(own: TrainSettings) -> bool:
    is_prodigy = find_recipe(own.optimizer.name).class_name == "Prodigy"
    return is_prodigy and own.lr_schedule.warmup_steps > 0 and not own.optimizer.args.get("safeguard_warmup")


OPTIMIZER_ROWS: tuple[Row[TrainSettings], ...] = (
    Row(
        (),
        lambda own: bool(find_recipe(own.optimizer.name).remark),
        sentence=lambda own: f"optimizer {own.optimizer.name}: {find_recipe(own.optimizer.name).remark}",
    ),
    *(_option_row(option) for option in OPTIONS),
    Row(
        (),
        lambda own: _finds_its_rate(own) and bool(_far_rates(own)),
        sentence=lambda own: (
            f"{own.optimizer.name} finds the learning rate itself and multiplies it by the rate that is set: "
            f"{', '.join(f'{rate:g}' for rate in _far_rates(own))} is far from 1"
        ),
    ),
    Row(
        (),
        lambda own: _finds_its_rate(own) and find_schedule(own.lr_schedule.name) == "cosine_with_restarts",
        sentence=lambda own: f"restarts disturb the estimate of {own.optimizer.name}; cosine or constant suit it",
    ),
    Row(
        (),
        _wants_safeguard,
        sentence="prodigy with a warm-up needs optimizer.args.safeguard_warmup=true",
    ),
    Row(
        (),
        lambda own: find_recipe(own.optimizer.name).schedule_free and not _is_steady(own),
        sentence=lambda own: (
            f"{find_optimizer(own.optimizer.name)} needs no lr schedule and does worse with one; "
            "set lr_schedule.name=constant"
        ),
    ),
    Row(
        (),
        lambda own: find_optimizer(own.optimizer.name) == "adafactor" and bool(own.optimizer.args.get("relative_step")),
        sentence="adafactor with relative_step finds the rate itself: learning rates and lr schedule have no effect",
    ),
    Row(
        ("optimizer.text_encoder_lr", "optimizer.text_encoder_stop", "optimizer.loraplus_text_encoder_ratio"),
        lambda own: not own.adapter.text_encoder,
        "has no effect: adapter.text_encoder is false",
    ),
    Row(
        ("optimizer.unet_lr", "optimizer.loraplus_unet_ratio"),
        lambda own: not own.adapter.unet,
        "has no effect: adapter.unet is false",
    ),
    Row(
        ("optimizer.block_lr.down", "optimizer.block_lr.mid", "optimizer.block_lr.up"),
        lambda own: not own.adapter.unet,
        sentence="optimizer.block_lr has no effect: adapter.unet is false",
    ),
)


# -- what is trained -------------------------------------------------------------------------------------------------


def _adapter(*names: str) -> tuple[str, ...]:
    return tuple(f"adapter.{name}" for name in names)


def _unet_rate(own: TrainSettings) -> float:
    return part_rates(["unet"], own.optimizer)["unet"]


WHOLE_ROWS: tuple[Row[TrainSettings], ...] = (
    Row(
        _adapter(
            *(name for name in AdapterSettings.model_fields if name not in ("unet", "text_encoder", "base_loras"))
        ),
        lambda own: True,
        "has no effect with method=full, which has no adapter",
    ),
    Row(
        (),
        lambda own: (
            _unet_rate(own) > HIGH_RATE and not own.optimizer.args and own.optimizer.name.lower().startswith("adamw")
        ),
        sentence=lambda own: (
            f"a learning rate of {_unet_rate(own):g} suits a LoRA; the weights of a whole checkpoint want 1e-6 to 5e-6"
        ),
    ),
    Row(
        ("keep_file_precision",),
        lambda own: True,
        sentence="with method=full keep_file_precision applies to the VAE alone: what is trained is kept in fp32",
    ),
)
