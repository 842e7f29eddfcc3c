"""What a run will take, before it starts: steps, memory, time; and the cheapest change that makes it fit.

Its parts are modules of their own: :mod:`loraloom.training.work` (steps and pictures), :mod:`loraloom.training.memory`
and :mod:`loraloom.training.disk`. Here they are put together, with the time that two real steps take.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loraloom.control import Control, heed, keep_going
from loraloom.data.sample import Dataset
from loraloom.errors import OutputError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.room import free_bytes
from loraloom.hardware import PeakMemory, choose_device, choose_precision
from loraloom.models.checkpoint import Checkpoint
from loraloom.training.agenda import Agenda
from loraloom.training.disk import Disk, count_disk
from loraloom.training.memory import LIBRARY_BYTES, Memory, predict_memory
from loraloom.training.opening import Opened, open_run
from loraloom.training.previews import count_pictures
from loraloom.training.settings import TrainSettings, ValidationSettings
from loraloom.training.steps import Step, epoch_draws
from loraloom.training.trainer import TrainingRun
from loraloom.training.without_effect import without_effect
from loraloom.training.work import Work, batch_shape, count_work

__all__ = ["Change", "Plan", "Trial", "cheapest_changes", "make_plan"]

TRIAL_BOUND_S = 120.0
"""What the first of the two real steps may take, with loading and encoding."""
HOPELESS = 3.0
"""Times the bound: where the count says more than this, the steps are not begun. Counts are off by up to this much."""
WORTH_A_WORD_S = 10.0
PASS_SHARE = 0.5
"""Share of a step on one picture that its forward pass takes: the backward pass of frozen weights is about one more."""
WORK_SHARE = {"cpu": 0.5, "cuda": 0.3, "mps": 0.3}
"""Share of the speed of one large matrix product that a training step reaches; used where no step was timed."""


# ------------------------------------------------------------------------------------------------ time


@dataclass(frozen=True)
class Trial:
    """Two real steps of the largest batch: seconds of the second one, and the peak of own (or device) memory."""

    seconds: float
    encode_seconds: float
    peak: int | None


class _Overdue(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, an operation that begins after ``bound_s`` seconds of ``clock`` raises TimeoutError instead.

    Modules, the backward pass and the encoding all go through here, so nothing has to be asked in between.
    """

    def __init__(self, bound_s: float, clock: Callable[[], float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._end = clock() + bound_s

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._clock() > self._end:
            raise TimeoutError
        return function(*args, **(kwargs or {}))


def try_steps(
    settings: TrainSettings,
    dataset: Dataset,
    folder: Path,
    listener: Listener = ignore,
    *,
    bound_s: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Trial | None:
    """Load the checkpoint, encode the pictures of the largest batch and take two steps; nothing is saved.

    None when the first step had not ended after ``bound_s`` seconds of ``clock``; the second takes no longer.
    """
    batch = max(epoch_draws(settings, dataset, 0), key=lambda batch: math.prod(batch_shape(batch)))
    chosen = {draw.sample for draw in batch}

    def narrowed(dataset: Dataset) -> Dataset:
        return replace(dataset, samples=tuple(sample for sample in dataset.samples if sample in chosen))

    # What is held out would be encoded for nothing.
    settings = settings.model_copy(update={"validation": ValidationSettings()})
    watch = PeakMemory(choose_device(settings.device))
    overdue = _Overdue(bound_s, clock)
    run: TrainingRun | None = None
    try:
        with watch:
            with overdue:
                run = TrainingRun.prepare(settings, folder, listener, narrowed=narrowed)
            batches = max(run.plan.epoch_batches(0), key=lambda batches: max(len(draws) for draws in batches))
            largest = max(batches, key=len)
            with run.parts.model.using(*{"unet", *run.parts.adapters.parts()}):
                # The first step finds out whether there is time, the second is the one that is timed.
                with overdue:
                    run.updates.make(Step(0, False, [largest]))
                began = time.perf_counter()
                run.updates.make(Step(0, False, [largest]))
                seconds = time.perf_counter() - began
        # A run encodes before its first step, so this counts for the time alone.
        width, height, _ = batch_shape(batch)
        began = time.perf_counter()
        with torch.no_grad(), overdue:
            run.parts.model.encode_images(torch.zeros(1, 3, height, width))
        encode_seconds = time.perf_counter() - began
    except TimeoutError:
        return None
    finally:
        if run is not None:
            run.parts.attachment.detach()
    return Trial(seconds * len(batch) / len(largest), encode_seconds, watch.peak)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of one large matrix product, the best of five."""
    size = 1024 if device.type == "cpu" else 4096
    first = torch.ones(size, size, dtype=dtype, device=device)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        float((first @ first)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


# ------------------------------------------------------------------------------------------------ what would fit


@dataclass(frozen=True)
class Change:
    """A change of settings, what it costs in words, and the peak with it and those before it."""

    overrides: dict[str, Any]
    cost: str
    peak: int


def cheapest_changes(
    settings: TrainSettings, checkpoint: Checkpoint, work: Work, limit: int, memory: Memory
) -> list[Change]:
    """The cheapest change that brings the peak under ``limit``, or else the changes that together do.

    Empty when it fits as it is. When even all of them do not, the last one's ``peak`` is still above the limit.
    """
    if memory.peak <= limit:
        return []
    process = max(memory.process - LIBRARY_BYTES, 0)

    def peak(changed: TrainSettings) -> int:
        return predict_memory(changed, checkpoint, _largest_with(changed, settings, work), process=process).peak

    options = list(_options(settings, work, on_cpu=memory.device == "cpu"))
    best: list[Change] = []
    for overrides, cost in options:
        reached = peak(_changed(settings, overrides))
        if reached <= limit:
            return [Change(overrides, cost, reached)]
    together, so_far = settings, memory.peak
    for overrides, cost in options:
        changed = _changed(together, overrides)
        reached = peak(changed)
        if reached >= so_far:
            continue
        together, so_far = changed, reached
        # A later value of the same setting takes the place of an earlier one.
        best = [change for change in best if set(change.overrides) != set(overrides)]
        best.append(Change(overrides, cost, reached))
        if reached <= limit:
            break
    return best


def _options(settings: TrainSettings, work: Work, *, on_cpu: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Changes from the cheapest to the dearest."""
    if settings.gradient_checkpointing == "none":
        yield {"gradient_checkpointing": "selective"}, "next to no time, the same result"
    if settings.gradient_checkpointing != "full":
        yield {"gradient_checkpointing": "full"}, "40 % more time, the same result"

    if settings.batch_size > 1:
        count = settings.gradient_accumulation * settings.batch_size
        cost = "more time, the same number of images in an update"
        yield {"batch_size": 1, "gradient_accumulation": count}, cost
    if not settings.keep_file_precision:
        yield {"keep_file_precision": True}, "a little more time, the same result for an fp16 file"
    if not settings.low_memory and not on_cpu:
        yield {"low_memory": True}, "time for moving parts to the device and back"

    if settings.quantize == "none":
        yield {"quantize": "int8"}, "the checkpoint's predictions are off by about 1 %"

    # A list of resolutions has no one side that could be made smaller.
    width, height, _ = work.largest if not settings.dataset.resolutions else (0, 0, 0)
    side = round(math.sqrt(width * height))
    for smaller in (side * 3 // 4, side // 2):
        rounded = max(64, smaller // 64 * 64)
        if rounded < side:
            yield {"dataset.resolution": rounded}, "less detail is learned"
    if settings.quantize != "nf4":
        yield {"quantize": "nf4"}, "the checkpoint's predictions are off by about 10 %"


def _changed(settings: TrainSettings, overrides: dict[str, Any]) -> TrainSettings:
    own = {key: value for key, value in overrides.items() if "." not in key}
    if "dataset.resolution" in overrides:
        own["dataset"] = settings.dataset.model_copy(update={"resolution": overrides["dataset.resolution"]})
    return settings.model_copy(update=own)


def _largest_with(changed: TrainSettings, settings: TrainSettings, work: Work) -> tuple[int, int, int]:
    """The largest batch under other settings: scaled, without reading the pictures again."""
    width, height, images = work.largest
    if changed.dataset.resolution != settings.dataset.resolution:
        factor = float(changed.dataset.resolution) / math.sqrt(width * height)  # type: ignore[arg-type]
        width, height = (max(64, round(side * factor / 8) * 8) for side in (width, height))
    return width, height, min(images, changed.batch_size)


# ------------------------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Plan:
    """All that can be known before a run. ``seconds_per_batch`` is that of the largest batch."""

    work: Work
    memory: Memory
    disk: Disk
    seconds_per_batch: float
    seconds: float
    """Of the whole run: encoding, steps, measurements and previews."""
    timed: bool
    """From real steps; else from counted operations and ``rate``."""
    rate: float
    """Operations a second that were assumed, or reached in the trial."""
    trial: Trial | None
    free_disk: int | None = None
    """Bytes that are free where the run will be; None where the system does not say."""

    @property
    def fits_disk(self) -> bool:
        """Whether what the run writes has room, as far as is known."""
        return self.free_disk is None or self.disk.total <= self.free_disk

    @property
    def off_percent(self) -> float | None:
        """How far the predicted peak is above the measured one; None where none was measured."""
        if self.trial is None or self.trial.peak is None:
            return None
        return 100 * (self.memory.peak / self.trial.peak - 1)


def _has_time(counted_s: float, work: Work, bound_s: float, listener: Listener) -> bool:
    """Whether two real steps are worth beginning; a notice says what is going to happen."""
    width, height, images = work.largest
    # The pictures are encoded, then two steps are taken.
    expected = 3 * counted_s
    what = f"two real steps of {images} pictures of {width}x{height}"
    if expected > HOPELESS * bound_s:
        text = f"{what} would take about {expected / 60:.0f} minutes here, {bound_s / 60:.0f} are allowed"
        listener(Notice(f"{text}: the time is counted instead, a rough figure", "warning"))
        return False
    if expected > WORTH_A_WORD_S:
        listener(Notice(f"{what}: about {expected:.0f} s, at most {bound_s:.0f}; a dry plan leaves them out"))
    return True


def make_plan(
    settings: TrainSettings,
    *,
    dry: bool = False,
    folder: Path | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
    bound_s: float = TRIAL_BOUND_S,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Count, predict, and unless ``dry`` take two real steps (with ``folder`` as their scratch folder).

    The steps have ``bound_s`` seconds of ``clock``; where they need more, the time is calculated instead, with a
    notice. ``control`` is heeded between the pictures, each of which is read.
    """
    opened = open_run(settings, listener, device=settings.device, control=control)
    settings, device = opened.settings, opened.device
    checkpoint, dataset = opened.checkpoint, opened.dataset
    for text in without_effect(opened.facts):
        listener(Notice(text, "warning"))
    heed(control)
    work = count_work(settings, dataset)
    memory = predict_memory(settings, checkpoint, work.largest, device=device)
    dtype = choose_precision(device, settings.mixed_precision).compute
    counted_rate = matrix_rate(device, dtype) * WORK_SHARE.get(device.type, 0.3)
    counted_s = memory.flops / counted_rate
    trial = None
    if not dry and _has_time(counted_s, work, bound_s, listener):
        scratch = folder or settings.output
        trial = try_steps(settings, dataset, scratch, bound_s=bound_s, clock=clock)
        if trial is None:
            text = f"the first step had not ended after {bound_s:.0f} s: the time is counted instead, a rough figure"
            listener(Notice(text, "warning"))
    if trial is None:
        rate, batch_s = counted_rate, counted_s
        encode_s = batch_s / work.largest[2]  # the VAE's work is of the order of a step's
    else:
        batch_s, encode_s, rate = trial.seconds, trial.encode_seconds, memory.flops / max(trial.seconds, 1e-9)
    encoded = (len(dataset.samples) + len(opened.held_out)) * (2 if settings.dataset.flip else 1)
    return Plan(
        work=work,
        memory=memory,
        disk=count_disk(
            settings,
            work,
            adapter=memory.adapter,
            optimizer=memory.optimizer,
            encoded=encoded,
        ),
        seconds_per_batch=batch_s,
        seconds=work.share_of_largest * batch_s
        + encoded * encode_s
        + _passes_between(settings, work, opened) * PASS_SHARE * batch_s / work.largest[2],
        timed=trial is not None,
        rate=rate,
        trial=trial,
        free_disk=_free_disk(settings.output),
    )


def _passes_between(settings: TrainSettings, work: Work, opened: Opened) -> int:
    """Forward passes of one picture that a run takes besides its steps: to paint previews, and to measure losses."""
    preview, validation = settings.preview, settings.validation
    counts = Agenda(settings, work.steps, work.steps_per_epoch).count(work.lengths)
    # With and without the prompt.
    painting = 2 * preview.steps * count_pictures(preview, counts.previews)

    measured = counts.validations * len(opened.held_out)
    if validation.image_losses:
        measured += 2 * len(opened.dataset.training)
    return painting + measured * validation.timesteps * validation.draws


def _free_disk(folder: Path) -> int | None:
    try:
        return free_bytes(folder)
    except OutputError:
        return None
