"""Settings that were set and change nothing in their combination: a table, so that none is passed over in silence.

Settings without effect that the dataset alone decides are in :mod:`loraloom.data.without_effect`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraloom.adapters.settings import adapter_notices
from loraloom.data.sample import Dataset
from loraloom.data.without_effect import captions_without_effect
from loraloom.diffusion.objectives import Prediction
from loraloom.idle import Row, told
from loraloom.training.idle_choices import OPTIMIZER_ROWS, WHOLE_ROWS
from loraloom.training.lr_schedule_names import steps_of
from loraloom.training.optimizer_names import find_recipe
from loraloom.training.previews import preview_prompts
from loraloom.training.settings import USUAL_RATE, PreviewSettings, TrainSettings

__all__ = [
    "OBJECTIVE_ROWS",
    "ROWS",
    "RunFacts",
    "known_after_loading",
    "known_before_loading",
    "without_effect",
]


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
    full = settings.method == "full"
    return [
        *told(OPTIMIZER_ROWS, settings, settings),
        *(told(WHOLE_ROWS, settings, settings) if full else adapter_notices(settings.adapter)),
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
        "has no effect: the run ends earlier",
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
    Row(("low_memory",), lambda f: f.on_cpu, "has no effect on the CPU, where all parts are anyway"),
    Row(
        ("keep_file_precision",),
        lambda f: f.settings.quantize != "none",
        "has no effect on what quantize keeps in a few bits, only on the VAE and small weights",
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
        "has no effect: every concept has its own, in the list or in its folder's name",
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
            "where it sees only noise"
        ),
    ),
)
