"""Settings that were set and change nothing in their combination: a table, so that none is passed over in silence.

What the settings alone decide is in :mod:`loraloom.training.idle_choices` and :mod:`loraloom.data.without_effect`;
here are the rows for which the pictures, the length of the run or the checkpoint must be known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraloom.adapters.settings import adapter_notices
from loraloom.data.sample import Dataset
from loraloom.data.without_effect import concept_remarks
from loraloom.diffusion.objectives import Prediction
from loraloom.idle import Remark, Row, lifted, told
from loraloom.training.idle_choices import JUDGING_ROWS, OPTIMIZER_ROWS, PREVIEW, RUN_ROWS, WHOLE_ROWS, objective
from loraloom.training.lr_schedule_names import steps_of
from loraloom.training.previews import preview_prompts
from loraloom.training.settings import TrainSettings

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
    return list(dict.fromkeys([*told(ROWS, facts.settings, facts), *(remark.text for remark in _of_concepts(facts))]))


def known_after_loading(facts: RunFacts) -> list[str]:
    """What the objective makes of no effect, when it is known what the checkpoint predicts."""
    return told(OBJECTIVE_ROWS, facts.settings, facts)


def _of_concepts(facts: RunFacts) -> list[Remark]:
    """The same inside the list of concepts."""
    own = facts.settings.dataset
    found = concept_remarks(own, "dataset.")
    for index, concept in enumerate(own.concepts):
        if concept.enabled and concept.first_epoch > facts.epochs:
            epochs = f"{facts.epochs} epoch{'s' if facts.epochs > 1 else ''}"
            label = concept.name or concept.folder.name
            text = f"concept {label!r} is never shown: its first_epoch is {concept.first_epoch}, the run has {epochs}"
            found.append(Remark(text, (f"dataset.concepts.{index}.first_epoch",)))
    return found


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


def _own(facts: RunFacts) -> TrainSettings:
    return facts.settings


ROWS: tuple[Row[RunFacts], ...] = (
    *lifted(RUN_ROWS, _own),
    Row(
        PREVIEW,
        lambda f: f.settings.preview.has_prompts and not preview_prompts(f.settings.preview),
        "has no effect: preview.file holds no prompt",
    ),
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
    Row(("low_memory",), lambda f: f.on_cpu, "has no effect on the CPU, where all parts are anyway"),
    Row(("prior_loss_weight",), lambda f: not f.dataset.regularization, "has no effect without regularization images"),
    Row(
        ("dataset.repeats",),
        _every_concept_has_repeats,
        "has no effect: every concept has its own, in the list or in its folder's name",
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

OBJECTIVE_ROWS: tuple[Row[RunFacts], ...] = (
    *lifted(JUDGING_ROWS, _own),
    Row(
        objective("masked_loss_normalized", "mask_floor"),
        lambda f: not any(sample.has_mask for sample in f.dataset.samples),
        "has no effect without masks",
    ),
    Row(
        objective("prior_loss_min", "preserve_regularization"),
        lambda f: not f.dataset.regularization,
        "has no effect without regularization images",
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
