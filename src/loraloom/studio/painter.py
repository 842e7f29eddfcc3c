"""A model that stays: the checkpoint, its autoencoder and the LoRAs that were read, kept from one job to the next.

A :class:`Painter` is for one process. Every job has the model to itself and gets it as it is in its files: nothing of
an earlier job can be seen in its pictures. Code that paints once makes a painter of its own and forgets it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from loraloom.control import POLL_S, Control, Interrupted, Request, heed, keep_going, number_of
from loraloom.errors import LoraloomError
from loraloom.events import Event, Listener, Notice, ignore

if TYPE_CHECKING:
    import torch

    from loraloom.generation.loras import AppliedLora, LoraStore
    from loraloom.generation.settings import GenerateSettings
    from loraloom.generation.text_to_image import GeneratedImage, Watch
    from loraloom.models.loaded import LoadedModel

__all__ = ["Job", "Loading", "Painter"]


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded: with another of these, another model is in memory."""

    device: str = "auto"
    precision: str = "auto"
    low_memory: bool = False
    keep_file_precision: bool = False
    prediction: Literal["auto", "epsilon", "v"] = "auto"
    zero_terminal_snr: bool | None = None
    vae: Path | None = None

    @classmethod
    def of(cls, settings: GenerateSettings) -> Self:
        """What image settings say of it."""
        return cls(
            settings.device,
            settings.precision,
            settings.low_memory,
            settings.keep_file_precision,
            settings.prediction,
            settings.zero_terminal_snr,
            settings.vae,
        )


class Job:
    """One job at the model: made by :meth:`Painter.job`, over when that block ends.

    ``model`` is the loaded checkpoint. It is lent: LoRAs come and go through :meth:`paint` and :meth:`paint_each`
    alone. Each of these ends what the one before has not painted yet.
    """

    def __init__(self, model: LoadedModel, store: LoraStore, listener: Listener, control: Control) -> None:
        self.model = model
        self._store, self._listener, self._control = store, listener, control
        self._open: Generator[GeneratedImage, None, None] | None = None

    def lora(self, path: Path) -> AppliedLora:
        """A LoRA file at weight 1, read unless it is in memory already."""
        from loraloom.adapters.strength import FULL
        from loraloom.generation.prompts import LoraTag

        return self._store.load(LoraTag(str(path), FULL), (), self.model, self._listener)

    def paint(
        self,
        settings: GenerateSettings,
        loras: Sequence[AppliedLora] = (),
        *,
        model_hash: str | None = None,
        watch: Watch | None = None,
    ) -> Iterator[GeneratedImage]:
        """Images one after another, see :func:`loraloom.generation.text_to_image.paint`."""
        from loraloom.generation.text_to_image import paint

        images = paint(
            self.model,
            settings,
            loras,
            listener=self._listener,
            model_hash=model_hash,
            watch=watch,
            store=self._store,
            control=self._control,
        )
        return self._lent(images)

    def paint_each(
        self, settings: GenerateSettings, wanted: Sequence[tuple[str, str, int]], *, model_hash: str | None = None
    ) -> Iterator[GeneratedImage]:
        """An image for each (prompt, negative, seed), see :func:`loraloom.generation.text_to_image.paint_each`."""
        from loraloom.generation.text_to_image import paint_each

        images = paint_each(
            self.model,
            settings,
            wanted,
            listener=self._listener,
            model_hash=model_hash,
            store=self._store,
            control=self._control,
        )
        return self._lent(images)

    def _lent(self, images: Iterator[GeneratedImage]) -> Iterator[GeneratedImage]:
        # What paints takes its LoRAs off when it ends. One that is left in the middle, because saving a picture
        # failed, would keep them on for as long as anything (a traceback) holds on to it.
        assert isinstance(images, Generator)
        self.close()
        self._open = images
        return images

    def close(self) -> None:
        """End what was left in the middle."""
        if self._open is not None:
            self._open.close()
            self._open = None


@dataclass
class _Kept:
    """A model in memory, the files and the settings it is of, and what was said while it was loaded."""

    key: tuple[object, ...]
    model: LoadedModel
    store: LoraStore
    said: list[Event] = field(default_factory=list)


