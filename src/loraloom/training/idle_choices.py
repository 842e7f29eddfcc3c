"""What settings make of other settings: rows of a table that are judged by the settings alone. No torch here.

A run and its plan say them (:mod:`loraloom.training.without_effect`, which adds what the pictures and the checkpoint
decide), and so does a form while it is filled in (:func:`known_from_settings`). What a kind of adapter has no use for
is told by :func:`loraloom.adapters.settings.adapter_remarks`.
"""

from __future__ import annotations

from loraloom.adapters.settings import AdapterSettings, adapter_remarks
from loraloom.data.without_effect import concept_remarks, dataset_remarks
from loraloom.idle import Remark, Row, remarks
from loraloom.training.lr_schedule_names import OPTIONS, USES, find_schedule, registered_name
from loraloom.training.optimizer_names import find_optimizer, find_recipe
from loraloom.training.settings import USUAL_RATE, PreviewSettings, TrainSettings

__all__ = [
    "JUDGING_ROWS",
    "OPTIMIZER_ROWS",
    "PREVIEW",
    "RUN_ROWS",
    "WHOLE_ROWS",
    "known_from_settings",
    "objective",
]

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
        about=("optimizer.name",),
        sentence=lambda own: f"optimizer {own.optimizer.name}: {find_recipe(own.optimizer.name).remark}",
    ),
    *(_option_row(option) for option in OPTIONS),
    Row(
        (),
        lambda own: _finds_its_rate(own) and bool(_far_rates(own)),
        about=("optimizer.lr",),
        sentence=lambda own: (
            f"{own.optimizer.name} finds the learning rate itself and multiplies it by the rate that is set: "
            f"{', '.join(f'{rate:g}' for rate in _far_rates(own))} is far from 1"
        ),
    ),
    Row(
        (),
        lambda own: _finds_its_rate(own) and find_schedule(own.lr_schedule.name) == "cosine_with_restarts",
        about=("lr_schedule.name",),
        sentence=lambda own: f"restarts disturb the estimate of {own.optimizer.name}; cosine or constant suit it",
    ),
    Row(
        (),
        _wants_safeguard,
        about=("optimizer.args",),
        sentence="prodigy with a warm-up needs optimizer.args.safeguard_warmup=true",
    ),
    Row(
        (),
        lambda own: find_recipe(own.optimizer.name).schedule_free and not _is_steady(own),
        about=("lr_schedule.name",),
        sentence=lambda own: (
            f"{find_optimizer(own.optimizer.name)} needs no lr schedule and does worse with one; "
            "set lr_schedule.name=constant"
        ),
    ),
    Row(
        (),
        lambda own: find_optimizer(own.optimizer.name) == "adafactor" and bool(own.optimizer.args.get("relative_step")),
        about=("optimizer.lr", "lr_schedule.name"),
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
            own.optimizer.unet_rate > HIGH_RATE
            and not own.optimizer.args
            and own.optimizer.name.lower().startswith("adamw")
        ),
        about=("optimizer.lr",),
        sentence=lambda own: (
            f"a learning rate of {own.optimizer.unet_rate:g} suits a LoRA; "
            "the weights of a whole checkpoint want 1e-6 to 5e-6"
        ),
    ),
    Row(
        ("keep_file_precision",),
        lambda own: True,
        sentence="with method=full keep_file_precision applies to the VAE alone: what is trained is kept in fp32",
    ),
)


# -- the run ---------------------------------------------------------------------------------------------------------


def _every_part_has_a_rate(own: TrainSettings) -> bool:
    optimizer, adapter = own.optimizer, own.adapter
    if find_recipe(optimizer.name).adaptive:
        return False  # lr is what all rates are relative to
    if optimizer.learning_rate == USUAL_RATE:
        return False  # written or not, it asks for nothing of its own
    given = (optimizer.unet_lr if adapter.unet else 0, optimizer.text_encoder_lr if adapter.text_encoder else 0)
    return None not in given


def _no_pictures_to_measure(own: TrainSettings) -> bool:
    return not own.validation.has_pictures


def _no_block_rates(own: TrainSettings) -> bool:
    blocks = own.optimizer.block_lr
    return blocks.down is None and blocks.mid is None and blocks.up is None


PREVIEW = tuple(f"preview.{name}" for name in PreviewSettings.model_fields if name not in ("prompts", "file"))

