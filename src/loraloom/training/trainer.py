"""The training run: prepare everything, then one short loop. Events are the only way out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.adapters.attach import AdapterSet, Attachment, attach, create_adapters
from loraloom.adapters.settings import adapter_notices
from loraloom.data.batches import Draw, plan_epoch
from loraloom.data.cache import LatentCache
from loraloom.data.caption_operations import Moment
from loraloom.data.dataset import Dataset, Sample, load_dataset
from loraloom.data.masks import MaskCache
from loraloom.errors import FileError, NotFiniteError, ResumeError, SettingsError
from loraloom.events import (
    Event,
    Listener,
    Notice,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    StateSaved,
    StepFinished,
    ValidationMeasured,
    WeightsSaved,
    ignore,
)
from loraloom.generation.loras import find_lora
from loraloom.generation.prompts import PromptReader
from loraloom.hardware import (
    Precision,
    choose_device,
    choose_precision,
    explained_memory_errors,
    keep_freed_memory,
)
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.conditioning import Text
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.prediction import read_signs
from loraloom.randomness import normal
from loraloom.training.base_loras import merge_base_loras, origin_metadata
from loraloom.training.captions import CaptionEncoder, caption_text, needed_chunks, parts_fingerprint, text_of
from loraloom.training.control import Control, Request, keep_going
from loraloom.training.ema import Ema
from loraloom.training.lr_schedules import LrSchedule, create_lr_schedule
from loraloom.training.optimizers import create_optimizer, evaluating, try_optimizer
from loraloom.training.parameter_groups import (
    check_rates,
    optimizer_remarks,
    parameter_groups,
    set_learning_rates,
    text_encoder_stopped,
)
from loraloom.training.plan import MemoryWatch
from loraloom.training.preservation import Preservation, check_trigger, class_chunks
from loraloom.training.previews import PreviewPrompt, paint_previews, preview_image_settings, preview_prompts
from loraloom.training.saving import RunFacts, checkpoint_hashes, remove_older, save_adapter
from loraloom.training.settings import TrainSettings
from loraloom.training.state import (
    Identity,
    ResumePoint,
    Stateful,
    identity_of,
    load_optimizer,
    optimizer_options,
    optimizer_values,
    placed,
    write_state,
)
from loraloom.training.step import (
    Batch,
    Objective,
    objective_notices,
    prior_weight,
    training_losses,
    without_adapters,
)
from loraloom.training.validation import (
    ImageLosses,
    Losses,
    Patience,
    Validator,
    split_off,
    validation_pictures,
    write_image_losses,
)

__all__ = ["TrainingRun", "train", "with_resolution"]

MAX_SKIPPED_STEPS = 20
"""fp16 steps in a row whose gradients may overflow before the run is called broken; each halves the loss scale."""
UPCOMING_BATCHES = 64
"""Batches whose captions are encoded together where the text encoder has to be fetched for it."""
PAUSE_POLL_S = 0.2
"""How often a paused run looks whether it may go on."""
TOLD_REMARKS = ("layout", "regularization", "folder-name")
"""Kinds of remarks on a dataset that change what is trained, so they are said even though nothing is wrong."""


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    listener: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
    control: Control = keep_going,
    resume: ResumePoint | None = None,
) -> Path | None:
    """Train as ``settings`` say; LoRA files go to ``folder/weights``, previews to ``folder/previews``.

    ``stop`` and ``control`` are asked after every step; when ``stop`` says yes the run saves and ends cleanly, what
    ``control`` may say is in :class:`Request`. ``resume``: go on from a saved state, exactly (ResumeError when that is
    not possible). Returns the final LoRA file, None for a run that was left or discarded.
    """
    with MemoryWatch(listener) as watch:
        return _train(settings, folder, listener, stop, control, resume, watch)


def _train(
    settings: TrainSettings,
    folder: Path,
    listener: Listener,
    stop: Callable[[], bool],
    control: Control,
    resume: ResumePoint | None,
    watch: MemoryWatch,
) -> Path | None:
    with explained_memory_errors("loading the checkpoint and encoding the images"):
        run = TrainingRun.prepare(settings, folder, listener, stop, resume, watch=watch)
    try:
        _check_dataset_goes_on(run)
        with explained_memory_errors(f"training on {run.model.device}"):
            return run.loop(stop, control)
    finally:
        run.attachment.detach()


@dataclass
class TrainingRun:
    """Everything a run holds; ``step`` counts finished optimizer steps."""

    settings: TrainSettings
    folder: Path
    listener: Listener
    dataset: Dataset
    model: LoadedModel
    precision: Precision
    adapters: AdapterSet
    attachment: Attachment
    cache: LatentCache
    encode: CaptionEncoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    max_token_length: int
    masks: MaskCache = field(default_factory=MaskCache)
    step: int = 0
    started: float = 0.0
    ema: Ema | None = None
    stateful: dict[str, Stateful] = field(default_factory=dict)
    """Whatever else changes from step to step and must come back when the run is resumed."""
    losses: deque[float] = field(default_factory=deque)
    """Of the last epoch's worth of steps."""
    skipped: int = 0
    """Updates in a row that were not applied because fp16 overflowed."""
    seconds: float = 0.0
    """Trained so far, in all processes, without pauses."""
    resumed: ResumePoint | None = None
    held_out: tuple[Sample, ...] = ()
    """The pictures that the validation loss is measured on."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Metadata about the LoRA files that the training started from."""

    def __post_init__(self) -> None:
        self.initial_options = optimizer_options(self.optimizer)
        self.parameter_names = {id(parameter): name for name, parameter in self.adapters.named_parameters()}
        self._sound = True
        """Whether tensors and counters belong together: False while an update is being made."""
        self.patience = Patience(self.settings.validation.patience)
        self.stateful.setdefault("validation", self.patience)
        self._last_state = (-1, time.monotonic())

    @classmethod
    def prepare(
        cls,
        settings: TrainSettings,
        folder: Path,
        listener: Listener,
        stop: Callable[[], bool] = lambda: False,
        resume: ResumePoint | None = None,
        *,
        watch: MemoryWatch | None = None,
        narrowed: Callable[[Dataset], Dataset] = lambda dataset: dataset,
    ) -> TrainingRun:
        """Read the dataset, load the checkpoint, cache latents, put a new LoRA on the model.

        ``watch`` is told what the run is before anything is loaded; ``narrowed`` leaves a part of the dataset.
        Raises KeyboardInterrupt when ``stop`` says yes while images are encoded: there is nothing to save yet.
        """
        started = time.time()
        device = choose_device(settings.device)
        precision = choose_precision(device, settings.mixed_precision)
        if device.type == "cpu" and settings.quantize == "none" and not settings.keep_file_precision:
            keep_freed_memory()  # weights that are made dense at every use would leave their holes in the heap
        try_optimizer(settings.optimizer, device)
        for remark in (*optimizer_remarks(settings), *adapter_notices(settings.adapter)):
            listener(Notice(remark, "warning"))
        origins = origin_metadata(settings.adapter)
        checkpoint = open_checkpoint(settings.checkpoint)
        check_rates(settings, checkpoint.family.name, [part.part for part in checkpoint.family.text_parts])
        _check_preview_prompts(settings)
        settings = with_resolution(settings, checkpoint, listener)
        dataset, held_out = split_off(load_dataset(settings.dataset), settings.validation)
        held_out += validation_pictures(settings.validation, settings.dataset)
        for problem in dataset.problems:
            if problem.severity != "info" or problem.kind in TOLD_REMARKS:
                listener(Notice(str(problem), "info" if problem.severity == "info" else "warning"))
        if resume is not None:
            resume.check(identity_of(settings, dataset, checkpoint), precision.name, listener)
        dataset = narrowed(dataset)
        if watch is not None:
            watch.start(settings, checkpoint, dataset)
        model = load_model(
            checkpoint,
            device=device,
            compute=precision.compute,
            keep_file_precision=settings.keep_file_precision,
            prediction=settings.prediction,
            zero_terminal_snr=settings.zero_terminal_snr,
            offload=settings.low_memory,
            quantize=settings.quantize,
            listener=listener,
        )
        listener(
            Notice(
                f"{settings.checkpoint.name} is {model.family.title}, predicts {model.prediction}; "
                f"training on {device} with mixed precision {precision.name}"
            )
        )
        model.check_clip_skip(settings.clip_skip)
        objective = _checked_objective(settings, dataset, model, listener)
        max_token_length = _max_token_length(settings, dataset, model, listener)
        cache = LatentCache(model.encode_images, vae_key=vae_fingerprint(model), folder=settings.dataset.latent_folder)
        with model.using("vae"):
            batch_size = 1 if device.type == "cpu" else 4
            cache.prepare(
                [*dataset.samples, *held_out], settings.dataset.flip, batch_size, _interruptible(listener, stop)
            )
        if freed := model.rest("vae"):
            listener(Notice(f"the VAE rests in the file until it is needed: {freed / 2**20:.0f} MiB less"))

        merge_base_loras(model, settings.adapter, listener)
        adapters = create_adapters(
            settings.adapter,
            model.targets,
            seed=settings.seed,
            family=model.family.name,
            weight=model.weight_of,
            listener=listener,
        ).to(device)
        layers = {target.name: model.layer(target) for target in model.targets}
        trained_text = any(part != "unet" for part in adapters.parts())
        for part, module in model.parts.items():
            if part != "vae":
                module.gradient_checkpointing = settings.gradient_checkpointing  # type: ignore[assignment]
        run = cls(
            settings=settings,
            folder=folder,
            listener=listener,
            dataset=dataset,
            model=model,
            precision=precision,
            adapters=adapters,
            attachment=attach(adapters, layers),
            cache=cache,
            encode=CaptionEncoder(model, settings, chunks=max_token_length // 75, trained=trained_text),
            objective=objective,
            optimizer=create_optimizer(
                parameter_groups(adapters, settings.optimizer, model.family.name), settings.optimizer
            ),
            scaler=torch.amp.GradScaler(device.type, enabled=precision.needs_loss_scaling),
            max_token_length=max_token_length,
            started=started,
            ema=Ema(adapters, settings.ema) if settings.ema.enabled else None,
            held_out=held_out,
            origins=origins,
        )
        if resume is not None:
            run.restore(resume)
        return run

    # -- the plan ----------------------------------------------------------------------------------------------

    def epoch_batches(self, epoch: int) -> list[list[list[Draw]]]:
        """The epoch's optimizer steps, each a list of batches, each a list of draws."""
        batches = plan_epoch(
            self.dataset,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            epoch=epoch,
            flip=self.settings.dataset.flip,
        )
        size = self.settings.gradient_accumulation
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch (the others differ by regularization images at most)."""
        return len(self.epoch_batches(0))

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.settings.steps is not None:
            return self.settings.steps
        return sum(len(self.epoch_batches(epoch)) for epoch in range(self.settings.epochs))

    def _steps(self, total: int) -> Iterator[tuple[int, bool, list[list[Draw]]]]:
        """(epoch, whether it ends with this step, batches) of every step that is left."""
        epoch, done, first = 0, 0, self.step
        while done < total:
            steps = self.epoch_batches(epoch)[: total - done]
            for index, batches in enumerate(steps):
                if done + index >= first:
                    yield epoch, index == len(steps) - 1, batches
            epoch, done = epoch + 1, done + len(steps)

    @property
    def epoch(self) -> int:
        """The epoch, from 1, of the step that was finished last; 0 before the first."""
        epoch, done = 0, 0
        while done < self.step:
            done, epoch = done + len(self.epoch_batches(epoch)), epoch + 1
        return epoch

    @cached_property
    def save_every_epochs(self) -> int:
        """0: not by epochs."""
        saving = self.settings.saving
        if not saving.files_per_run:
            return saving.every_epochs
        return max(1, math.ceil(self.total_steps / self.steps_per_epoch) // saving.files_per_run)

    @cached_property
    def preview_prompts(self) -> list[PreviewPrompt]:
        """What is painted, read once: a file may change while the run goes on."""
        return preview_prompts(self.settings.preview)

    @cached_property
    def identity(self) -> Identity:
        """What must be the same for the run to go on."""
        return identity_of(self.settings, self.dataset, self.model.checkpoint)

    @cached_property
    def checkpoint_hashes(self) -> tuple[str, str] | None:
        """Read from the whole file, so only when something is saved."""
        return checkpoint_hashes(self.model.checkpoint.path)

    @cached_property
    def preservation(self) -> Preservation:
        """Which images are to be answered as the checkpoint alone would."""
        text_is_trained = any(part != "unet" for part in self.adapters.parts())
        return Preservation(self.settings, self.encode, self.attachment, text_is_trained)

    # -- the loop ----------------------------------------------------------------------------------------------

    def loop(self, stop: Callable[[], bool], control: Control = keep_going) -> Path | None:
        """All steps that are left, with previews and saves between them. Returns the final LoRA file, if any."""
        # Every step needs these parts: with low_memory they would else travel to the device and back each time.
        try:
            with self.model.using(*{"unet", *self.adapters.parts()}):
                return self._all_steps(lambda: Request.STOP if stop() else control())
        except Exception:
            if self._sound and self.step:
                self.save_state()
            raise

    def _all_steps(self, control: Control) -> Path | None:
        total, settings = self.total_steps, self.settings
        self.losses = deque(self.losses, maxlen=max(self.steps_per_epoch, 1))
        self._announce(total)
        if settings.preview.at_start and not self.step:
            self._preview(epoch=0)
        if not self.step:
            self._validate(epoch=0)
        epoch, request, previewed = self.epoch - 1, Request.GO, -1
        for epoch, ends_epoch, batches in self._steps(total):
            tick = time.monotonic()
            rates = set_learning_rates(self.optimizer, settings.optimizer, self.lr_schedule, self.step, total)
            loss, applied = self._optimizer_step(epoch, batches)
            if self.ema is not None and applied:
                self.ema.update(self.step + 1)
            self.skipped = 0 if applied else self.skipped + 1
            if self.skipped > MAX_SKIPPED_STEPS:
                raise self._not_finite(f"the gradients overflowed fp16 in {self.skipped} steps in a row")
            self.step += 1
            self.losses.append(loss)
            self._sound = True
            average = sum(self.losses) / len(self.losses)
            seconds = time.monotonic() - tick
            self.seconds += seconds
            self.listener(StepFinished(self.step, epoch + 1, loss, average, rates, seconds))
            request = self._asked(control) if self.step < total else Request.GO
            if request is not Request.GO or self.step == total:
                break
            tick = time.monotonic()
            self._validate_if_due(epoch + 1, ends_epoch)
            if self.patience.is_over:
                break
            self._save_if_due(epoch + 1, ends_epoch)
            if self._preview_if_due(epoch + 1, ends_epoch):
                previewed = self.step
            self.seconds += time.monotonic() - tick
        if request is Request.LEAVE:
            self.save_state()
            self.listener(RunPaused(self.step, freed=True))
            return None
        stopped, final = request is not Request.GO, None
        if request is Request.GO and not self.patience.is_over:
            self._validate(epoch=epoch + 1)
        self._tell_of_best()
        if request is not Request.DISCARD:
            self._write_image_losses()
            final = self.save(settings.name, epoch + 1, final=True)
            self.save_state()
        if previewed != self.step and not stopped:
            self._preview(epoch=epoch + 1)
        average = sum(self.losses) / max(len(self.losses), 1)
        self.listener(RunFinished(self.step, self.seconds, stopped, average))
        return final

    def _announce(self, total: int) -> None:
        if self.resumed is not None and not self.resumed.branch:
            state = self.resumed.state
            self.listener(RunResumed(self.step, str(state.path), tuple(self.resumed.changed)))
            self._tell_of_length(total, state.values["total_steps"])
        self.listener(
            RunStarted(
                folder=str(self.folder),
                total_steps=total,
                steps_per_epoch=self.steps_per_epoch,
                epochs=math.ceil(total / self.steps_per_epoch),
                images=len(self.dataset.samples),
                trainable_parameters=sum(
                    parameter.numel() for parameter in self.adapters.parameters() if parameter.requires_grad
                ),
            )
        )
        if self.resumed is not None and self.resumed.branch:
            self.save_state()

    def _tell_of_length(self, total: int, before: int) -> None:
        """A schedule is drawn over the whole run: with another length the steps that are left have other rates."""
        if total == before:
            return
        old = create_lr_schedule(self.settings.lr_schedule, before)(min(self.step, before - 1))
        new = self.lr_schedule(min(self.step, total - 1))
        text = f"the run is now {total} steps long, it was {before}"
        if old == new:
            self.listener(Notice(text))
            return
        text += (
            f": the learning rate schedule is drawn over the new length, so the next step uses {new:.3g} of the rate "
            f"where it would have used {old:.3g}; a run of {total} steps from the start would differ"
        )
        self.listener(Notice(text, "warning"))

    def _asked(self, control: Control) -> Request:
        """What to do after this step; a pause is waited out in here."""
        request = control()
        if request is not Request.PAUSE:
            return request
        self.save_state()
        self.listener(RunPaused(self.step))
        while (request := control()) is Request.PAUSE:
            time.sleep(PAUSE_POLL_S)
        if request is Request.GO:
            self.listener(RunResumed(self.step))
        return request

    def _save_if_due(self, epoch: int, ends_epoch: bool) -> None:
        """Save what this step, or the end of this epoch (from 1), asks for; the state last, when the rest is there."""
        saving, name = self.settings.saving, self.settings.name
        by_epoch = ends_epoch and self.save_every_epochs > 0 and epoch % self.save_every_epochs == 0
        by_step = saving.every_steps > 0 and self.step % saving.every_steps == 0
        if by_epoch:
            self.save(f"{name}-{epoch:06d}", epoch)
        if by_step:
            self.save(f"{name}-step{self.step:08d}", epoch)
        state_by_step = saving.state_every_steps > 0 and self.step % saving.state_every_steps == 0
        age_s = time.monotonic() - self._last_state[1]
        state_by_time = 0 < saving.state_every_minutes * 60 <= age_s
        if by_epoch or by_step or state_by_step or state_by_time:
            self.save_state()

    def _preview_if_due(self, epoch: int, ends_epoch: bool) -> bool:
        preview = self.settings.preview
        by_epoch = ends_epoch and preview.every_epochs > 0 and epoch % preview.every_epochs == 0
        by_step = preview.every_steps > 0 and self.step % preview.every_steps == 0
        if by_epoch or by_step:
            self._preview(epoch=epoch, by_step=not by_epoch)
        return by_epoch or by_step

    # -- validation --------------------------------------------------------------------------------------------

    def validator(self, samples: Sequence[Sample]) -> Validator:
        """Fixed questions about these pictures."""
        validation, batch_size = self.settings.validation, self.settings.batch_size
        return Validator(self.model, self.cache, self.encode, _size_conditioning, samples, validation, batch_size)

    def _measure(self, samples: Sequence[Sample]) -> Losses:
        was_training = self.adapters.training
        self.adapters.eval()
        try:
            with self.as_shown():
                return self.validator(samples).measure()
        finally:
            self.adapters.train(was_training)

    def _validate_if_due(self, epoch: int, ends_epoch: bool) -> None:
        validation = self.settings.validation
        if validation.every_steps:
            due = self.step % validation.every_steps == 0
        else:
            due = ends_epoch and epoch % validation.every_epochs == 0
        if due:
            self._validate(epoch=epoch)

    def _validate(self, *, epoch: int) -> None:
        """Measure the loss on the held-out pictures; the best so far (the bare checkpoint's not counted) is kept."""
        if not self.held_out:
            return
        losses = self._measure(self.held_out)
        best = self.step > 0 and self.patience.heard(losses.mean, step=self.step, epoch=epoch)
        by_timestep = {str(timestep): loss for timestep, loss in losses.by_timestep.items()}
        self.listener(ValidationMeasured(self.step, epoch, losses.mean, by_timestep, best))
        if best and self.settings.validation.save_best:
            self.save(f"{self.settings.name}-best", epoch)

    def _tell_of_best(self) -> None:
        if not self.patience.best_step:
            return
        text = (
            f"best validation loss {self.patience.best:.4f} at step {self.patience.best_step} "
            f"(epoch {self.patience.best_epoch})"
        )
        if self.patience.is_over:
            text += f"; nothing better came in {self.patience.without_better} measurements, so the run ends here"
        self.listener(Notice(text))

    def _write_image_losses(self) -> None:
        """Which training picture was learned, and how well."""
        if not self.settings.validation.image_losses:
            return
        samples = self.dataset.training
        after = self._measure(samples)
        with without_adapters(self.attachment):
            before = self._measure(samples)
        path = self.folder / "image-losses.csv"
        write_image_losses(
            path, [ImageLosses(name, before.by_image[name], loss) for name, loss in after.by_image.items()]
        )
        self.listener(Notice(f"losses of every training picture: {path}"))

    def _optimizer_step(self, epoch: int, batches: list[list[Draw]]) -> tuple[float, bool]:
        """One update from one or several batches: the mean loss of its images, and whether it was applied.

        Every image counts alike: a short last batch weighs as little as it has images.
        """
        settings = self.settings
        self.adapters.train()
        if text_encoder_stopped(settings.optimizer, self.step, self.total_steps):
            for target, adapter in self.adapters.items():
                adapter.train(target.part == "unet")
        sums = self._accumulate_gradients(epoch, batches)
        loss = float(torch.stack(sums).sum()) / sum(len(draws) for draws in batches)
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss of step {self.step + 1} is {loss}")
        return loss, self._apply_gradients()

    def _accumulate_gradients(self, epoch: int, batches: list[list[Draw]]) -> list[Tensor]:
        """The backward passes of one step; returns the summed losses of each."""
        settings = self.settings
        full = settings.batch_size * settings.gradient_accumulation
        sums: list[Tensor] = []
        for index, draws in enumerate(batches):
            self.adapters.seed_step(settings.seed, self.step, index)
            batch = self._batch(epoch, draws)
            for part in training_losses(self.model, batch, self.objective, self.attachment):
                losses = part * batch.weights
                self.scaler.scale(losses.sum() / full).backward()  # type: ignore[no-untyped-call]
                sums.append(losses.detach().sum())
        return sums

    def _apply_gradients(self) -> bool:
        """One update from the gradients that are there; False when fp16 overflowed and it was skipped."""
        settings = self.settings
        self.scaler.unscale_(self.optimizer)
        limit = settings.optimizer.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.adapters.parameters(), limit))
        finite = math.isfinite(norm)
        if not finite and not self.scaler.is_enabled():
            raise self._not_finite(f"the gradient of step {self.step + 1} is not finite")
        self._sound = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite and settings.adapter.max_norm:
            self.adapters.apply_max_norm(settings.adapter.max_norm)
        return finite

    def _batch(self, epoch: int, draws: list[Draw]) -> Batch:
        seed, device = self.settings.seed, self.model.device
        keys = [(epoch, draw.sample.identity, draw.occurrence) for draw in draws]
        latents = []
        for draw, key in zip(draws, keys, strict=True):
            mean, std = self.cache.get(draw.sample, draw.flipped, draw.variant)
            latents.append(mean + std * normal(mean.shape, seed, "posterior", *key))
        captions = [draw.sample.caption_at(self._moment(epoch, draw)) for draw in draws]
        texts = [text_of(c, weighted=d.sample.captions.weighted) for c, d in zip(captions, draws, strict=True)]
        conditioning = self.encode(texts, lambda: self._upcoming_texts(epoch, draws))
        sizes = torch.tensor([_size_conditioning(draw) for draw in draws], dtype=torch.float32, device=device)
        weight = prior_weight(self.settings, self.step, self.total_steps)
        regularization = [draw.sample.is_regularization for draw in draws]
        weights = [
            draw.sample.concept.loss_weight * (weight if draw.sample.is_regularization else 1.0) for draw in draws
        ]
        batch = Batch(
            latents=torch.stack(latents).to(device),
            conditioning=conditioning.with_sizes(sizes),
            weights=torch.tensor(weights, device=device),
            keys=keys,
            masks=self._masks(draws, latents),
        )
        weighted = [draw.sample.captions.weighted for draw in draws]
        return self.preservation.add_to(batch, captions, regularization, is_weighted=weighted)

    def _moment(self, epoch: int, draw: Draw) -> Moment:
        return Moment(
            self.settings.seed,
            epoch=epoch,
            occurrence=draw.occurrence,
            step=self.step,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
        )

    def _upcoming_texts(self, epoch: int, draws: list[Draw]) -> list[Text]:
        """Captions that come next. With low_memory the text encoder travels to the device, so it is used for many."""
        if not self.settings.low_memory:
            return []
        batches = [batch for step in self.epoch_batches(epoch) for batch in step]
        here = batches.index(draws)
        coming = [draw for batch in batches[here : here + UPCOMING_BATCHES] for draw in batch]
        return [caption_text(draw.sample, self._moment(epoch, draw)) for draw in coming]

    def _masks(self, draws: list[Draw], latents: Sequence[Tensor]) -> Tensor | None:
        """(B, 1, h, w), None where every picture of the batch is learned whole."""
        if not any(draw.sample.has_mask for draw in draws):
            return None
        height, width = latents[0].shape[-2:]
        masks = [
            self.masks.get(draw.sample, flipped=draw.flipped, variant=draw.variant, size=(height, width))
            for draw in draws
        ]
        return torch.stack(masks)[:, None].to(self.model.device)

    @cached_property
    def lr_schedule(self) -> LrSchedule:
        """Factor on the learning rates by step."""
        return create_lr_schedule(self.settings.lr_schedule, self.total_steps)

    def _not_finite(self, problem: str) -> NotFiniteError:
        """Save what was good and explain. The weights are those before the bad step, so they are sound."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            path = self.save(f"{self.settings.name}-last-good-step{self.step:08d}", 0)
            kept = f"the weights before that step are in {path}"
        except FileError as error:
            kept = f"the weights before that step were beyond saving: {error.problem}"
        causes = ["lower optimizer.lr"]
        if self.precision.name == "fp16":
            causes.append("set mixed_precision=bf16 or no")
        return NotFiniteError(
            f"{problem}: NaN or infinity would destroy the LoRA, so the run stopped",
            f"{' or '.join(causes)}; {kept}",
        )

    # -- what is written ---------------------------------------------------------------------------------------

    @contextmanager
    def as_shown(self) -> Iterator[None]:
        """Inside, the adapters hold what is saved and painted; behind it, bit for bit, what is trained."""
        with evaluating(self.optimizer):
            if self.ema is None:
                yield
            else:
                with self.ema.applied():
                    yield

    def save(self, name: str, epoch: int, *, final: bool = False) -> Path:
        """Write the LoRA as it is now to ``weights/<name>.safetensors`` (or the form that is set)."""
        if self.ema is not None and self.settings.ema.save == "both":
            with evaluating(self.optimizer):
                self._write(f"{name}-raw", epoch, final=False)
        with self.as_shown():
            path = self._write(name, epoch, final=final)
        remove_older(path, self.settings.name, self.settings.saving.keep_last)
        return path

    def _write(self, name: str, epoch: int, *, final: bool) -> Path:
        path = self.folder / "weights" / f"{name}.{self.settings.saving.format}"
        facts = RunFacts(
            settings=self.settings,
            dataset=self.dataset,
            model=self.model,
            checkpoint_hashes=self.checkpoint_hashes,
            mixed_precision=self.precision.name,
            max_token_length=self.max_token_length,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            started=self.started,
            step=self.step,
            epoch=epoch,
            origins=self.origins,
        )
        save_adapter(path, self.adapters, facts)
        self.listener(WeightsSaved(path=str(path), step=self.step, epoch=epoch, final=final))
        return path

    def save_state(self) -> None:
        """Write all that is needed to go on from here. A state that cannot be written is told, and the run goes on."""
        saving = self.settings.saving
        if not saving.state or self._last_state[0] == self.step:
            return
        self._last_state = self.step, time.monotonic()
        try:
            path = write_state(self.folder / "state", self.step, self._state_values(), keep=saving.keep_states)
        except (FileError, ResumeError) as error:
            self.listener(Notice(f"the state of step {self.step} was not kept: {error}", "warning"))
            return
        self.listener(StateSaved(str(path), self.step))

    def _state_values(self) -> dict[str, Any]:
        return {
            "identity": self.identity.to_values(),
            "name": self.settings.name,
            "precision": self.precision.name,
            "total_steps": self.total_steps,
            "started": self.started,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "skipped": self.skipped,
            "adapters": dict(self.adapters.state_dict()),
            "optimizer": optimizer_values(self.optimizer, self.parameter_names, self.initial_options),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "stateful": {name: part.state_dict() for name, part in self.stateful.items()},
        }

    def restore(self, point: ResumePoint) -> None:
        """Become the run that wrote the state. Raises ResumeError when its tensors do not fit this adapter."""
        device, values = self.model.device, point.state.values
        point.load_adapters(self.adapters, device)
        if not load_optimizer(self.optimizer, values["optimizer"], self.parameter_names, device):
            self.listener(Notice("the optimizer is another one, so it begins without what the old one had learned"))
        if self.scaler.is_enabled() and values["scaler"]:
            self.scaler.load_state_dict(placed(values["scaler"], device))
        if self.ema is not None:
            if values["ema"] is not None:
                self.ema.load_state_dict(placed(values["ema"], device))
            else:
                self.ema = Ema(self.adapters, self.settings.ema)
        for name, part in self.stateful.items():
            if name in values["stateful"]:
                part.load_state_dict(placed(values["stateful"][name], device))
        if point.state.step > self.total_steps:
            raise ResumeError(
                f"the state is of step {point.state.step} and the run would have only {self.total_steps}",
                "a larger epochs= or steps= lets it go on",
            )
        self.step, self.skipped = point.state.step, values["skipped"]
        self.losses, self.seconds = deque(values["losses"]), values["seconds"]
        if not point.branch:
            self.started = values["started"]
            self._last_state = self.step, time.monotonic()
        self.resumed = point

    def _preview(self, *, epoch: int, by_step: bool = False) -> None:
        if not self.preview_prompts:
            return
        with torch.no_grad(), self.as_shown():
            paint_previews(
                self.model,
                self.adapters,
                self.attachment,
                self.settings,
                self.preview_prompts,
                self.folder / "previews",
                epoch=epoch,
                step=self.step,
                by_step=by_step,
                steps_per_epoch=self.steps_per_epoch,
                size=self.settings.dataset.size,
                listener=self.listener,
            )


def with_resolution(settings: TrainSettings, checkpoint: Checkpoint, listener: Listener) -> TrainSettings:
    """The settings with the family's own resolution where none was set."""
    if settings.dataset.resolutions or "resolution" in settings.dataset.model_fields_set:
        return settings
    signs = read_signs(checkpoint, checkpoint.metadata, checkpoint.path, prediction=settings.prediction)
    resolution = checkpoint.family.default_resolution_for(signs.prediction or "epsilon")
    listener(Notice(f"dataset.resolution = {resolution}: what {checkpoint.family.title} was trained at"))
    return settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"resolution": resolution})})


