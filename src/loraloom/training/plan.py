"""What a run will take, before it starts: steps, memory, time and disk; and the cheapest change that makes it fit.

Memory is not guessed from a table: the modules of the checkpoint themselves take a training step on tensors without
data (:mod:`loraloom.training.meter`), with the LoRA, the optimizer and the settings of the run. What a C library's
allocator adds on the CPU is the one part that is an estimate; it is named in :data:`HEAP_HOLES`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loraloom.actions import Action, Sentence
from loraloom.adapters.attach import AdapterSet, attach, create_adapters
from loraloom.data.batches import Draw, plan_epoch
from loraloom.data.sample import Dataset
from loraloom.errors import LoraloomError, OutputError
from loraloom.events import Listener, MemoryMeasured, MemoryPredicted, Notice, ignore
from loraloom.formats.room import Need, free_bytes, picture_bytes, require_room
from loraloom.hardware import PeakMemory, choose_device, choose_precision, free_memory_bytes, own_memory_bytes
from loraloom.models.checkpoint import Checkpoint
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.quantized import QuantizedWeight
from loraloom.training.base_loras import changed_weights
from loraloom.training.meter import Meter
from loraloom.training.opening import open_run
from loraloom.training.optimizers import create_optimizer
from loraloom.training.previews import preview_prompts
from loraloom.training.settings import TrainSettings, ValidationSettings
from loraloom.training.whole import WholeModel, whole_parts
from loraloom.training.without_effect import without_effect

__all__ = [
    "Change",
    "Disk",
    "Memory",
    "MemoryWatch",
    "Plan",
    "Trial",
    "Work",
    "cheapest_changes",
    "check_room",
    "make_plan",
    "predict_memory",
]

HEAP_HOLES = 1.0
"""On the CPU, for each pass: places in the heap as large as a convolution's workspace, and as the dense copy of a
weight that is stored in another precision, that nothing else fits into. A backward pass is one more, unless
checkpointing is full: then so little is kept in between that it finds the places of the forward pass. Measured on
SD 1.5 (benchmarks/plan.py)."""
HEAP_SCATTER = 0.1
"""On the CPU: share of the activations by which the heap is larger than what is in use."""
SMALL_BYTES = 64 * 2**20
"""Checkpoints smaller than this fit anywhere: no run of theirs begins with a prediction."""
LIBRARY_BYTES = 48 * 2**20
"""On the CPU: kernels that are generated on first use, and what matrix products keep for themselves."""
TRIAL_BOUND_S = 120.0
"""What the first of the two real steps may take, with loading and encoding."""
HOPELESS = 3.0
"""Times the bound: where the count says more than this, the steps are not begun. Counts are off by up to this much."""
WORTH_A_WORD_S = 10.0
WORK_SHARE = {"cpu": 0.5, "cuda": 0.3, "mps": 0.3}
"""Share of the speed of one large matrix product that a training step reaches; used where no step was timed."""


# ------------------------------------------------------------------------------------------------ what there is to do


@dataclass(frozen=True)
class Work:
    """Steps and images of a run. ``largest``: the batch that takes most, (width, height, images)."""

    steps: int
    epochs: int
    steps_per_epoch: int
    images: dict[str, int]
    """Images seen per concept over the whole run."""
    buckets: dict[str, int]
    """Batches of the first epoch by bucket, ``512x768``."""
    largest: tuple[int, int, int]
    share_of_largest: float
    """All batches of the run, in units of the largest."""


_LOOKED_AT = 100_000
"""Pictures that are counted one by one; a run of a million epochs would take hours to go through."""


def count_work(settings: TrainSettings, dataset: Dataset) -> Work:
    """Go through the run's epochs as the trainer does; after the first many pictures, the others are as those were.

    Which picture is in which batch differs from epoch to epoch, how many there are of each concept does not.
    """
    first = _epoch(settings, dataset, 0)
    size = settings.gradient_accumulation
    images: Counter[str] = Counter()
    units, steps, epoch = 0.0, 0, 0
    largest = max((_shape(batch) for batch in first), key=math.prod)
    while (steps < settings.steps) if settings.steps is not None else (epoch < settings.epochs):
        batches = _epoch(settings, dataset, epoch)
        if not batches:
            break
        if settings.steps is not None:
            batches = batches[: (settings.steps - steps) * size]
        for batch in batches:
            images.update(draw.sample.concept.label for draw in batch)
            units += math.prod(_shape(batch)) / math.prod(largest)
        steps += math.ceil(len(batches) / size)
        epoch += 1
        more = _whole_epochs_left(settings, steps, epoch)
        if images.total() >= _LOOKED_AT and more:
            images = Counter({label: count + count * more // epoch for label, count in images.items()})
            units += units / epoch * more
            steps += steps // epoch * more
            epoch += more
    buckets = Counter("{}x{}".format(*batch[0].sample.bucket) for batch in first)
    return Work(
        steps=steps,
        epochs=epoch,
        steps_per_epoch=math.ceil(len(first) / size),
        images=dict(sorted(images.items())),
        buckets=dict(sorted(buckets.items())),
        largest=largest,
        share_of_largest=units,
    )


def _whole_epochs_left(settings: TrainSettings, steps: int, epoch: int) -> int:
    """How many epochs of the run are still whole, after ``epoch`` of them took ``steps``."""
    if settings.steps is None:
        return settings.epochs - epoch
    return max(settings.steps - steps, 0) // (steps // epoch)


def _epoch(settings: TrainSettings, dataset: Dataset, epoch: int) -> list[list[Draw]]:
    return plan_epoch(
        dataset, batch_size=settings.batch_size, seed=settings.seed, epoch=epoch, flip=settings.dataset.flip
    )


def _shape(batch: Sequence[Draw]) -> tuple[int, int, int]:
    return *batch[0].sample.bucket, len(batch)


# ------------------------------------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that trains. ``peak`` is the largest sum that is there at one time.

    On the CPU this is the process's own memory; pages of the mapped checkpoint (``mapped``) come and go as the
    system likes and count only in ``resident``.
    """

    device: str
    process: int
    """The program itself before anything is loaded (CPU only)."""
    weights: int
    mapped: int
    adapter: int
    optimizer: int
    kept: int
    """Activations kept for the backward pass."""
    step: int
    """Largest sum of activations, gradients and intermediate results in a step."""
    encoding: int
    """Largest sum of intermediate results while images and captions are encoded."""
    previews: int
    """The same while a preview is painted."""
    peak: int
    flops: int
    """Floating point operations of the largest batch, forward and backward."""

    @property
    def resident(self) -> int:
        """``peak`` and the mapped file."""
        return self.peak + self.mapped


