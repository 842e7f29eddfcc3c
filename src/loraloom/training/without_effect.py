"""Settings that were set and change nothing in their combination: a table, so that none is passed over in silence.

What a dataset alone makes of no effect is in :mod:`loraloom.data.without_effect`, which is read with the dataset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraloom.adapters.settings import LOW_RANK, RANKLESS, AdapterSettings
from loraloom.data.sample import Dataset
from loraloom.data.without_effect import captions_without_effect
from loraloom.diffusion.objectives import Prediction
from loraloom.idle import Row, told
from loraloom.training.lr_schedule_names import OPTIONS, USES, find_schedule, registered_name, steps_of
from loraloom.training.optimizer_names import find_optimizer, find_recipe
from loraloom.training.parameter_groups import part_rates
from loraloom.training.previews import preview_prompts
from loraloom.training.settings import USUAL_RATE, PreviewSettings, TrainSettings

__all__ = [
    "ADAPTER_ROWS",
    "OBJECTIVE_ROWS",
    "OPTIMIZER_ROWS",
    "ROWS",
    "WHOLE_ROWS",
    "RunFacts",
    "known_after_loading",
    "known_before_loading",
    "without_effect",
]

HIGH_RATE = 2e-5
"""Learning rates above this one usually destroy a checkpoint whose own weights are trained."""


@dataclass(frozen=True)
class RunFacts:
    """What the table is judged by; ``steps`` and ``epochs`` are those of the whole run."""

    settings: TrainSettings
    dataset: Dataset
    on_cpu: bool
    steps: int
    epochs: int
    prediction: Prediction | None = None
    """What the checkpoint predicts, when it is loaded."""


def known_before_loading(facts: RunFacts) -> list[str]:
    """All that can be said before the checkpoint is loaded, one sentence for each setting."""
    settings = facts.settings
    method = WHOLE_ROWS if settings.method == "full" else ADAPTER_ROWS
    return [
        *told(OPTIMIZER_ROWS, settings, settings),
        *told(method, settings, settings),
        *without_effect(facts),
    ]


def without_effect(facts: RunFacts) -> list[str]:
    """What a run and its dataset make of no effect."""
    return list(dict.fromkeys([*told(ROWS, facts.settings, facts), *_of_concepts(facts)]))


def known_after_loading(facts: RunFacts) -> list[str]:
    """What the objective makes of no effect, when it is known what the checkpoint predicts."""
    return told(OBJECTIVE_ROWS, facts.settings, facts)


def _of_concepts(facts: RunFacts) -> list[str]:
    """The same inside the list of concepts."""
    found: list[str] = []
    own = facts.settings.dataset
    for concept in own.concepts:
        if not concept.enabled:
            continue
        label = concept.name or concept.folder.name
        said = set(captions_without_effect(own.captions))
        idle = captions_without_effect(own.captions.merged(concept.captions)) if concept.captions else []
        found += [f"concept {label!r}: {text}" for text in idle if text not in said]
        if concept.first_epoch > facts.epochs:
            epochs = f"{facts.epochs} epoch{'s' if facts.epochs > 1 else ''}"
            found.append(
                f"concept {label!r} is never shown: its first_epoch is {concept.first_epoch}, the run has {epochs}"
            )
    return found


def _every_part_has_a_rate(facts: RunFacts) -> bool:
    optimizer, adapter = facts.settings.optimizer, facts.settings.adapter
    if find_recipe(optimizer.name).adaptive:
        return False  # lr is what all rates are relative to
    if optimizer.learning_rate == USUAL_RATE:
        return False  # written or not, it asks for nothing of its own
    given = (optimizer.unet_lr if adapter.unet else 0, optimizer.text_encoder_lr if adapter.text_encoder else 0)
    return None not in given


def _no_pictures_to_measure(facts: RunFacts) -> bool:
    return not facts.settings.validation.has_pictures


def _every_concept_has_repeats(facts: RunFacts) -> bool:
    own = [concept for concept in facts.dataset.concepts if not concept.is_regularization]
    return all(
        re.match(r"0*[1-9][0-9]{0,3}_", concept.folder.name)
        or (concept.settings is not None and concept.settings.repeats is not None)
        for concept in own
    )


def _no_braces(facts: RunFacts) -> bool:
    for sample in facts.dataset.samples:
        own = sample.captions
        if "{" in "".join((*sample.lines, sample.caption, own.sentence, own.prefix, own.suffix)):
            return False
    return True


def _no_tags(facts: RunFacts) -> bool:
    return not any(
        own.splits or own.lines == "join" or own.replace_underscores or own.secondary_separator or own.trigger
        for own in (sample.captions for sample in facts.dataset.samples)
    )


def _no_block_rates(facts: RunFacts) -> bool:
    blocks = facts.settings.optimizer.block_lr
    return blocks.down is None and blocks.mid is None and blocks.up is None


PREVIEW = tuple(f"preview.{name}" for name in PreviewSettings.model_fields if name not in ("prompts", "file"))

ROWS: tuple[Row[RunFacts], ...] = (
    Row(("epochs",), lambda f: f.settings.steps is not None, "has no effect: steps says how long the run is"),
    Row(("optimizer.lr",), _every_part_has_a_rate, "has no effect: every part that is trained has a rate of its own"),
    Row(("optimizer.block_lr.zero_threshold",), _no_block_rates, "has no effect without rates in optimizer.block_lr"),
    Row(
        ("optimizer.text_encoder_stop",),
        lambda f: (
            (f.settings.optimizer.text_encoder_stop or 0) > 1
            and (f.settings.optimizer.text_encoder_stop or 0) >= f.steps
        ),
        "has no effect: the run ends before",
    ),
    Row(
        ("lr_schedule.warmup_steps",),
        lambda f: (
            f.settings.lr_schedule.name != "constant"
            and steps_of(f.settings.lr_schedule.warmup_steps, f.steps) >= f.steps
        ),
        "reaches beyond the run: the learning rate is never reached",
    ),
    Row(
        ("ema.decay", "ema.warmup", "ema.every", "ema.save"),
        lambda f: not f.settings.ema.enabled,
        "has no effect without ema.enabled",
    ),
    Row(PREVIEW, lambda f: not preview_prompts(f.settings.preview), "has no effect without preview.prompts or .file"),
    Row(
        ("validation.every_epochs", "validation.every_steps", "validation.save_best"),
        _no_pictures_to_measure,
        "has no effect without validation.folder or .share",
    ),
    Row(
        ("validation.timesteps", "validation.draws", "validation.seed"),
        lambda f: _no_pictures_to_measure(f) and not f.settings.validation.image_losses,
        "has no effect without validation.folder, .share or .image_losses",
    ),
    Row(
        ("validation.every_epochs",),
        lambda f: f.settings.validation.every_steps > 0 and not _no_pictures_to_measure(f),
        "has no effect with validation.every_steps",
    ),
    Row(("notify.form", "notify.on"), lambda f: not f.settings.notify.url, "has no effect without notify.url"),
    Row(
        ("saving.keep_states", "saving.state_every_steps", "saving.state_every_minutes"),
        lambda f: not f.settings.saving.state,
        "has no effect with saving.state=false",
    ),
    Row(
        ("saving.every_epochs",),
        lambda f: f.settings.saving.files_per_run > 0,
        "has no effect with saving.files_per_run",
    ),
    Row(("low_memory",), lambda f: f.on_cpu, "has no effect on the CPU, where every part lies already"),
    Row(
        ("keep_file_precision",),
        lambda f: f.settings.quantize != "none",
        "has no effect on what quantize keeps in a few bits: it holds for the VAE and small weights alone",
    ),
    Row(("prior_loss_weight",), lambda f: not f.dataset.regularization, "has no effect without regularization images"),
    Row(
        ("dataset.bucket_min", "dataset.bucket_max", "dataset.max_crop"),
        lambda f: not f.settings.dataset.buckets,
        "has no effect with dataset.buckets=false",
    ),
    Row(
        ("dataset.cache_folder",),
        lambda f: not (f.settings.dataset.cache_to_disk or f.settings.dataset.cache_text_to_disk),
        "has no effect without dataset.cache_to_disk or dataset.cache_text_to_disk",
    ),
    Row(
        ("dataset.repeats",),
        _every_concept_has_repeats,
        "has no effect: every concept says its own, in the list or by its folder's name",
    ),
    Row(
        ("dataset.regularization_folder",),
        lambda f: not f.settings.dataset.use_regularization,
        "has no effect with dataset.use_regularization=false",
    ),
    Row(
        ("dataset.masks",),
        lambda f: f.settings.dataset.masks == "alpha" and not any(s.has_alpha_mask for s in f.dataset.samples),
        "has no effect: it is alpha, and no picture has transparent parts",
    ),
    Row(
        ("dataset.caption_extensions",),
        lambda f: all(sample.captions.source != "file" for sample in f.dataset.samples),
        "has no effect: captions.source is not file",
    ),
    Row(
        ("dataset.captions.separator",),
        _no_tags,
        "has no effect: no setting takes captions apart or joins them",
    ),
    Row(("dataset.captions.wildcards",), _no_braces, "has no effect: no caption has braces"),
)


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
        sentence=lambda own: f"the estimate of {own.optimizer.name} suffers from restarts; cosine or constant suit it",
    ),
    Row(
        (),
        _wants_safeguard,
        sentence="prodigy with a warm-up wants optimizer.args.safeguard_warmup=true",
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
        sentence="adafactor with relative_step finds the rate itself: no learning rate and no lr schedule count",
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


ADAPTER_ROWS: tuple[Row[TrainSettings], ...] = (
    Row(
        _adapter("rank", "alpha", "conv_rank", "conv_alpha", "rank_stabilized", "lokr_factor", "lokr_decompose_both")
        + _adapter("lokr_full_matrix", "dora_axis", "block_ranks", "block_alphas", "conv_block_ranks")
        + _adapter("conv_block_alphas"),
        lambda own: own.adapter.rank_from_file,
        "has no effect with adapter.rank_from_file, which takes the ranks from the file",
        settles=True,
    ),
    Row(
        _adapter("rank", "alpha", "rank_stabilized", "block_alphas", "conv_block_alphas", "conv_alpha"),
        lambda own: own.adapter.kind in RANKLESS,
        lambda own: f"has no effect with adapter.kind={own.adapter.kind}, which has no rank",
    ),
    Row(
        _adapter("dropout"),
        lambda own: own.adapter.kind not in LOW_RANK,
        lambda own: f"has no effect with adapter.kind={own.adapter.kind}; rank_dropout and module_dropout have",
    ),
    Row(
        _adapter("lokr_factor", "lokr_decompose_both", "lokr_full_matrix"),
        lambda own: own.adapter.kind != "lokr",
        lambda own: f"has no effect with adapter.kind={own.adapter.kind}",
    ),
    Row(
        _adapter("rank", "alpha", "rank_stabilized", "lokr_decompose_both", "block_alphas", "conv_alpha"),
        lambda own: own.adapter.kind == "lokr" and own.adapter.lokr_full_matrix,
        "has no effect with adapter.lokr_full_matrix",
    ),
    Row(
        _adapter("dora_axis"),
        lambda own: own.adapter.kind != "dora",
        lambda own: f"has no effect with adapter.kind={own.adapter.kind}",
    ),
    Row(
        _adapter("conv_rank"),
        lambda own: own.adapter.conv_block_ranks is not None,
        "has no effect with adapter.conv_block_ranks",
    ),
    Row(
        _adapter("alpha"),
        lambda own: own.adapter.block_alphas is not None and not own.adapter.text_encoder,
        "has no effect with adapter.block_alphas and no text encoder",
    ),
    Row(
        _adapter("conv_alpha", "conv_block_alphas"),
        lambda own: not own.adapter.trains_convolutions,
        "has no effect without adapter.conv_rank",
    ),
    Row(
        _adapter("conv_rank", "conv_alpha", "block_ranks", "block_alphas", "conv_block_ranks", "conv_block_alphas"),
        lambda own: not own.adapter.unet,
        "has no effect with adapter.unet=false",
    ),
)


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
        sentence="keep_file_precision holds for the VAE alone with method=full: what is trained is kept in fp32",
    ),
)


# -- the objective ---------------------------------------------------------------------------------------------------


def _objective(*names: str) -> tuple[str, ...]:
    return tuple(f"objective.{name}" for name in names)


OBJECTIVE_ROWS: tuple[Row[RunFacts], ...] = (
    Row(
        _objective("huber_schedule", "huber_c", "huber_scale"),
        lambda f: f.settings.objective.loss_type in ("l2", "l1"),
        lambda f: f"has no effect with objective.loss_type={f.settings.objective.loss_type}",
    ),
    Row(
        _objective("huber_scale"),
        lambda f: f.settings.objective.loss_type not in ("l2", "l1") and f.settings.objective.huber_schedule == "snr",
        "has no effect with objective.huber_schedule=snr",
    ),
    Row(
        _objective("logit_mean", "logit_std"),
        lambda f: f.settings.objective.timestep_sampling != "logit_normal",
        "has no effect unless objective.timestep_sampling=logit_normal",
    ),
    Row(
        _objective("stratified_timesteps"),
        lambda f: f.settings.batch_size == 1,
        "has no effect with batch_size=1",
    ),
    Row(
        _objective("noise_offset_random_strength"),
        lambda f: not f.settings.objective.noise_offset,
        "has no effect without objective.noise_offset",
    ),
    Row(
        _objective("adaptive_noise_scale"),
        lambda f: f.settings.objective.adaptive_noise_scale < 0 and not f.settings.objective.noise_offset,
        "has no effect below 0 without objective.noise_offset, which it makes smaller",
    ),
    Row(
        _objective("multires_noise_discount"),
        lambda f: not f.settings.objective.multires_noise_iterations,
        "has no effect without objective.multires_noise_iterations",
    ),
    Row(
        _objective("ip_noise_gamma_random_strength"),
        lambda f: not f.settings.objective.ip_noise_gamma,
        "has no effect without objective.ip_noise_gamma",
    ),
    Row(
        _objective("masked_loss_normalized", "mask_floor"),
        lambda f: not any(sample.has_mask for sample in f.dataset.samples),
        "has no effect without masks",
    ),
    Row(
        _objective("prior_loss_min", "preserve_regularization"),
        lambda f: not f.dataset.regularization,
        "has no effect without regularization images",
    ),
    Row(
        _objective("prior_loss_steps"),
        lambda f: f.settings.objective.prior_loss_min is None,
        "has no effect without objective.prior_loss_min",
    ),
    Row(
        _objective("preserve_trigger", "preserve_weight"),
        lambda f: not f.settings.objective.preserve_class,
        "has no effect without objective.preserve_class",
    ),
    Row(
        (),
        lambda f: bool(f.settings.zero_terminal_snr) and f.prediction == "epsilon",
        sentence=(
            "zero_terminal_snr is for v models: a model that predicts the noise learns nothing at the last timestep, "
            "where noise is all it sees"
        ),
    ),
)
