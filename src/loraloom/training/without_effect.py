"""Settings that were set and change nothing in their combination: a table, so that none is passed over in silence.

What the objective, the adapter, the optimizer, the lr schedule and the dataset know of themselves, they say themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loraloom.data.sample import Dataset
from loraloom.settings import Settings
from loraloom.training.lr_schedule_names import steps_of
from loraloom.training.optimizer_names import find_recipe
from loraloom.training.previews import preview_prompts
from loraloom.training.settings import USUAL_RATE, PreviewSettings, TrainSettings

__all__ = ["ROWS", "RunFacts", "without_effect"]


@dataclass(frozen=True)
class RunFacts:
    """What the table is judged by; ``steps`` and ``epochs`` are those of the whole run."""

    settings: TrainSettings
    dataset: Dataset
    on_cpu: bool
    steps: int
    epochs: int


@dataclass(frozen=True)
class Row:
    """``paths`` are told, where their values are not the defaults, when ``holds``: each path with ``why`` behind it."""

    paths: tuple[str, ...]
    holds: Callable[[RunFacts], bool]
    why: str


def without_effect(facts: RunFacts) -> list[str]:
    """One sentence for each setting that was set to no effect."""
    told = [
        f"{path} {row.why}"
        for row in ROWS
        if any(_is_set(facts.settings, path) for path in row.paths) and row.holds(facts)
        for path in row.paths
        if _is_set(facts.settings, path)
    ]
    return list(dict.fromkeys(told + _of_concepts(facts)))


def _is_set(settings: Settings, path: str) -> bool:
    """Whether a setting differs from its default."""
    group: Any = settings
    *groups, name = path.split(".")
    for part in groups:
        group = getattr(group, part)
    default = type(group).model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(group, name) != default)


def _of_concepts(facts: RunFacts) -> list[str]:
    """The same inside the list of concepts."""
    told: list[str] = []
    own = facts.settings.dataset
    for concept in own.concepts:
        if not concept.enabled:
            continue
        label = concept.name or concept.folder.name
        said = set(own.captions.without_effect())
        idle = own.captions.merged(concept.captions).without_effect() if concept.captions else []
        told += [f"concept {label!r}: {text}" for text in idle if text not in said]
        if concept.first_epoch > facts.epochs:
            epochs = f"{facts.epochs} epoch{'s' if facts.epochs > 1 else ''}"
            told.append(
                f"concept {label!r} is never shown: its first_epoch is {concept.first_epoch}, the run has {epochs}"
            )
    return told


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

ROWS = (
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