def _checked_objective(settings: TrainSettings, dataset: Dataset, model: LoadedModel, listener: Listener) -> Objective:
    """What is asked of this model, with a notice of every objective setting that has no effect."""
    objective = Objective(model.schedule, model.prediction, settings.seed, settings.objective)
    objective.check()
    notices = objective_notices(
        settings,
        model.prediction,
        any(sample.has_mask for sample in dataset.samples),
        has_regularization=bool(dataset.regularization),
    )
    for text in notices + check_trigger(settings, [sample.fullest_caption for sample in dataset.training]):
        listener(Notice(text, "warning"))
    return objective


def _interruptible(listener: Listener, stop: Callable[[], bool]) -> Listener:
    def listen(event: Event) -> None:
        listener(event)
        if stop():
            raise KeyboardInterrupt

    return listen


def _check_preview_prompts(settings: TrainSettings) -> None:
    """A LoRA or a wildcard file that a preview prompt names must be found now, not after hours of training."""
    for index, prompt in enumerate(preview_prompts(settings.preview)):
        generate = preview_image_settings(prompt, settings.preview, index, (512, 512), None, prompt.text)
        for tag in PromptReader(generate).read(generate.seed).loras:
            find_lora(tag.name, generate.lora_folders)


def vae_fingerprint(model: LoadedModel) -> str:
    """A hash of the VAE's weights and of the type it computes in: what cached latents depend on."""
    return parts_fingerprint(model, ["vae"], str(model.vae_compute))


