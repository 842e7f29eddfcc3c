"""What a run is about, opened and checked: its checkpoint and its dataset, and whether its settings fit them.

Only the checkpoint's header is read and nothing is encoded, so that all contradictions are reported together and at the
beginning, by a run as by its plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from loraloom.adapters.adapter import Adapter
from loraloom.adapters.attach import choose_targets, create_adapters
from loraloom.control import Control, keep_going
from loraloom.data.concepts import find_layout
from loraloom.data.dataset import load_dataset
from loraloom.data.problems import Problem
from loraloom.data.sample import Dataset, Sample
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.errors import LoraloomError, SettingsError
from loraloom.events import Listener, Notice
from loraloom.generation.loras import find_lora
from loraloom.generation.prompts import PromptReader
from loraloom.hardware import Precision, choose_device, choose_precision
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.prediction import PredictionChoice, read_signs
from loraloom.training.base_loras import check_origins
from loraloom.training.lr_schedules import create_lr_schedule
from loraloom.training.optimizers import create_optimizer, try_optimizer
from loraloom.training.parameter_groups import PlannedGroup, block_factors, part_rates, plan_groups
from loraloom.training.preservation import check_trigger
from loraloom.training.previews import preview_image_settings, preview_prompts
from loraloom.training.settings import TrainSettings
from loraloom.training.step import Objective
from loraloom.training.steps import StepPlan
from loraloom.training.validation import split_off, validation_pictures
from loraloom.training.whole import check_whole
from loraloom.training.without_effect import RunFacts

__all__ = ["Opened", "contradictions", "open_run", "planned_groups", "with_resolution"]

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """``settings`` with the resolution filled in; ``held_out``: what the validation loss is measured on; ``problems``:
    those of all pictures; ``trigger_remarks``: what is to be said of the trigger word in the captions."""

    settings: TrainSettings
    device: torch.device
    precision: Precision
    checkpoint: Checkpoint
    dataset: Dataset
    held_out: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    trigger_remarks: tuple[str, ...] = ()

    @property
    def objective_was_checked(self) -> bool:
        """False for a checkpoint that has to be asked what it predicts: that needs it loaded."""
        return _prediction_is_known(self.settings, self.checkpoint)

    @property
    def facts(self) -> RunFacts:
        """What decides whether a setting has an effect."""
        plan = StepPlan(self.settings, self.dataset)
        steps = plan.total_steps
        return RunFacts(self.settings, self.dataset, self.device.type == "cpu", steps, plan.epoch_of(steps))


def open_run(
    settings: TrainSettings,
    listener: Listener,
    *,
    device: str,
    leads: bool = True,
    control: Control = keep_going,
) -> Opened:
    """Open everything and check it together. ``leads``: whether this is the leading process, which paints the previews.

    ``control`` is heeded between the pictures, each of which is read. Raises the error that was found, or one
    SettingsError that lists all of them.
    """
    errors: list[LoraloomError] = []
    chosen = _tried(errors, lambda: choose_device(device))
    precision = None if chosen is None else _tried(errors, lambda: choose_precision(chosen, settings.mixed_precision))
    checkpoint = _tried(errors, lambda: open_checkpoint(settings.checkpoint))

    opened: tuple[Dataset, tuple[Sample, ...], tuple[Problem, ...]] | None = None
    if checkpoint is None:  # to read every picture for a name misspelt would take too long
        _tried(errors, lambda: find_layout(settings.dataset))
    else:
        settings = with_resolution(settings, checkpoint, listener)
        opened = _tried(errors, lambda: _open_pictures(settings, control))

    errors += contradictions(settings, checkpoint, None if opened is None else opened[0], chosen)
    remarks = None if opened is None else _tried(errors, partial(_check_trigger, settings, opened[0]))
    if leads:
        _tried(errors, lambda: _check_preview_prompts(settings))

    errors = list({str(error): error for error in errors}.values())
    if len(errors) == 1:
        raise errors[0]
    if errors or chosen is None or precision is None or checkpoint is None or opened is None:
        raise SettingsError([str(error) for error in errors])
    return Opened(settings, chosen, precision, checkpoint, *opened, tuple(remarks or ()))


def contradictions(
    settings: TrainSettings, checkpoint: Checkpoint | None, dataset: Dataset | None, device: torch.device | None
) -> list[LoraloomError]:
    """Everything in which the settings contradict themselves, the checkpoint, the dataset or the device.

    What is None could not be opened: what depends on it is not checked.
    """
    adapter = settings.adapter
    checks: list[Callable[[], object]] = [
        lambda: check_origins(adapter),
        lambda: _check_optimizer(settings, device),
    ]
    if settings.method == "full":
        checks.append(lambda: check_whole(settings))
    if checkpoint is not None:
        family = checkpoint.family
        parts = [part for part in ("unet", *(text.part for text in family.text_parts)) if adapter.trains_part(part)]
        checks += [
            lambda: part_rates(parts, settings.optimizer),
            lambda: block_factors(settings.optimizer, family.name),
            lambda: _check_layers(settings, checkpoint),
            lambda: _check_objective(settings, checkpoint),
            lambda: family.check_clip_skip(checkpoint.infos, settings.clip_skip),
        ]
    if settings.steps is not None:
        steps = settings.steps
        checks.append(lambda: create_lr_schedule(settings.lr_schedule, steps))
    if dataset is not None:
        checks.append(lambda: _check_length(settings, dataset))
    errors: list[LoraloomError] = []
    for check in checks:
        _tried(errors, check)
    return errors


def planned_groups(settings: TrainSettings, checkpoint: Checkpoint) -> list[PlannedGroup]:
    """The optimizer's groups, from the checkpoint's header alone. Raises SettingsError, AdapterError."""
    family = checkpoint.family
    targets = family.adapter_targets(checkpoint.infos)
    if settings.adapter.rank_from_file:
        adapters = create_adapters(settings.adapter, targets, seed=settings.seed, family=family.name)
        layers = [(target, _trained(adapter)) for target, adapter in adapters.items()]
    else:
        chosen = choose_targets(settings.adapter, targets, family=family.name)
        one_of_each = {target.kind: target for target in chosen}.values()
        plain = settings.adapter.model_copy(
            update={"include": (), "exclude": (), "init": "default", "start_from": None, "block_ranks": None}
            | {"block_alphas": None, "conv_block_ranks": None, "conv_block_alphas": None, "conv_rank": 1}
        )
        adapters = create_adapters(
            plain, list(one_of_each), seed=settings.seed, weight=lambda target: torch.ones(target.shape)
        )
        names = {target.kind: _trained(adapter) for target, adapter in adapters.items()}
        layers = [(target, names[target.kind]) for target in chosen]
    return plan_groups(layers, settings.optimizer, family.name)


def with_resolution(settings: TrainSettings, checkpoint: Checkpoint, listener: Listener) -> TrainSettings:
    """The settings with the checkpoint's own resolution, or else its family's, where none was set."""
    if settings.dataset.resolutions or settings.dataset.resolution is not None:
        return settings
    own = checkpoint.own_resolution(_signs(settings, checkpoint).prediction)
    if own.remark:
        listener(Notice(own.remark, "warning"))
    made_for = f"what {checkpoint.path.name} says of itself"
    by = made_for if own.is_said else f"what {checkpoint.family.title} was trained at"
    listener(Notice(f"dataset.resolution = {own.setting}: {by}"))
    return settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"resolution": own.setting})})


def _tried(errors: list[LoraloomError], make: Callable[[], T]) -> T | None:
    try:
        return make()
    except LoraloomError as error:
        errors.append(error)
        return None


def _open_pictures(
    settings: TrainSettings, control: Control
) -> tuple[Dataset, tuple[Sample, ...], tuple[Problem, ...]]:
    dataset, held_out = split_off(load_dataset(settings.dataset, control=control), settings.validation)
    apart, problems = validation_pictures(settings.validation, dataset, control)
    return dataset, held_out + apart, dataset.problems + problems


def _trained(adapter: Adapter) -> list[str]:
    """The names of an adapter's parameters that are trained."""
    return [name for name, parameter in adapter.named_parameters() if parameter.requires_grad]


