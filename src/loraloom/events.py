"""How activities speak: frozen events handed to listeners, and the only way out of an activity.

The progress bar, the run folder's ``events.jsonl``, the web page are listeners. An event is plain data:
``to_record`` and ``from_record`` carry it through JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from loraloom.actions import Sentence, parts_from_record, parts_to_record
from loraloom.plain_data import LARGEST_WHOLE

__all__ = [
    "Event",
    "ImageSaved",
    "JobCancelled",
    "JobCreated",
    "JobFailed",
    "JobFinished",
    "JobPaused",
    "JobProgressed",
    "JobResumed",
    "JobStarted",
    "LatentsCached",
    "Listener",
    "MemoryMeasured",
    "MemoryPredicted",
    "Notice",
    "PictureChanged",
    "PieceFinished",
    "PreviewSaved",
    "PreviewSheetSaved",
    "RunCreated",
    "RunFailed",
    "RunFinished",
    "RunPaused",
    "RunResumed",
    "RunStarted",
    "RunTaken",
    "SamplerStepped",
    "StageReached",
    "StateSaved",
    "StepFinished",
    "ValidationMeasured",
    "WeightsSaved",
    "from_record",
    "ignore",
    "to_record",
]


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    kinds: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Event.kinds[cls.__name__] = cls


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that does nothing."""


@dataclass(frozen=True)
class Notice(Event):
    """Something a person should know: a choice made for them, a fallback, a skipped file."""

    text: str
    level: str = "info"  # info | warning


@dataclass(frozen=True)
class LatentsCached(Event):
    """One more image was encoded by the VAE (or found in the cache)."""

    done: int
    total: int


@dataclass(frozen=True)
class PieceFinished(Event):
    """Of work that goes through many pieces alike, one more is done: ``done`` of ``total`` ``what`` ("tensors")."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class StageReached(Event):
    """A job of several stages came to one of them; ``facts``: what there is to say of it, as plain data."""

    stage: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class ImageSaved(Event):
    """An image of a series was written, the ``done``-th of ``total``."""

    path: str
    done: int
    total: int


@dataclass(frozen=True)
class RunCreated(Event):
    """A run is to be trained from the beginning, by the settings in its folder; nothing recorded before counts.

    A branch begins with what ``source``, the folder of another run, had learned at ``source_step``.
    """

    folder: str
    source: str = ""
    source_step: int = 0


@dataclass(frozen=True)
class RunTaken(Event):
    """A process has the run from now on, and prepares its next step.

    Where nothing further comes of it, the run is what it was before; a new one was interrupted.
    """


@dataclass(frozen=True)
class RunStarted(Event):
    """Training is about to take its first step."""

    folder: str
    total_steps: int
    steps_per_epoch: int
    epochs: int
    images: int
    trainable_parameters: int


@dataclass(frozen=True)
class StepFinished(Event):
    """One optimizer step. ``loss`` is that step's, ``average_loss`` that of the last epoch's worth of steps."""

    step: int
    epoch: int
    loss: float
    average_loss: float
    learning_rates: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class ValidationMeasured(Event):
    """The loss on pictures that are not trained on, at fixed noises and timesteps. ``is_best``: the lowest so far."""

    step: int
    epoch: int
    loss: float
    by_timestep: dict[str, float]
    is_best: bool


@dataclass(frozen=True)
class PreviewSaved(Event):
    """A preview image was written: of the ``index``-th prompt, with the LoRA at ``weight``."""

    path: str
    prompt: str
    step: int
    epoch: int
    index: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class PreviewSheetSaved(Event):
    """The sheet of all previews so far was written."""

    path: str
    step: int


@dataclass(frozen=True)
class WeightsSaved(Event):
    """A LoRA file was written. ``final`` for the one at the end of the run."""

    path: str
    step: int
    epoch: int
    final: bool


@dataclass(frozen=True)
class StateSaved(Event):
    """What is needed to go on from this step was written."""

    path: str
    step: int


@dataclass(frozen=True)
class RunPaused(Event):
    """Training waits after this step. ``freed``: its process has ended, which gave all memory back."""

    step: int
    freed: bool = False


@dataclass(frozen=True)
class RunResumed(Event):
    """Training goes on after ``step``: in the same process, or (``path``: the state file) in a new one.

    Whatever was recorded of later steps before this event is superseded: those steps come again.
    """

    step: int
    path: str = ""
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFinished(Event):
    """Training ended as planned, or because it was asked to (``stopped``). ``seconds`` are without pauses."""

    step: int
    seconds: float
    stopped: bool
    average_loss: float


@dataclass(frozen=True)
class RunFailed(Event):
    """Training ended with an error, or was ``interrupted``: left at once, before it could save."""

    step: int
    problem: str
    hint: str
    interrupted: bool = False


@dataclass(frozen=True)
class JobCreated(Event):
    """A job that is no run was put into the queue; nothing recorded before counts."""

    kind: str


@dataclass(frozen=True)
class JobStarted(Event):
    """A process works on the job now, for the first time or once more."""


@dataclass(frozen=True)
class JobProgressed(Event):
    """How far the job is: ``done`` of ``total`` ``what`` ("images"). None: what is not known."""

    what: str
    done: int
    total: int | None
    seconds_left: float | None = None


@dataclass(frozen=True)
class JobPaused(Event):
    """The job waits. ``freed``: its process has ended, and a new one goes on."""

    freed: bool = False


@dataclass(frozen=True)
class JobResumed(Event):
    """The job goes on in the process that waited."""


@dataclass(frozen=True)
class JobFinished(Event):
    """The job is done, or ended because it was asked to (``stopped``); ``result``: what came of it, as plain data."""

    stopped: bool
    result: dict[str, Any]


@dataclass(frozen=True)
class JobFailed(Event):
    """The job ended with an error."""

    problem: str
    hint: str


@dataclass(frozen=True)
class JobCancelled(Event):
    """The job, of any kind, was taken from the queue before anything was done."""


@dataclass(frozen=True)
class MemoryPredicted(Event):
    """What a run will take at its peak, in bytes: on the CPU the process's own memory, beside it the mapped file."""

    device: str
    peak: int
    mapped: int
    free: int
    """0: not known."""