def _max_token_length(settings: TrainSettings, dataset: Dataset, model: LoadedModel, listener: Listener) -> int:
    chunks = max((needed_chunks(sample, model) for sample in dataset.samples), default=1)
    classes = class_chunks(settings, [sample.fullest_caption for sample in dataset.training], model)
    needed = 75 * max(chunks, classes, 1)
    if settings.max_token_length is None:
        if needed > 75:
            listener(Notice(f"max_token_length = {needed}: the longest caption needs it"))
        return needed
    if settings.max_token_length < needed:
        text = f"captions longer than max_token_length = {settings.max_token_length} are cut; {needed} would keep all"
        listener(Notice(text, "warning"))
    return settings.max_token_length


def _size_conditioning(draw: Draw) -> tuple[int, int, int, int, int, int]:
    """SDXL's (original height, width, crop top, left, target height, width); Podell et al., arXiv:2307.01952."""
    sample, (top, left) = draw.sample, draw.sample.fit_of(draw.variant).crop
    (width, height), (target_width, target_height) = sample.size, sample.bucket
    return height, width, top, left, target_height, target_width


def _check_dataset_goes_on(run: TrainingRun) -> None:
    """Concepts that end before the run does would leave it with nothing to do, after hours: said before it starts."""
    settings, last = run.settings, run.dataset.last_epoch
    if settings.steps is not None and last is not None:
        possible = sum(len(run.epoch_batches(epoch)) for epoch in range(last))
        if possible < settings.steps:
            problem = f"steps={settings.steps}, but the concepts' last epoch, {last}, ends after {possible} steps"
            raise SettingsError([problem], "lower steps, or let a concept go on")
    if settings.dataset.cache_text_to_disk and any(part != "unet" for part in run.adapters.parts()):
        hint = "dataset.cache_text_to_disk has no effect while a text encoder is trained: captions are encoded anew"
        run.listener(Notice(hint, "warning"))
