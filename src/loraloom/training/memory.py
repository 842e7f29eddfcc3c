"""What a run takes of the memory, before it starts and while it goes on.

It is not guessed from a table: the modules of the checkpoint themselves take a training step on tensors without data
(:mod:`loraloom.training.meter`), with the LoRA, the optimizer and the settings of the run. What a C library's
allocator adds on the CPU is the one part that is an estimate; it is named in :data:`HEAP_HOLES`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.adapters.attach import create_adapters
from loraloom.data.sample import Dataset
from loraloom.errors import LoraloomError
from loraloom.events import Listener, MemoryMeasured, MemoryPredicted, Notice
from loraloom.hardware import PeakMemory, choose_device, choose_precision, free_memory_bytes, own_memory_bytes
from loraloom.models.checkpoint import Checkpoint
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.quantized import QuantizedWeight
from loraloom.training.base_loras import changed_weights
from loraloom.training.meter import Meter
from loraloom.training.optimizers import create_optimizer
from loraloom.training.previews import preview_prompts
from loraloom.training.settings import TrainSettings
from loraloom.training.steps import epoch_draws
from loraloom.training.trained import Trained
from loraloom.training.whole import WholeModel, whole_parts
from loraloom.training.work import batch_shape

__all__ = ["LIBRARY_BYTES", "Memory", "MemoryWatch", "optimizer_bytes", "predict_memory", "trained_tensors"]

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


@dataclass(frozen=True)
class Stage:
    """What is in memory at one time of a run, in bytes."""

    weights: int
    """Of the checkpoint."""
    adapter: int
    """What is trained, with its moments."""
    heap: int
    """Activations, gradients, intermediate results."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.heap


@dataclass(frozen=True)
class _Bytes:
    """One figure for each stage of a run: the pictures are encoded, steps are taken, previews are painted."""

    encoding: int
    step: int
    previews: int


@dataclass(frozen=True)
class _Counted:
    """What was counted in each stage; ``kept``: bytes of a step that wait for its backward pass."""

    encoding: Meter
    step: Meter
    painting: Meter
    kept: int


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
    model = _without_data(checkpoint, settings, device)
    trained = trained_tensors(settings, model)
    for part, module in model.parts.items():
        if part != "vae":
            module.gradient_checkpointing = settings.gradient_checkpointing  # type: ignore[assignment]

    changed = {id(weight) for weight in changed_weights(model, settings.adapter)}
    weights = {part: _weight_bytes(model, part, changed, on_cpu=on_cpu) for part in model.parts}
    counted = _count_stages(model, settings, trained, largest, on_cpu=on_cpu)
    heap = _heaps(counted, model, settings, on_cpu=on_cpu)

    copies = 1 + settings.ema.enabled
    adapter = copies * sum(parameter.nbytes for parameter in trained.parameters())
    moments = optimizer_bytes(trained, settings, model.family.name)
    gradients = sum(parameter.nbytes for parameter in trained.parameters() if parameter.requires_grad)

    # The step's activations are gone when the optimizer works, so the larger of the two counts.
    update = gradients if on_cpu else gradients + _optimizer_workspace(gradients)
    lying = _weights_lying(
        {part: own for part, (own, _) in weights.items()},
        {"unet", *trained.parts()},
        moves=settings.low_memory and not on_cpu,
    )
    stages = (
        Stage(lying.encoding, 0, heap.encoding),
        Stage(lying.step, adapter + moments, max(heap.step, update)),
        Stage(lying.previews, adapter + moments, heap.previews),
    )

    # By now the libraries that a run needs are loaded, so the program is as large as it will be then.
    process = own_memory_bytes() if process is None else process
    base = process + LIBRARY_BYTES if on_cpu else 0
    return Memory(
        device=device.type,
        process=base,
        weights=sum(own for own, _ in weights.values()),
        mapped=sum(mapped for _, mapped in weights.values()),
        adapter=adapter,
        optimizer=moments,
        kept=counted.kept,
        step=heap.step,
        encoding=heap.encoding,
        previews=heap.previews,
        peak=base + max(stage.total for stage in stages),
        flops=counted.step.flops,
    )


def _without_data(checkpoint: Checkpoint, settings: TrainSettings, device: torch.device) -> LoadedModel:
    """The checkpoint's modules as the run has them on ``device``, of tensors without data."""
    return load_model(
        checkpoint,
        device=torch.device("meta"),
        compute=choose_precision(device, settings.mixed_precision).compute,
        keep_file_precision=settings.keep_file_precision or settings.method == "full",
        prediction="epsilon",  # which of the two makes no difference here, and probing needs data
        quantize=settings.quantize,
    )


def _count_stages(
    model: LoadedModel,
    settings: TrainSettings,
    trained: Trained,
    largest: tuple[int, int, int],
    *,
    on_cpu: bool,
) -> _Counted:
    """Go through each stage once, with the modules themselves."""
    width, height, images = largest
    encoding = _meter_encoding(model, width, height, 1 if on_cpu else 4)
    painting = _meter_preview(model, settings, width, height)
    view = trained.put_on({target.name: model.layer(target) for target in model.targets})
    step, kept = _meter_step(model, settings, trained, width, height, images)
    view.detach()
    return _Counted(encoding, step, painting, kept)


def _heaps(counted: _Counted, model: LoadedModel, settings: TrainSettings, *, on_cpu: bool) -> _Bytes:
    """What the heap (of a GPU: its memory) holds of each stage's activations and intermediate results."""
    copied = _largest_copy(model) if on_cpu else 0
    passes = 1 if settings.gradient_checkpointing == "full" else 2
    return _Bytes(
        encoding=_heap(counted.encoding, 0, on_cpu=on_cpu),
        step=_heap(counted.step, copied, passes, on_cpu=on_cpu),
        previews=_heap(counted.painting, copied, on_cpu=on_cpu),
    )


def _weights_lying(own: Mapping[str, int], trained: Set[str], *, moves: bool) -> _Bytes:
    """Bytes of the parts that lie on the device in each stage; ``own``: those of each part.

    ``moves``: with low_memory a part is there only while it is used.
    """
    whole = sum(own.values())
    if not moves:
        return _Bytes(encoding=whole, step=whole - own["vae"], previews=whole)  # the VAE rests after the encoding
    staying = sum(own[part] for part in trained)
    return _Bytes(encoding=max(own.values()), step=staying, previews=staying + own["vae"])


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


def trained_tensors(settings: TrainSettings, model: LoadedModel) -> Trained:
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
    model: LoadedModel, settings: TrainSettings, adapters: Trained, width: int, height: int, images: int
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


def optimizer_bytes(adapters: Trained, settings: TrainSettings, family: str) -> int:
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


class MemoryWatch:
    """Predicts a run's peak at its start, and says at its end what it was. Both are events of the run."""

    def __init__(self, listener: Listener) -> None:
        self._peak: PeakMemory | None = None
        self._listener = listener
        self._predicted: Memory | None = None

    def start(self, settings: TrainSettings, checkpoint: Checkpoint, dataset: Dataset) -> None:
        """Predict, tell, warn when it will hardly fit, and begin to measure."""
        device = choose_device(settings.device)
        batches = epoch_draws(settings, dataset, 0)
        if batches and sum(info.nbytes for info in checkpoint.infos.values()) >= SMALL_BYTES:
            largest = max((batch_shape(batch) for batch in batches), key=math.prod)
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