@dataclass(frozen=True)
class MemoryMeasured(Event):
    """What a run took at its peak, in bytes, and what had been predicted."""

    device: str
    predicted: int
    measured: int

    @property
    def off_percent(self) -> float:
        """By how much the prediction was too high, or (negative) too low."""
        return 100 * (self.predicted / self.measured - 1)


@dataclass(frozen=True)
class SamplerStepped(Event):
    """Text-to-image finished one sampler step of one batch."""

    step: int
    steps: int
    image: int
    images: int


@dataclass(frozen=True)
class PictureChanged(Event):
    """The file of a live preview shows the images as they look after ``step``."""

    path: str
    step: int


def to_record(event: Event) -> dict[str, Any]:
    """The event as JSON-ready data, its class name under ``"event"``.

    Text that proposes something is there twice: in neutral words, and under ``"proposed"`` in its parts.
    """
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    sentences = {name: value for name, value in values.items() if isinstance(value, Sentence)}
    record = {"event": type(event).__name__, **values, **{name: str(text) for name, text in sentences.items()}}
    proposed = {name: parts_to_record(text) for name, text in sentences.items() if text.actions}
    return record | {"proposed": proposed} if proposed else record


def from_record(record: Any) -> Event:
    """The inverse of :func:`to_record`; unknown fields are dropped.

    Raises KeyError for an unknown kind, TypeError for what is no record or has a field that is missing or of the wrong
    type: a record comes from a file, and whoever gets an event need not look at its values again.
    """
    if not isinstance(record, dict):
        raise TypeError(f"a {type(record).__name__} is no record of an event")
    cls = Event.kinds[record["event"]]
    types = _types(cls.__name__)
    values = {name: value for name, value in record.items() if name in types}
    for name, value in values.items():
        if not _fits(value, types[name]):
            raise TypeError(f"{cls.__name__}.{name} is {value!r}")
        values[name] = tuple(value) if isinstance(value, list) else value

    proposed = record.get("proposed")
    for name, parts in proposed.items() if isinstance(proposed, dict) else ():
        # A log of a newer version may propose what this one does not know: the neutral words are there.
        with suppress(KeyError, TypeError, AttributeError):
            values[name] = parts_from_record(parts)
    return cls(**values)


@cache
def _types(kind: str) -> dict[str, Any]:
    cls = Event.kinds[kind]
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value out of JSON is of this type; a whole number is a floating-point number too."""
    if hint is Any:
        return True
    origin, of = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(entry, of[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(entry, of[1]) for entry in value.values())

    # JSON knows whole numbers that no floating-point number holds.
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        return False
    return isinstance(value, (int, float) if hint is float else hint)