def _group(name: str, part: str, rate: float) -> dict[str, object]:
    """One of an optimizer's groups, with a small parameter in place of its own."""
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    return {"params": [parameter], "lr": rate, "base_lr": rate, "name": name, "part": part}


def _check_optimizer(settings: TrainSettings, device: torch.device | None) -> None:
    if device is not None:
        try_optimizer(settings.optimizer, device)
    else:
        create_optimizer([_group("trial", "unet", settings.optimizer.learning_rate)], settings.optimizer)


def _check_layers(settings: TrainSettings, checkpoint: Checkpoint) -> None:
    """Something must be trained, and the optimizer must take the rates that come out for it."""
    if settings.method == "full":
        if not (settings.adapter.unet or settings.adapter.text_encoder):
            raise SettingsError(["nothing is trained"], "set adapter.unet or adapter.text_encoder to true")
        return
    groups = planned_groups(settings, checkpoint)
    create_optimizer([_group(group.name, group.part, group.rate) for group in groups], settings.optimizer)


def _check_objective(settings: TrainSettings, checkpoint: Checkpoint) -> None:
    """A checkpoint that has to be asked what it predicts is checked once it is loaded."""
    if not _prediction_is_known(settings, checkpoint):
        return
    signs = _signs(settings, checkpoint)
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=signs.zero_terminal_snr)
    Objective(schedule, signs.prediction or "epsilon", settings.seed, settings.objective).check()


def _signs(settings: TrainSettings, checkpoint: Checkpoint) -> PredictionChoice:
    return read_signs(
        checkpoint,
        checkpoint.metadata,
        checkpoint.path,
        prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
    )


def _prediction_is_known(settings: TrainSettings, checkpoint: Checkpoint) -> bool:
    return _signs(settings, checkpoint).prediction is not None or not checkpoint.family.probes_prediction


def _check_trigger(settings: TrainSettings, dataset: Dataset) -> list[str]:
    return check_trigger(settings, [sample.fullest_caption for sample in dataset.training])


def _check_length(settings: TrainSettings, dataset: Dataset) -> None:
    """Concepts that end before the run does would leave it with nothing to do, after hours."""
    plan, last = StepPlan(settings, dataset), dataset.last_epoch
    if settings.steps is None:
        create_lr_schedule(settings.lr_schedule, plan.total_steps)
        return
    possible = sum(len(plan.epoch_batches(epoch)) for epoch in range(last or 1))
    if last is not None and possible < settings.steps:
        problem = f"steps={settings.steps}, but the concepts' last epoch, {last}, ends after {possible} steps"
        raise SettingsError([problem], "lower steps, or let a concept go on")


def _check_preview_prompts(settings: TrainSettings) -> None:
    """A LoRA or a wildcard file that a preview prompt names must be found now, not after hours of training."""
    for index, prompt in enumerate(preview_prompts(settings.preview)):
        generate = preview_image_settings(prompt, settings.preview, index, (512, 512), None, prompt.text)
        for tag in PromptReader(generate).read(generate.seed).loras:
            find_lora(tag.name, generate.lora_folders)