class Painter:
    """Keeps the model of the last job. One job at a time: others wait, in any thread, until it is over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: int | None = None
        self._kept: _Kept | None = None
        self.loads = 0
        """How many checkpoints were read."""

    @contextmanager
    def job(
        self,
        checkpoint: Path,
        loading: Loading,
        *,
        listener: Listener = ignore,
        control: Control = keep_going,
    ) -> Iterator[Job]:
        """The model of a checkpoint for as long as the block lasts; read where it is not the one in memory.

        ``listener`` hears what there is to say of the checkpoint, in either case. Raises MissingFileError,
        FileFormatError and CheckpointError as loading does, Interrupted when ``control`` says so while it is loaded or
        waited for.
        """
        with self._alone(control):
            wishes = _Heard(control)
            try:
                kept = self._model(checkpoint, loading, listener, wishes)
                kept.store.look_again()
                job = Job(kept.model, kept.store, listener, wishes)
                try:
                    yield job
                finally:
                    job.close()
            except BaseException as error:
                # An error that was foreseen, and a request that is heeded, leave between two pieces of work, where the
                # model is whole. Whatever else came from anywhere (a signal, memory that ended) may not have.
                if not isinstance(error, LoraloomError) and not (isinstance(error, Interrupted) and wishes.to_end):
                    self._drop()
                raise

    def release(self) -> None:
        """Give the memory back; the next job reads its checkpoint anew. Waits for a job that is under way."""
        from loraloom.hardware import return_freed_memory

        with self._alone(keep_going):
            self._drop()
            return_freed_memory()

    @contextmanager
    def _alone(self, control: Control) -> Iterator[None]:
        """Inside no other job has the model."""
        if self._working == threading.get_ident():
            raise RuntimeError("a job of this painter is under way in this thread already")
        while not self._lock.acquire(timeout=POLL_S):
            heed(control)
        self._working = threading.get_ident()
        try:
            yield
        finally:
            self._working = None
            self._lock.release()

    def _model(self, checkpoint: Path, loading: Loading, listener: Listener, control: Control) -> _Kept:
        key = _key(checkpoint, loading)
        if self._kept is not None and self._kept.key == key:
            for event in self._kept.said:
                listener(event)
            return self._kept
        self._drop()  # first, so that two models are never in memory together
        said: list[Event] = []

        def heard(event: Event) -> None:
            if isinstance(event, Notice):
                said.append(event)
            listener(event)

        from loraloom.generation.loras import LoraStore

        model = _load(checkpoint, loading, heard, control)
        self.loads += 1
        self._kept = _Kept(key, model, LoraStore(), said)
        return self._kept

    def _drop(self) -> None:
        if self._kept is None:
            return
        on_gpu = self._kept.model.device.type == "cuda"
        self._kept = None
        gc.collect()  # modules and their hooks refer to one another
        if on_gpu:
            import torch

            torch.cuda.empty_cache()


class _Heard:
    """A control that remembers whether it asked for an end."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.to_end = False

    def __call__(self) -> Request:
        request = self._control()
        self.to_end = request not in (Request.GO, Request.PAUSE)
        return request

    @property
    def number(self) -> int:
        """The signal by which it did so."""
        return number_of(self._control)


def _load(checkpoint: Path, loading: Loading, listener: Listener, control: Control) -> LoadedModel:
    """The checkpoint, with the autoencoder that is named."""
    from loraloom.hardware import keep_freed_memory
    from loraloom.models.checkpoint import open_checkpoint
    from loraloom.models.loaded import load_model
    from loraloom.models.vae_file import replace_vae

    device, precision, compute = _device_and_precision(loading)
    opened = open_checkpoint(checkpoint)
    if device.type == "cpu" and not (loading.low_memory or loading.keep_file_precision):
        keep_freed_memory()  # a pass takes and frees the same large blocks again and again
    model = load_model(
        opened,
        device=device,
        compute=compute,
        keep_file_precision=loading.keep_file_precision,
        prediction=loading.prediction,
        zero_terminal_snr=loading.zero_terminal_snr,
        offload=loading.low_memory,
        listener=listener,
        control=control,
    )
    if loading.vae is not None:
        replace_vae(model, loading.vae)
    model.check_part("vae")
    listener(Notice(f"{checkpoint.name} is {model.family.title}, on {device} with precision {precision}"))
    return model


def _device_and_precision(loading: Loading) -> tuple[torch.device, str, torch.dtype]:
    from loraloom.hardware import choose_device, choose_precision

    device = choose_device(loading.device)
    precision = choose_precision(device, loading.precision)
    return device, precision.name, precision.compute


def _key(checkpoint: Path, loading: Loading) -> tuple[object, ...]:
    """Equal as long as loading would give the same model: the same settings, and files that have not changed."""
    device, precision, _ = _device_and_precision(loading)
    rest = (loading.low_memory, loading.keep_file_precision, loading.prediction, loading.zero_terminal_snr)
    vae = () if loading.vae is None else _stamps(loading.vae)
    return (str(checkpoint), str(device), precision, *rest, _stamps(checkpoint), vae)


def _stamps(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Each file with its size, time and number; of a Diffusers folder, all inside."""
    files = sorted(inside for inside in path.rglob("*") if inside.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        if file.is_file():
            status = file.stat()
            found.append((str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)
