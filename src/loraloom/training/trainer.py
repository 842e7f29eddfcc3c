"""The training run: prepare everything, then one short loop. Events are the only way out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from loraloom.control import Control, Interrupted, Order, Request, keep_going
from loraloom.data.sample import Dataset
from loraloom.errors import NotFiniteError, while_handling
from loraloom.events import Listener, RunFinished, RunPaused, StepFinished, ignore
from loraloom.hardware import explained_memory_errors
from loraloom.training.agenda import Agenda, Due
from loraloom.training.announcements import announce_resumed, announce_started
from loraloom.training.batching import BatchMaker
from loraloom.training.failures import Failures
from loraloom.training.interludes import Interludes
from loraloom.training.lr_schedules import LrSchedule, create_lr_schedule
from loraloom.training.measurements import Measurements
from loraloom.training.memory import MemoryWatch
from loraloom.training.parameter_groups import set_learning_rates
from loraloom.training.parts import RunParts
from loraloom.training.preparing import prepare_parts
from loraloom.training.preservation import Preservation
from loraloom.training.preview_series import PreviewSeries
from loraloom.training.progress import Progress
from loraloom.training.settings import TrainSettings
from loraloom.training.state import ResumePoint
from loraloom.training.state_keeper import StateKeeper
from loraloom.training.steps import Step, StepPlan
from loraloom.training.team import ALONE, Team
from loraloom.training.updates import Updates
from loraloom.training.validation import Patience
from loraloom.training.weights_writer import WeightsWriter

__all__ = ["TrainingRun", "train"]

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
        with explained_memory_errors(f"training on {run.parts.model.device}"):
            return run.loop(control)
    finally:
        run.parts.attachment.detach()


class TrainingRun:
    """A run: its parts, its progress, whatever works on them, each with one purpose; and the loop over its steps."""

    def __init__(self, parts: RunParts) -> None:
        settings = parts.settings
        self.parts = parts
        self.progress = Progress()
        self.epoch = 0
        """That of the step that was taken last, from 1."""
        self.resumed: ResumePoint | None = None
        self.plan = StepPlan(settings, parts.dataset)
        """Which pictures each step shows."""
        self.patience = Patience(settings.validation.patience)
        self.batches = _batch_maker(parts, self.plan)
        self.states = StateKeeper(parts, self.plan, self.progress, {"validation": self.patience})
        self.failures = Failures(parts, self.progress, self.states)
        self.weights = WeightsWriter(parts, self.plan, self.progress, self.failures)
        self.updates = Updates(parts, self.plan, self.batches, self.progress, self._not_finite)
        self.interludes = Interludes(parts, self.progress, self.states.save, self._carry_out)
        self.measurements = Measurements(parts, self.progress, self.interludes, self.patience, self.weights)
        self.previews = PreviewSeries(parts, self.plan, self.progress, self.interludes, self.patience)

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
        run = cls(prepare_parts(settings, folder, listener, control, resume, watch=watch, narrowed=narrowed, team=team))
        if resume is not None:
            run.restore(resume)
        return run

    def restore(self, point: ResumePoint) -> None:
        """Become the run that wrote the state. Raises ResumeError when its tensors do not fit this adapter."""
        self.states.restore(point)
        self.resumed = point

    @cached_property
    def agenda(self) -> Agenda:
        """What is due after which step."""
        return Agenda(self.parts.settings, self.plan.total_steps, self.plan.steps_per_epoch)

    @cached_property
    def lr_schedule(self) -> LrSchedule:
        """Factor on the learning rates by step."""
        return create_lr_schedule(self.parts.settings.lr_schedule, self.plan.total_steps)

    # -- the loop ----------------------------------------------------------------------------------------------

    def loop(self, control: Control = keep_going) -> Path | None:
        """All steps that are left, with previews and saves between them. Returns the final LoRA file, if any.

        Raises Interrupted for a run that is to end before its first step, NotFiniteError for one that explodes.
        """
        parts, progress = self.parts, self.progress
        self.interludes.obey(control)
        try:
            # Every step needs these parts: with low_memory they would else travel to the device and back each time.
            with parts.model.using(*{"unet", *parts.adapters.parts()}):
                return self._all_steps()
        except Exception as error:
            # Whatever failed, what was learned is kept, unless it failed in the middle of an update.
            if progress.is_sound and progress.step:
                with while_handling(error, f"the state of step {progress.step}"):
                    self.states.save()
            raise

    def _all_steps(self) -> Path | None:
        progress, plan = self.progress, self.plan
        progress.losses = deque(progress.losses, maxlen=max(plan.steps_per_epoch, 1))
        self._announce()
        if not progress.step:
            self._begin(self.agenda.at_start)

        self.epoch = plan.epoch_of(progress.step)
        for step in plan.remaining(progress.step):
            self.epoch = step.epoch + 1
            self._take_step(step)

            # After the last step everything is due anyhow, and nobody need be asked.
            if progress.step == plan.total_steps or self.interludes.ask() is not Request.GO:
                break

            tick = time.monotonic()
            self._do_due(self.agenda.after(progress.step, self.epoch, ends_epoch=step.ends_epoch), self.epoch)
            if self._is_over:
                break
            progress.seconds += time.monotonic() - tick
        return self._finish(self.epoch)

    @property
    def _is_over(self) -> bool:
        """Whether the run was asked to end, or nothing better has come for too long."""
        return self.interludes.heard is not Request.GO or self.patience.is_over

    def _announce(self) -> None:
        """Say what begins or goes on; a branch keeps a state of its own from the beginning."""
        point = self.resumed
        if point is not None and not point.branch:
            announce_resumed(self.parts, self.plan, self.progress, self.lr_schedule, point)
        announce_started(self.parts, self.plan)
        if point is not None and point.branch:
            self.states.save()

    def _begin(self, due: Due) -> None:
        """What is done before the first step. Raises Interrupted where the run is to end: there is nothing to save."""
        if due.preview:
            self.previews.paint(epoch=0)
        if due.validation:
            self.measurements.validate(epoch=0)
        if self.interludes.heard is not Request.GO:
            raise Interrupted(self.interludes.number, self.interludes.heard)

    def _take_step(self, step: Step) -> None:
        """One step with everything that counts it."""
        parts, progress = self.parts, self.progress
        tick = time.monotonic()
        rates = set_learning_rates(
            parts.optimizer, parts.settings.optimizer, self.lr_schedule, progress.step, self.plan.total_steps
        )
        loss, applied = self.updates.make(step)
        if parts.ema is not None and applied:
            parts.ema.update(progress.step + 1)

        # fp16 finds its loss scale by trying, so some updates in a row may overflow.
        progress.skipped = 0 if applied else progress.skipped + 1
        if progress.skipped > MAX_SKIPPED_STEPS:
            raise self._not_finite(f"the gradients overflowed fp16 in {progress.skipped} steps in a row")

        # From here on tensors and counters belong together again.
        progress.step += 1
        progress.losses.append(loss)
        progress.is_sound = True
        self.states.prove()

        seconds = time.monotonic() - tick
        progress.seconds += seconds
        parts.listener(StepFinished(progress.step, step.epoch + 1, loss, progress.average_loss, rates, seconds))

    def _do_due(self, due: Due, epoch: int) -> None:
        """What is due after a step of this epoch (from 1), until the run is over."""
        if due.validation:
            self.measurements.validate(epoch)
        if self._is_over:
            return

        # The state last, when the rest is there.
        name = self.parts.settings.name
        if due.weights_of_epoch:
            self.weights.save_on_the_way(f"{name}-{epoch:06d}", epoch)
        if due.weights_of_step:
            self.weights.save_on_the_way(f"{name}-step{self.progress.step:08d}", epoch)
        if due.state or self.states.is_overdue:
            self.states.save()

        if due.preview:
            self.previews.paint(epoch, by_step=due.preview_of_step)

    def _carry_out(self, order: Order) -> None:
        """What was ordered, after the step that was taken last."""
        match order:
            case Order.SAVE:
                # A name of its own: saving.keep_last takes away what was due, not what somebody asked for.
                name = f"{self.parts.settings.name}-kept-step{self.progress.step:08d}"
                self.weights.save_on_the_way(name, self.epoch)
                self.states.save()
            case Order.PREVIEW:
                self.previews.paint(self.epoch, by_step=True)

    def _finish(self, epoch: int) -> Path | None:
        """What is left to do after the last step, in ``epoch`` (from 1)."""
        progress, request = self.progress, self.interludes.heard
        if request is Request.LEAVE:
            self.states.save(last=True)
            self.parts.listener(RunPaused(progress.step, freed=True))
            return None

        stopped, final = request is not Request.GO, None
        if not self._is_over:
            self.measurements.validate(epoch)
        self.measurements.tell_of_best()

        # Also who asks during that last validation wants no file.
        if self.interludes.heard is not Request.DISCARD:
            final = self._write_result(epoch)
        if not stopped:
            self.previews.paint(epoch)
        self.parts.listener(RunFinished(progress.step, progress.seconds, stopped, progress.average_loss))
        return final

    def _write_result(self, epoch: int) -> Path:
        """The final LoRA and the last state; NotFiniteError for one that has exploded.

        A result that has exploded is kept, where its type could hold it, but the run has failed.
        """
        self.measurements.write_image_losses()
        try:
            final = self.weights.save(self.parts.settings.name, epoch, final=True)
        finally:
            self.states.save(last=True)
        self.states.prove()
        if reason := self.states.weights_exploded():
            raise self.failures.explosion(reason, f"; the LoRA that it left, {final}, is useless")
        return final

    def _not_finite(self, problem: str) -> NotFiniteError:
        return self.failures.not_finite(problem, self.weights.keep_last_good)


def _batch_maker(parts: RunParts, plan: StepPlan) -> BatchMaker:
    """Makes the batches of the steps."""
    text_is_trained = any(part != "unet" for part in parts.adapters.parts())
    preservation = Preservation(parts.settings, parts.encode, parts.attachment, text_is_trained)
    chunks = parts.max_token_length // 75
    return BatchMaker(parts.settings, parts.model, parts.cache, parts.encode, preservation, plan, chunks)