def predict_memory(
    settings: TrainSettings,
    checkpoint: Checkpoint,
    largest: tuple[int, int, int],
    *,
    device: torch.device | None = None,
    process: int | None = None,
) -> Memory:
    """Take a step with the real modules on tensors without data. Nothing is loaded; one to a few seconds.

    ``largest`` is (width, height, images) of the batch that takes most; ``process`` the own memory of the program
    before loading (default: what it has after counting).
    """
    device = choose_device(settings.device) if device is None else device
    on_cpu = device.type == "cpu"
    precision = choose_precision(device, settings.mixed_precision)
    model = load_model(
        checkpoint,
        device=torch.device("meta"),
        compute=precision.compute,
        keep_file_precision=settings.keep_file_precision or settings.method == "full",
        prediction="epsilon",  # which of the two makes no difference here, and probing needs data
        quantize=settings.quantize,
    )
    adapters = _adapters(settings, model)
    for part, module in model.parts.items():
        if part != "vae":
            module.gradient_checkpointing = settings.gradient_checkpointing  # type: ignore[assignment]
    changed = {id(weight) for weight in changed_weights(model, settings.adapter)}
    weights = {part: _weight_bytes(model, part, changed, on_cpu=on_cpu) for part in model.parts}
    width, height, images = largest
    encoding = _meter_encoding(model, width, height, 1 if on_cpu else 4)
    painting = _meter_preview(model, settings, width, height)
    attachment = attach(adapters, {target.name: model.layer(target) for target in model.targets})
    step, kept = _meter_step(model, settings, adapters, width, height, images)
    attachment.detach()

    state = _optimizer_bytes(adapters, settings, model.family.name)
    copies = 1 + (settings.ema.enabled)
    adapter = copies * sum(parameter.nbytes for parameter in adapters.parameters())
    gradients = sum(parameter.nbytes for parameter in adapters.parameters() if parameter.requires_grad)
    trained = {"unet", *adapters.parts()}
    all_weights = sum(own for own, _ in weights.values())
    copied, passes = _largest_copy(model) if on_cpu else 0, 1 if settings.gradient_checkpointing == "full" else 2
    staying = all_weights - weights["vae"][0]  # the VAE rests once the pictures are encoded
    at_encoding, at_preview = all_weights, all_weights
    if settings.low_memory and not on_cpu:
        staying = sum(weights[part][0] for part in trained)
        at_encoding = max(own for own, _ in weights.values())
        at_preview = staying + weights["vae"][0]
    elsewhere = 0 if on_cpu else _optimizer_workspace(gradients)
    stages = {
        "encoding": at_encoding + _heap(encoding, 0, on_cpu=on_cpu),
        "step": staying + adapter + state + max(_heap(step, copied, passes, on_cpu=on_cpu), gradients + elsewhere),
        "previews": at_preview + adapter + state + _heap(painting, copied, on_cpu=on_cpu),
    }
    # By now the libraries that a run needs are loaded, so the program is as large as it will be then.
    process = (own_memory_bytes() or 0) if process is None else process
    base = process + LIBRARY_BYTES if on_cpu else 0
    return Memory(
        device=device.type,
        process=base,
        weights=all_weights,
        mapped=sum(mapped for _, mapped in weights.values()),
        adapter=adapter,
        optimizer=state,
        kept=kept,
        step=_heap(step, copied, passes, on_cpu=on_cpu),
        encoding=_heap(encoding, 0, on_cpu=on_cpu),
        previews=_heap(painting, copied, on_cpu=on_cpu),
        peak=base + max(stages.values()),
        flops=step.flops,
    )