RUN_ROWS: tuple[Row[TrainSettings], ...] = (
    Row(("epochs",), lambda own: own.steps is not None, "has no effect: steps says how long the run is"),
    Row(("optimizer.lr",), _every_part_has_a_rate, "has no effect: every part that is trained has a rate of its own"),
    Row(("optimizer.block_lr.zero_threshold",), _no_block_rates, "has no effect without rates in optimizer.block_lr"),
    Row(
        ("ema.decay", "ema.warmup", "ema.every", "ema.save"),
        lambda own: not own.ema.enabled,
        "has no effect without ema.enabled",
    ),
    Row(PREVIEW, lambda own: not own.preview.has_prompts, "has no effect without preview.prompts or .file"),
    Row(
        ("validation.every_epochs", "validation.every_steps", "validation.save_best"),
        _no_pictures_to_measure,
        "has no effect without validation.folder or .share",
    ),
    Row(
        ("validation.timesteps", "validation.draws", "validation.seed"),
        lambda own: _no_pictures_to_measure(own) and not own.validation.image_losses,
        "has no effect without validation.folder, .share or .image_losses",
    ),
    Row(
        ("validation.every_epochs",),
        lambda own: own.validation.every_steps > 0 and not _no_pictures_to_measure(own),
        "has no effect with validation.every_steps",
    ),
    Row(("notify.form", "notify.on"), lambda own: not own.notify.url, "has no effect without notify.url"),
    Row(
        ("saving.keep_states", "saving.state_every_steps", "saving.state_every_minutes"),
        lambda own: not own.saving.state,
        "has no effect with saving.state=false",
    ),
    Row(
        ("saving.every_epochs",),
        lambda own: own.saving.files_per_run > 0,
        "has no effect with saving.files_per_run",
    ),
    Row(
        ("keep_file_precision",),
        lambda own: own.quantize != "none",
        "has no effect on what quantize keeps in a few bits, only on the VAE and small weights",
    ),
    Row(
        ("dataset.bucket_min", "dataset.bucket_max", "dataset.max_crop"),
        lambda own: not own.dataset.buckets,
        "has no effect with dataset.buckets=false",
    ),
    Row(
        ("dataset.cache_folder",),
        lambda own: not (own.dataset.cache_to_disk or own.dataset.cache_text_to_disk),
        "has no effect without dataset.cache_to_disk or dataset.cache_text_to_disk",
    ),
    Row(
        ("dataset.regularization_folder",),
        lambda own: not own.dataset.use_regularization,
        "has no effect with dataset.use_regularization=false",
    ),
)


# -- how the model's answer is judged --------------------------------------------------------------------------------


def objective(*names: str) -> tuple[str, ...]:
    """Settings of the objective by their paths."""
    return tuple(f"objective.{name}" for name in names)


JUDGING_ROWS: tuple[Row[TrainSettings], ...] = (
    Row(
        objective("huber_schedule", "huber_c", "huber_scale"),
        lambda own: own.objective.loss_type in ("l2", "l1"),
        lambda own: f"has no effect with objective.loss_type={own.objective.loss_type}",
    ),
    Row(
        objective("huber_scale"),
        lambda own: own.objective.loss_type not in ("l2", "l1") and own.objective.huber_schedule == "snr",
        "has no effect with objective.huber_schedule=snr",
    ),
    Row(
        objective("logit_mean", "logit_std"),
        lambda own: own.objective.timestep_sampling != "logit_normal",
        "has no effect unless objective.timestep_sampling=logit_normal",
    ),
    Row(
        objective("stratified_timesteps"),
        lambda own: own.batch_size == 1,
        "has no effect with batch_size=1",
    ),
    Row(
        objective("noise_offset_random_strength"),
        lambda own: not own.objective.noise_offset,
        "has no effect without objective.noise_offset",
    ),
    Row(
        objective("adaptive_noise_scale"),
        lambda own: own.objective.adaptive_noise_scale < 0 and not own.objective.noise_offset,
        "has no effect below 0 without objective.noise_offset, which it makes smaller",
    ),
    Row(
        objective("multires_noise_discount"),
        lambda own: not own.objective.multires_noise_iterations,
        "has no effect without objective.multires_noise_iterations",
    ),
    Row(
        objective("ip_noise_gamma_random_strength"),
        lambda own: not own.objective.ip_noise_gamma,
        "has no effect without objective.ip_noise_gamma",
    ),
    Row(
        objective("prior_loss_steps"),
        lambda own: own.objective.prior_loss_min is None,
        "has no effect without objective.prior_loss_min",
    ),
    Row(
        objective("preserve_trigger", "preserve_weight"),
        lambda own: not own.objective.preserve_class,
        "has no effect without objective.preserve_class",
    ),
)


# -- all of them -----------------------------------------------------------------------------------------------------


def known_from_settings(settings: TrainSettings) -> list[Remark]:
    """All that can be said of settings before a picture or the checkpoint is looked at."""
    full = settings.method == "full"
    said = [
        *remarks(OPTIMIZER_ROWS, settings, settings),
        *(remarks(WHOLE_ROWS, settings, settings) if full else adapter_remarks(settings.adapter)),
        *remarks(RUN_ROWS, settings, settings),
        *remarks(JUDGING_ROWS, settings, settings),
        *dataset_remarks(settings.dataset, "dataset."),
        *concept_remarks(settings.dataset, "dataset."),
    ]
    return list(dict.fromkeys(said))
