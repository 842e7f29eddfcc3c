"""What a person sees while something runs: one listener that draws a bar and prints what happened above it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from loraloom.cli.output import visible
from loraloom.events import (
    Event,
    ImageSaved,
    LatentsCached,
    MemoryMeasured,
    MemoryPredicted,
    Notice,
    PieceFinished,
    PreviewSaved,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SamplerStepped,
    StepFinished,
    ValidationMeasured,
    WeightsSaved,
)

__all__ = ["ProgressDisplay"]


class ProgressDisplay:
    """The listener of a terminal. Use it as a context manager."""

    def __init__(self, console: Console | None = None, *, transient: bool = False) -> None:
        """``transient``: the bars are gone when the work is done, and only a terminal shows them."""
        self._console = console or Console(highlight=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=transient,
            disable=transient and not self._console.is_terminal,  # where nothing can be taken away again
        )
        self._tasks: dict[str, TaskID] = {}
        self._seconds_per_step = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Notice():
                self._say(event.text, "yellow" if event.level == "warning" else "dim")
            case LatentsCached():
                self._bar("encoding images", event.done, event.total)
            case RunStarted():
                self._say(
                    f"{event.images} images, {event.steps_per_epoch} steps per epoch, {event.epochs} epochs, "
                    f"{event.total_steps} steps; {event.trainable_parameters / 1e6:.2f} M trained parameters"
                )
                self._bar("training", 0, event.total_steps)
            case StepFinished():
                # A running mean of the step time, so that one slow step does not make the rate jump.
                share = 0.1 if self._seconds_per_step else 1.0
                self._seconds_per_step += share * (event.seconds - self._seconds_per_step)
                status = f"epoch {event.epoch}  loss {event.average_loss:.4f}  {_rate(self._seconds_per_step)}"
                self._bar("training", event.step, None, status)
            case PieceFinished():
                self._bar(event.what, event.done, event.total)
            case ImageSaved():
                self._bar("images", event.done, event.total)
            case ValidationMeasured():
                best = " (the best so far)" if event.is_best else ""
                where = f"epoch {event.epoch}" if event.step else "before the first step"
                self._say(f"validation loss {event.loss:.4f}, {where}{best}")
            case PreviewSaved():
                self._say(f"preview {event.path}")
            case RunPaused():
                how = "left after step {}, its state is kept" if event.freed else "paused after step {}"
                self._say(how.format(event.step))
            case RunResumed():
                self._say(f"going on after step {event.step}")
            case WeightsSaved():
                self._say(f"{'saved the result' if event.final else 'saved'} {event.path}")
            case RunFinished():
                how = "stopped as asked" if event.stopped else "finished"
                self._say(f"{how} after {event.step} steps in {event.seconds:.0f} s, loss {event.average_loss:.4f}")
            case MemoryPredicted():
                mapped = f", and {event.mapped / 2**30:.1f} GiB of the mapped file" if event.mapped else ""
                self._say(f"memory at its peak: about {event.peak / 2**30:.1f} GiB{mapped}", "dim")
            case MemoryMeasured():
                predicted, measured = event.predicted / 2**30, event.measured / 2**30
                self._say(
                    f"memory at its peak: {measured:.2f} GiB, {predicted:.2f} predicted ({event.off_percent:+.0f} %)",
                    "dim",
                )
            case SamplerStepped():
                self._bar("painting", event.step, event.steps, f"image {event.image} of {event.images}")

            # A stage of the demo, or what only a run's log has to know: nothing for a bar.
            case _:
                pass

    def _say(self, text: str, style: str = "") -> None:
        self._progress.console.print(Text(visible(text), style=style), soft_wrap=True)

    def _bar(self, name: str, done: int, total: int | None, status: str = "") -> None:
        if name not in self._tasks:
            self._progress.start()
            self._tasks[name] = self._progress.add_task(name, total=total, status=status)
        if total is None:
            self._progress.update(self._tasks[name], completed=done, status=status)
        else:
            self._progress.update(self._tasks[name], completed=done, total=total, status=status)


def _rate(seconds: float) -> str:
    return f"{seconds:.2f} s/step" if seconds >= 1 else f"{1 / max(seconds, 1e-9):.1f} steps/s"