def _heap(meter: Meter, copied: int, passes: int = 1, *, on_cpu: bool) -> int:
    """Bytes of the heap that hold what the meter counted; ``copied``: of the largest copy of a weight."""
    if not on_cpu or not meter.peak:
        return meter.peak
    holes = passes * HEAP_HOLES * (meter.largest_workspace + copied)
    return int(meter.peak_with_workspace + holes + HEAP_SCATTER * meter.peak)


def _largest_copy(model: LoadedModel) -> int:
    """Bytes of the largest weight that is made dense, or cast, whenever it is used; of tables only rows are."""
    return max(
        (
            weight.numel() * model.compute.itemsize
            for part, module in model.parts.items()
            for layer in module.modules()
            if part != "vae" and not isinstance(layer, torch.nn.Embedding)
            for weight in layer.parameters(recurse=False)
            if isinstance(weight, QuantizedWeight) or weight.dtype != model.compute
        ),
        default=0,
    )


def _optimizer_workspace(gradients: int) -> int:
    """torch's optimizers update all tensors of a GPU together, which takes two copies of the gradients for a moment."""
    return 2 * gradients


def _adapters(settings: TrainSettings, model: LoadedModel) -> AdapterSet:
    """The run's adapters (or the weights that are trained themselves) without data.

    What adapters start from has no effect on their size.
    """
    if settings.method == "full":
        return WholeModel(model, whole_parts(model, settings.adapter)).train()
    fresh = settings.adapter if settings.adapter.rank_from_file else settings.adapter.model_copy(
        update={"init": "default", "start_from": None}
    )  # fmt: skip
    adapters = create_adapters(
        fresh,
        model.targets,
        seed=settings.seed,
        family=model.family.name,
        weight=lambda target: torch.zeros(target.shape),
    )
    return adapters.to("meta").train()


def _weight_bytes(model: LoadedModel, part: str, changed: Set[int], *, on_cpu: bool) -> tuple[int, int]:
    """(own, mapped) bytes of one part: on the CPU a tensor in the file's precision stays mapped, unless ``changed``
    (ids of weights) has it."""
    own = mapped = 0
    for name, parameter in model.parts[part].named_parameters():
        stored = model.checkpoint.info(model.prefixes[part] + name)
        if parameter.requires_grad:
            continue  # counted with what is trained
        if isinstance(parameter, QuantizedWeight):
            own += parameter.stored_bytes
        elif on_cpu and parameter.dtype == stored.dtype and id(parameter) not in changed:
            mapped += parameter.nbytes
        else:
            own += parameter.nbytes
    return own, mapped


