"""The training run: prepare everything, then one short loop. Events are the only way out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from loraloom.actions import Action, Sentence
from loraloom.control import Control, Interrupted, Request, keep_going, wait_out
from loraloom.data.sample import Dataset, Sample
from loraloom.errors import FileError, LoraloomError, NotFiniteError, OutputError, ResumeError, while_handling
from loraloom.events import (
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
from loraloom.hardware import explained_memory_errors
from loraloom.training.agenda import Agenda, Due
from loraloom.training.batching import BatchMaker, size_conditioning
from loraloom.training.ema import Ema
from loraloom.training.identity import Identity, identity_of
from loraloom.training.lr_schedules import LrSchedule, create_lr_schedule
from loraloom.training.memory import MemoryWatch
from loraloom.training.optimizer_state import load_optimizer, optimizer_options, optimizer_values
from loraloom.training.optimizers import evaluating
from loraloom.training.parameter_groups import set_learning_rates, text_encoder_stopped
from loraloom.training.preparing import RunParts, prepare_parts
from loraloom.training.preservation import Preservation
from loraloom.training.previews import Moment, PreviewPrompt, paint_previews, preview_prompts
from loraloom.training.saving import (
    SAVE_TYPES,
    FileFacts,
    checkpoint_hashes,
    remove_older,
    write_or_rescue,
)
from loraloom.training.settings import TrainSettings
from loraloom.training.state import (
    ResumePoint,
    Stateful,
    largest_value,
    placed,
    remove_older_states,
    saved_states,
    state_path,
    unsound,
    write_state,
)
from loraloom.training.step import training_losses, without_adapters
from loraloom.training.steps import Step, StepPlan
from loraloom.training.team import ALONE, Team
from loraloom.training.validation import (
    ImageLosses,
    Losses,
    Patience,
    Validator,
    write_image_losses,
)
from loraloom.training.wishes import Leaving, Wishes

__all__ = ["TrainingRun", "train"]

T = TypeVar("T")
MAX_SKIPPED_STEPS = 20
"""fp16 steps in a row whose gradients may overflow before the run is called broken; each halves the loss scale."""


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    listener: Listener = ignore,
    control: Control = keep_going,
    resume: ResumePoint | None = None,
    team: Team = ALONE,
) -> Path | None:
    """Train as ``settings`` say; LoRA files go to ``folder/weights``, previews to ``folder/previews``.

    ``control`` is asked after every step, and between two pieces of whatever lies between them: batches of images that
    are encoded or measured, previews. A run that is to end before its first step has nothing to save and raises
    Interrupted. ``resume``: go on from a saved state, exactly (ResumeError when that is not possible). ``team``: the
    processes that train together; the first one writes, is asked and listens. Returns the final LoRA file, None for a
    run that was left or discarded.
    """
    with MemoryWatch(listener) as watch:
        try:
            return _train(settings, folder, listener, control, resume, watch, team)
        except Interrupted as left:
            if left.request is not Request.LEAVE:
                raise
            listener(RunPaused(resume.state.step if resume is not None else 0, freed=True))
            return None


def _train(
    settings: TrainSettings,
    folder: Path,
    listener: Listener,
    control: Control,
    resume: ResumePoint | None,
    watch: MemoryWatch,
    team: Team,
) -> Path | None:
    with explained_memory_errors("loading the checkpoint and encoding the images"):
        run = TrainingRun.prepare(settings, folder, listener, control, resume, watch=watch, team=team)
    try:
        with explained_memory_errors(f"training on {run.model.device}"):
            return run.loop(control)
    finally:
        run.attachment.detach()


@dataclass
class TrainingRun(RunParts):
    """Everything a run holds; ``step`` counts finished optimizer steps."""

    step: int = 0
    stateful: dict[str, Stateful] = field(default_factory=dict)
    """Whatever else changes from step to step and must come back when the run is resumed."""
    losses: deque[float] = field(default_factory=deque)
    """Of the last epoch's worth of steps."""
    skipped: int = 0
    """Updates in a row that were not applied because fp16 overflowed."""
    seconds: float = 0.0
    """Trained so far, in all processes, without pauses."""
    resumed: ResumePoint | None = None

    def __post_init__(self) -> None:
        self.initial_options = optimizer_options(self.optimizer)
        self.parameter_names = {id(parameter): name for name, parameter in self.adapters.named_parameters()}
        self._sound = True
        """Whether tensors and counters belong together: False while an update is being made."""
        self.patience = Patience(self.settings.validation.patience)
        self.stateful.setdefault("validation", self.patience)
        self._last_state = (-1, time.monotonic())
        self._unproven: int | None = None
        """Step of a state from which no further step was taken yet; until then older ones stay."""
        self._control: Control = keep_going
        self._wishes = Wishes(keep_going, self.team, self.listener)
        self._heard = Request.GO
        """How the run was asked to end."""
        self._trained = [parameter for parameter in self.adapters.parameters() if parameter.requires_grad]

    @classmethod
    def prepare(
        cls,
        settings: TrainSettings,
        folder: Path,
        listener: Listener,
        control: Control = keep_going,
        resume: ResumePoint | None = None,
        *,
        watch: MemoryWatch | None = None,
        narrowed: Callable[[Dataset], Dataset] = lambda dataset: dataset,
        team: Team = ALONE,
    ) -> TrainingRun:
        """A run before its first step, or where ``resume`` says; see :func:`prepare_parts`."""
        parts = prepare_parts(settings, folder, listener, control, resume, watch=watch, narrowed=narrowed, team=team)
        run = cls(**vars(parts))
        if resume is not None:
            run.restore(resume)
        return run

    # -- the plan ----------------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> StepPlan:
        """Which pictures each step shows."""
        return StepPlan(self.settings, self.dataset)

    @cached_property
    def batches(self) -> BatchMaker:
        """Makes the batches of the steps."""
        chunks = self.max_token_length // 75
        return BatchMaker(self.settings, self.model, self.cache, self.encode, self.preservation, self.plan, chunks)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch (the others differ by regularization images at most)."""
        return self.plan.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.plan.total_steps

    @property
    def epoch(self) -> int:
        """The epoch, from 1, of the step that was finished last; 0 before the first."""
        return self.plan.epoch_of(self.step)

    @cached_property
    def agenda(self) -> Agenda:
        """What is due after which step."""
        return Agenda(self.settings, self.total_steps, self.steps_per_epoch)

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

    def loop(self, control: Control = keep_going) -> Path | None:
        """All steps that are left, with previews and saves between them. Returns the final LoRA file, if any."""
        self._control = control
        self._wishes = Wishes(control, self.team, self.listener, step=self.step, before_pause=self.save_state)
        # Every step needs these parts: with low_memory they would else travel to the device and back each time.
        try:
            with self.model.using(*{"unet", *self.adapters.parts()}):
                return self._all_steps()
        except Exception as error:
            if self._sound and self.step:
                with while_handling(error, f"the state of step {self.step}"):
                    self.save_state()
            raise

    def _all_steps(self) -> Path | None:
        total = self.total_steps
        self.losses = deque(self.losses, maxlen=max(self.steps_per_epoch, 1))
        self._announce(total)
        if not self.step:
            self._begin(self.agenda.at_start)
        if self._heard is not Request.GO:
            raise Interrupted(self._wishes.number, self._heard)
        epoch, previewed = self.epoch, -1
        for step in self.plan.remaining(self.step):
            epoch = step.epoch + 1
            self._take_step(step)
            if self.step == total:
                break
            self._heard = self._asked()
            if self._heard is not Request.GO:
                break
            tick = time.monotonic()
            due = self.agenda.after(self.step, epoch, ends_epoch=step.ends_epoch)
            if due.validation:
                self._validate(epoch=epoch)
            if self._heard is not Request.GO or self.patience.is_over:
                break
            self._save_due(due, epoch)
            if due.preview:
                self._preview(epoch=epoch, by_step=due.preview_of_step)
                previewed = self.step
            if self._heard is not Request.GO:
                break
            self.seconds += time.monotonic() - tick
        return self._finish(epoch, has_preview=previewed == self.step)

    def _take_step(self, step: Step) -> None:
        """One step with everything that counts it."""
        tick = time.monotonic()
        rates = set_learning_rates(
            self.optimizer, self.settings.optimizer, self.lr_schedule, self.step, self.total_steps
        )
        loss, applied = self.optimizer_step(step)
        if self.ema is not None and applied:
            self.ema.update(self.step + 1)
        self.skipped = 0 if applied else self.skipped + 1
        if self.skipped > MAX_SKIPPED_STEPS:
            raise self._not_finite(f"the gradients overflowed fp16 in {self.skipped} steps in a row")
        self.step += 1
        self._wishes.step = self.step
        self.losses.append(loss)
        self._sound = True
        self._prove_state()
        average = sum(self.losses) / len(self.losses)
        seconds = time.monotonic() - tick
        self.seconds += seconds
        self.listener(StepFinished(self.step, step.epoch + 1, loss, average, rates, seconds))

    def _finish(self, epoch: int, *, has_preview: bool) -> Path | None:
        """What is left to do after the last step, in ``epoch`` (from 1)."""
        request = self._heard
        if request is Request.LEAVE:
            self.save_state(last=True)
            self.listener(RunPaused(self.step, freed=True))
            return None
        stopped, final = request is not Request.GO, None
        if request is Request.GO and not self.patience.is_over:
            self._validate(epoch=epoch)
        if self._heard is Request.DISCARD:
            request = Request.DISCARD
        self._tell_of_best()
        if request is not Request.DISCARD:
            self._write_image_losses()
            try:
                final = self.save(self.settings.name, epoch, final=True)
            finally:
                self.save_state(last=True)
            self._prove_state()
            self._check_result(final)
        if not has_preview and not stopped:
            self._preview(epoch=epoch)
        average = sum(self.losses) / max(len(self.losses), 1)
        self.listener(RunFinished(self.step, self.seconds, stopped, average))
        return final

    def _check_result(self, final: Path) -> None:
        """A result that has exploded is kept, where its type could hold it, but the run has failed."""
        if reason := unsound(dict(self.adapters.state_dict()), {}):
            raise self._explosion(reason, f"; the LoRA that it left, {final}, is useless")

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

    def _asked(self) -> Request:
        """What to do after this step, once nobody asks to wait any more; all processes do the same."""
        return wait_out(self._wishes, sleep=time.sleep)

    def _interlude(self, what: str, work: Callable[[Control], T]) -> T | None:
        """What ``work`` of the leading process between two steps comes to, in every process.

        It is left as soon as anything is asked: after a pause it is done anew, and where the run is to end it is given
        up with a notice that names ``what``. None then.
        """
        while self._heard is Request.GO:
            is_done, result = self.team.from_leader(lambda: self._attempt(work))
            if is_done:
                return result
            self._heard = self._asked()
        self.listener(Notice(f"{what} of step {self.step} was left out: the run was asked to end", "warning"))
        return None

    def _attempt(self, work: Callable[[Control], T]) -> tuple[bool, T | None]:
        """Whether the work came to its end, and what it came to."""
        control = Leaving(self._control)
        try:
            return True, work(control)
        except Interrupted:
            if not control.heard:  # a person who hurries, not a wish
                raise
            return False, None

    def _begin(self, due: Due) -> None:
        """What is done before the first step."""
        if due.preview:
            self._preview(epoch=0)
        if due.validation:
            self._validate(epoch=0)

    def _save_due(self, due: Due, epoch: int) -> None:
        """Save what is due in this epoch (from 1); the state last, when the rest is there."""
        name = self.settings.name
        if due.weights_of_epoch:
            self._save_on_the_way(f"{name}-{epoch:06d}", epoch)
        if due.weights_of_step:
            self._save_on_the_way(f"{name}-step{self.step:08d}", epoch)
        age_s = time.monotonic() - self._last_state[1]
        if due.state or 0 < self.settings.saving.state_every_minutes * 60 <= age_s:
            self.save_state()

    def _save_on_the_way(self, name: str, epoch: int) -> None:
        """Save; where no disk takes the file the run goes on, since all that was learned is still in memory."""
        try:
            self.save(name, epoch)
        except OutputError as error:
            text = f"{error}; the training goes on, and the next file is tried again"
            self.listener(Notice(text, "warning"))

    # -- validation --------------------------------------------------------------------------------------------

    def validator(self, samples: Sequence[Sample]) -> Validator:
        """Fixed questions about these pictures."""
        validation, batch_size = self.settings.validation, self.settings.batch_size
        return Validator(self.model, self.cache, self.encode, size_conditioning, samples, validation, batch_size)

    def _measure(self, samples: Sequence[Sample], control: Control) -> Losses:
        was_training = self.adapters.training
        self.adapters.eval()
        try:
            with self.as_shown():
                return self.validator(samples).measure(control)
        finally:
            self.adapters.train(was_training)

    def _validate(self, *, epoch: int) -> None:
        """Measure the loss on the held-out pictures; the best so far (the bare checkpoint's not counted) is kept."""
        if not self.held_out:
            return
        losses = self._interlude("the validation", lambda control: self._measure(self.held_out, control))
        if losses is None:
            return
        best = self.step > 0 and self.patience.heard(losses.mean, step=self.step, epoch=epoch)
        by_timestep = {str(timestep): loss for timestep, loss in losses.by_timestep.items()}
        self.listener(ValidationMeasured(self.step, epoch, losses.mean, by_timestep, best))
        if best and self.settings.validation.save_best:
            self._save_on_the_way(f"{self.settings.name}-best", epoch)

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
        losses = self._interlude("what was learned of every picture", self._image_losses)
        if losses is None or not self.team.leads:
            return
        path = self.folder / "image-losses.csv"
        try:
            write_image_losses(path, losses)
        except OutputError as error:
            self.listener(Notice(f"the losses of the pictures were not written: {error}", "warning"))
            return
        self.listener(Notice(f"losses of every training picture: {path}"))

    def _image_losses(self, control: Control) -> list[ImageLosses]:
        samples = self.dataset.training
        after = self._measure(samples, control)
        with without_adapters(self.attachment):
            before = self._measure(samples, control)
        return [ImageLosses(name, before.by_image[name], loss) for name, loss in after.by_image.items()]

    def optimizer_step(self, step: Step) -> tuple[float, bool]:
        """One update from one or several batches: the mean loss of its images, and whether it was applied.

        Every image counts alike: a short last batch weighs as little as it has images.
        """
        settings = self.settings
        self.adapters.train()
        if text_encoder_stopped(settings.optimizer, self.step, self.total_steps):
            for target, adapter in self.adapters.items():
                adapter.train(target.part == "unet")
        loss = float(self.team.sum_gradients(self._trained, self._accumulate_gradients(step))) / step.images
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss of step {self.step + 1} is {loss}")
        return loss, self._apply_gradients()

    def _accumulate_gradients(self, step: Step) -> Tensor:
        """The backward passes of this process's share of a step; returns the sum of its images' losses."""
        settings = self.settings
        full = settings.batch_size * settings.gradient_accumulation
        sums: list[Tensor] = []
        for share in self.team.share(step.batches):
            self.adapters.seed_step(settings.seed, self.step, share.number)
            self.adapters.take_rows(*self.batches.dropout_rows(step.epoch, share, self.step))
            batch = self.batches.batch(step.epoch, share.batch, self.step, None if share.is_whole else share.rows)
            for part in training_losses(self.model, batch, self.objective, self.attachment):
                losses = part * batch.weights
                self.scaler.scale(losses.sum() / full).backward()  # type: ignore[no-untyped-call]
                sums.append(losses.detach().sum())
        return torch.stack(sums).sum() if sums else torch.zeros((), device=self.model.device)

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

    @cached_property
    def lr_schedule(self) -> LrSchedule:
        """Factor on the learning rates by step."""
        return create_lr_schedule(self.settings.lr_schedule, self.total_steps)

    def _not_finite(self, problem: str) -> NotFiniteError:
        """Save what was good and explain. The weights are those before the bad step."""
        self.optimizer.zero_grad(set_to_none=True)
        reason = self._exploded()
        if reason:
            return self._explosion(reason, f"; {problem}")
        kept = self.team.from_leader(self._keep_last_good)
        return NotFiniteError(
            f"{problem}: NaN or infinity would destroy the LoRA, so the run stopped",
            Sentence(f"{self._remedies()}; {kept}", self._last_sound()),
        )

    def _explosion(self, reason: str, more: str = "") -> NotFiniteError:
        """The weights themselves are lost, so nothing of them is kept."""
        return NotFiniteError(
            f"the training has exploded: after step {self.step} {reason}{more}",
            Sentence(self._remedies(), self._last_sound() or "; no state was kept before that, so start again"),
        )

    def _remedies(self) -> str:
        optimizer = self.settings.optimizer
        causes = [f"lower optimizer.lr (it is {optimizer.learning_rate:g})"]
        if not optimizer.max_grad_norm:
            causes.append("set optimizer.max_grad_norm=1")
        if self.precision.name == "fp16":
            causes.append("set mixed_precision=bf16 or no")
        return " or ".join(causes)

    def _last_sound(self) -> str:
        """Names the newest state that a further step was taken from, in the leading process."""
        known = [(step, path) for step, path in saved_states(self.folder / "state") if step != self._unproven]
        if not known:
            return ""
        step, path = known[-1]
        return Sentence(
            f"; the last sound state is that of step {step}, {path}: ",
            Action.BRANCH_RUN.of(run=f"{self.folder}@{step}"),
            " with a lower rate goes on from it",
        )

    def _exploded(self) -> str:
        """Why nobody should go on from the weights as they are now; an empty text where they are sound."""
        values = optimizer_values(self.optimizer, self.parameter_names, self.initial_options)
        return unsound(dict(self.adapters.state_dict()), values)

    def _keep_last_good(self) -> str:
        try:
            path = self.save(f"{self.settings.name}-last-good-step{self.step:08d}", 0)
        except LoraloomError as error:
            return f"the weights before that step could not be saved: {error.problem}"
        return f"the weights before that step are in {path}"

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
        if not self.team.leads:
            return self.folder
        largest = largest_value(self.adapters.state_dict().values())
        if not largest <= torch.finfo(SAVE_TYPES[self.settings.saving.precision]).max:
            raise self._explosion(self._exploded())
        if self.ema is not None and self.settings.ema.save == "both":
            with evaluating(self.optimizer):
                self._write(f"{name}-raw", epoch, final=False)
        with self.as_shown():
            path = self._write(name, epoch, final=final)
        remove_older(path, self.settings.name, self.settings.saving.keep_last)
        return path

    def _write(self, name: str, epoch: int, *, final: bool) -> Path:
        path = self.folder / "weights" / f"{name}.{self.settings.saving.format}"
        facts = FileFacts(
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
        path = write_or_rescue(path, self.folder, lambda wanted: self.write(wanted, facts), self.listener)
        self.listener(WeightsSaved(path=str(path), step=self.step, epoch=epoch, final=final))
        return path

    def save_state(self, *, last: bool = False) -> None:
        """Write all that is needed to go on from here. A state that cannot be written causes a warning, and the run
        goes on.

        The ``last`` one goes elsewhere then. Nobody could go on from exploded weights, so they never take the place of
        an older state.
        """
        saving = self.settings.saving
        if not saving.state or self._last_state[0] == self.step or not self.team.leads:
            return
        self._last_state = self.step, time.monotonic()
        if reason := self._exploded():
            text = f"the state of step {self.step} was not kept, the training has exploded: {reason}"
            self.listener(Notice(Sentence(text, self._last_sound()), "warning"))
            return
        values, path = self._state_values(), state_path(self.folder / "state", self.step)

        def write(wanted: Path) -> None:
            write_state(wanted.parent, self.step, values)

        try:
            if last:
                path = write_or_rescue(path, self.folder, write, self.listener)
            else:
                write(path)
            self._unproven = self.step
        except (FileError, ResumeError) as error:
            self.listener(Notice(f"the state of step {self.step} was not kept: {error}", "warning"))
            return
        self.listener(StateSaved(str(path), self.step))

    def _prove_state(self) -> None:
        """A step was taken from the state that was kept last, or none will be: now it may take the place of older."""
        if self._unproven is not None:
            remove_older_states(self.folder / "state", self._unproven, keep=self.settings.saving.keep_states)
            self._unproven = None

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
        preview = self.settings.preview
        if preview.prompts or preview.file is not None:
            self._interlude("a preview", lambda control: self._paint_previews(epoch, by_step, control))

    def _paint_previews(self, epoch: int, by_step: bool, control: Control) -> bool:
        """Whether they were saved; a disk that takes none must not end the run."""
        try:
            self._paint_prompts(epoch, by_step, control)
        except OutputError as error:
            self.listener(Notice(f"the previews of step {self.step} were not saved: {error}", "warning"))
            return False
        return True

    def _paint_prompts(self, epoch: int, by_step: bool, control: Control) -> None:
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
                moment=Moment(epoch, self.step, by_step, self.steps_per_epoch, self.patience.best_step),
                size=self.settings.dataset.size,
                listener=self.listener,
                control=control,
            )