def _meter_step(
    model: LoadedModel, settings: TrainSettings, adapters: AdapterSet, width: int, height: int, images: int
) -> tuple[Meter, int]:
    """A forward and a backward pass, and the bytes kept between them."""
    meta = model.device
    text_is_trained = any(part != "unet" for part in adapters.parts())
    with Meter() as meter:
        with torch.set_grad_enabled(text_is_trained):
            chunks = settings.max_token_length // 75 if settings.max_token_length else None
            texts = [" ".join(["word"] * 40)] * images
            text = model.encode_text(texts, clip_skip=settings.clip_skip, max_chunks=chunks)
        noisy = torch.empty(images, 4, height // 8, width // 8, device=meta)
        predicted = model.denoise(noisy, torch.zeros(images, device=meta), text)
        loss = (predicted - torch.empty_like(predicted)).square().mean()
        kept = meter.live
        loss.backward()  # type: ignore[no-untyped-call]
    for parameter in adapters.parameters():
        parameter.grad = None
    return meter, kept


def _meter_encoding(model: LoadedModel, width: int, height: int, images: int) -> Meter:
    with torch.no_grad(), Meter() as meter:
        model.encode_images(torch.empty(images, 3, height, width, device=model.device))
        model.encode_text([""])
    return meter


def _meter_preview(model: LoadedModel, settings: TrainSettings, width: int, height: int) -> Meter:
    meter = Meter()
    if not preview_prompts(settings.preview):
        return meter
    width, height = settings.preview.size or (width, height)
    with torch.no_grad(), meter:
        text = model.encode_text(["", ""])
        noisy = torch.empty(2, 4, height // 8, width // 8, device=model.device)
        model.denoise(noisy, torch.zeros(2, device=model.device), text)
        model.decode_latents(noisy[:1])
    return meter


def _optimizer_bytes(adapters: AdapterSet, settings: TrainSettings, family: str) -> int:
    """Bytes of the optimizer's state: one real step of one small tensor of each shape, counted."""
    shapes = Counter(tuple(parameter.shape) for parameter in adapters.parameters() if parameter.requires_grad)
    total = 0
    for shape, count in shapes.items():
        parameter = torch.nn.Parameter(torch.zeros(shape))
        group = {"params": [parameter], "lr": 1e-4, "name": "unet"}
        try:
            optimizer = create_optimizer([group], settings.optimizer)
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        except (RuntimeError, LoraloomError, KeyError, ValueError, NotImplementedError, AssertionError):
            total += count * 2 * parameter.nbytes  # what most optimizers keep
            continue
        state: dict[Any, Any] = optimizer.state.get(parameter, {})
        total += count * sum(value.nbytes for value in state.values() if isinstance(value, Tensor) and value.ndim)
    return total


# ------------------------------------------------------------------------------------------------ time and disk


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
    from loraloom.training.steps import Step
    from loraloom.training.trainer import TrainingRun

    batch = max(_epoch(settings, dataset, 0), key=lambda batch: math.prod(_shape(batch)))
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
            with run.model.using(*{"unet", *run.adapters.parts()}):
                # The first step finds out whether there is time, the second is the one that is timed.
                with overdue:
                    run.optimizer_step(Step(0, False, [largest]))
                began = time.perf_counter()
                run.optimizer_step(Step(0, False, [largest]))
                seconds = time.perf_counter() - began
        # A run encodes before its first step, so this counts for the time alone.
        width, height, _ = _shape(batch)
        began = time.perf_counter()
        with torch.no_grad(), overdue:
            run.model.encode_images(torch.zeros(1, 3, height, width))
        encode_seconds = time.perf_counter() - began
    except TimeoutError:
        return None
    finally:
        if run is not None:
            run.attachment.detach()
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


@dataclass(frozen=True)
class Disk:
    """Bytes that a run leaves, and files."""

    lora: int
    loras: int
    state: int
    """Of one."""
    states: int
    previews: int
    latents: int
    log: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.lora * self.loras + self.state * self.states + self.previews + self.latents + self.log

    def needs(self, folder: Path, cache: Path | None, *, goes_on: bool = False) -> list[Need]:
        """Where it goes: ``folder`` is the run's, ``cache`` that of encoded pictures.

        LoRA files and states have a size that is known; of a run that ``goes_on`` only one of each must still come.
        """
        loras, states = (1, min(self.states, 1)) if goes_on else (self.loras, self.states)
        needs = [
            Need(folder / "weights", self.lora * loras, "LoRA files"),
            Need(folder / "state", self.state * states, "states"),
            Need(folder / "previews", self.previews, "previews", certain=False),
            Need(folder, self.log, "the log", certain=False),
        ]
        return needs if cache is None else [*needs, Need(cache, self.latents, "encoded pictures", certain=False)]


HEADER_BYTES = 64 * 2**10
"""Of a LoRA file or a state: names of tensors, metadata, the identity of the pictures."""
LOG_BYTES = 300
"""Of a step in the log, and about as much for the learning curves in the end."""


def count_disk(
    settings: TrainSettings,
    *,
    steps: int,
    epochs: int,
    size: tuple[int, int],
    adapter: int,
    optimizer: int,
    encoded: int,
) -> Disk:
    """What a run writes: LoRA files, states, previews, the cache of ``encoded`` pictures, the log.

    ``size``: (width, height) of the largest pictures; ``adapter`` and ``optimizer``: bytes of what is trained (twice
    that with an average) and of its moments.
    """
    saving, preview = settings.saving, settings.preview
    width, height = size
    tensors = adapter // (2 if settings.ema.enabled else 1)
    every = saving.every_epochs
    if saving.files_per_run:
        every = max(1, epochs // saving.files_per_run)
    by_epoch = (epochs - 1) // every if every else 0
    by_step = (steps - 1) // saving.every_steps if saving.every_steps else 0
    if saving.keep_last:
        by_epoch, by_step = min(by_epoch, saving.keep_last), min(by_step, saving.keep_last)
    # A state is removed only when a step was taken from the next one, so there is one more for a moment.
    written = by_epoch + by_step + 1 + (steps // saving.state_every_steps if saving.state_every_steps else 0)
    states = min(saving.keep_states + 1 if saving.keep_states else written, written) if saving.state else 0
    times = (epochs // preview.every_epochs if preview.every_epochs else 0) + preview.at_start
    times += steps // preview.every_steps if preview.every_steps else 0
    painted = preview.size or (width, height)
    pictures = len(preview_prompts(preview)) * len(preview.weights) * times
    latent = 2 * 4 * 4 * (width // 8) * (height // 8)
    return Disk(
        lora=tensors // (1 if saving.precision == "float" else 2) + HEADER_BYTES,
        loras=(by_epoch + by_step + 1) * (2 if settings.ema.enabled and settings.ema.save == "both" else 1),
        state=adapter + optimizer + HEADER_BYTES,
        states=states,
        previews=picture_bytes(*painted, pictures),
        latents=encoded * latent if settings.dataset.latent_folder is not None else 0,
        log=2 * steps * LOG_BYTES,
    )


def check_room(
    settings: TrainSettings, folder: Path, dataset: Dataset, model: LoadedModel, listener: Listener, *, goes_on: bool
) -> None:
    """Raise OutputError where a run in ``folder`` cannot write what it will; a warning where it hardly can."""
    from loraloom.training.steps import StepPlan

    batches, plan = _epoch(settings, dataset, 0), StepPlan(settings, dataset)
    if not batches:
        return
    if settings.method == "full":
        parts = whole_parts(model, settings.adapter)
        trained = 4 * sum(parameter.numel() for part in parts for parameter in model.parts[part].parameters())
        moments = 2 * trained
    else:
        adapters = _adapters(settings, model)
        trained = sum(parameter.nbytes for parameter in adapters.parameters())
        moments = _optimizer_bytes(adapters, settings, model.family.name)
    width, height, _ = max((_shape(batch) for batch in batches), key=math.prod)
    disk = count_disk(
        settings,
        steps=plan.total_steps,
        epochs=math.ceil(plan.total_steps / max(plan.steps_per_epoch, 1)),
        size=(width, height),
        adapter=trained * (2 if settings.ema.enabled else 1),
        optimizer=moments,
        encoded=len(dataset.samples) * (2 if settings.dataset.flip else 1),
    )
    require_room(disk.needs(folder, settings.dataset.latent_folder, goes_on=goes_on), listener)


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
        cost = "more time, the same images in an update"
        yield {"batch_size": 1, "gradient_accumulation": count}, cost
    if not settings.keep_file_precision:
        yield {"keep_file_precision": True}, "a little more time, the same result for an fp16 file"
    if not settings.low_memory and not on_cpu:
        yield {"low_memory": True}, "time when a part moves to the device and back"
    if settings.quantize == "none":
        yield {"quantize": "int8"}, "the checkpoint's answers are off by about 1 %"
    width, height, _ = work.largest if not settings.dataset.resolutions else (0, 0, 0)
    side = round(math.sqrt(width * height))
    for smaller in (side * 3 // 4, side // 2):
        rounded = max(64, smaller // 64 * 64)
        if rounded < side:
            yield {"dataset.resolution": rounded}, "less detail is learned"
    if settings.quantize != "nf4":
        yield {"quantize": "nf4"}, "the checkpoint's answers are off by about 10 %"


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
    """All that can be said before a run. ``seconds_per_batch`` is that of the largest batch."""

    work: Work
    memory: Memory
    disk: Disk
    seconds_per_batch: float
    seconds: float
    """Of the whole run: encoding, steps and previews."""
    timed: bool
    """From real steps; else from counted operations and ``rate``."""
    rate: float
    """Operations a second that were assumed, or reached in the trial."""
    trial: Trial | None
    free_disk: int | None = None
    """Bytes that are free where the run will be; None where nobody says."""


def _has_time(counted_s: float, work: Work, bound_s: float, listener: Listener) -> bool:
    """Whether two real steps are worth beginning; what is going to happen is said."""
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
    bound_s: float = TRIAL_BOUND_S,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Count, predict, and unless ``dry`` take two real steps (with ``folder`` as their scratch folder).

    The steps have ``bound_s`` seconds of ``clock``; where they need more the time is counted, which is said.
    """
    opened = open_run(settings, listener, device=settings.device)
    settings, device = opened.settings, opened.device
    checkpoint, dataset = opened.checkpoint, opened.dataset
    for text in without_effect(opened.facts):
        listener(Notice(text, "warning"))
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
    pictures = len(preview_prompts(settings.preview)) * len(settings.preview.weights)
    times = work.epochs // max(settings.preview.every_epochs, 1) + settings.preview.at_start
    # Painting takes two forward passes a sampler step; forward and backward of one image are about two.
    preview_s = pictures * times * settings.preview.steps * batch_s / work.largest[2]
    return Plan(
        work=work,
        memory=memory,
        disk=count_disk(
            settings,
            steps=work.steps,
            epochs=work.epochs,
            size=work.largest[:2],
            adapter=memory.adapter,
            optimizer=memory.optimizer,
            encoded=encoded,
        ),
        seconds_per_batch=batch_s,
        seconds=work.share_of_largest * batch_s + encoded * encode_s + preview_s,
        timed=trial is not None,
        rate=rate,
        trial=trial,
        free_disk=_free_disk(settings.output),
    )


def _free_disk(folder: Path) -> int | None:
    try:
        return free_bytes(folder)
    except OutputError:
        return None


class MemoryWatch:
    """Predicts a run's peak at its start, and says at its end what it was. Both are events of the run."""

    def __init__(self, listener: Listener) -> None:
        self._peak: PeakMemory | None = None
        self._listener = listener
        self._predicted: Memory | None = None

    def start(self, settings: TrainSettings, checkpoint: Checkpoint, dataset: Dataset) -> None:
        """Predict, tell, warn when it will hardly fit, and begin to measure."""
        device = choose_device(settings.device)
        batches = _epoch(settings, dataset, 0)
        if batches and sum(info.nbytes for info in checkpoint.infos.values()) >= SMALL_BYTES:
            largest = max((_shape(batch) for batch in batches), key=math.prod)
            self._predicted = predict_memory(settings, checkpoint, largest, device=device)
            self._tell(self._predicted, free_memory_bytes(device))
        self._peak = PeakMemory(device)
        self._peak.start()

    def _tell(self, memory: Memory, free: int | None) -> None:
        self._listener(MemoryPredicted(memory.device, memory.peak, memory.mapped, free or 0))
        if free is not None and memory.peak - memory.process > free:
            self._listener(
                Notice(
                    Sentence(
                        f"the run will want {memory.peak / 2**30:.1f} GiB, {free / 2**30:.1f} are free: ",
                        Action.PLAN_MEMORY,
                        " names the cheapest change that fits",
                    ),
                    "warning",
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Measure no more, and tell unless the run failed."""
        if self._peak is None:
            return
        self._peak.stop()
        if error is None and self._predicted is not None and self._peak.peak is not None:
            self._listener(MemoryMeasured(self._predicted.device, self._predicted.peak, self._peak.peak))
