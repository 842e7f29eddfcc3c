"""What a run writes, counted before it starts, and whether there is room for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraloom.data.sample import Dataset
from loraloom.events import Listener
from loraloom.formats.room import Need, picture_bytes, require_room
from loraloom.models.loaded import LoadedModel
from loraloom.training.agenda import Agenda
from loraloom.training.memory import optimizer_bytes, trained_tensors
from loraloom.training.previews import count_pictures
from loraloom.training.settings import TrainSettings
from loraloom.training.steps import epoch_draws
from loraloom.training.whole import whole_parts
from loraloom.training.work import Work, count_work

__all__ = ["Disk", "check_room", "count_disk"]


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


def count_disk(settings: TrainSettings, work: Work, *, adapter: int, optimizer: int, encoded: int) -> Disk:
    """What a run writes: LoRA files, states, previews, the cache of ``encoded`` pictures, the log.

    ``adapter`` and ``optimizer``: bytes of what is trained (twice that with an average) and of its moments.
    """
    saving = settings.saving
    width, height, _ = work.largest
    tensors = adapter // (2 if settings.ema.enabled else 1)
    counts = Agenda(settings, work.steps, work.steps_per_epoch).count(work.lengths)

    loras = [counts.weights_of_epochs, counts.weights_of_steps]
    if saving.keep_last:
        loras = [min(count, saving.keep_last) for count in loras]
    has_best = settings.validation.has_pictures and settings.validation.save_best
    copies = 2 if settings.ema.enabled and settings.ema.save == "both" else 1

    states = counts.states if saving.state else 0
    if saving.keep_states:
        # A state is removed only when a step was taken from the next one, so there is one more for a moment.
        states = min(saving.keep_states + 1, states)

    painted = settings.preview.size or (width, height)
    latent = 2 * 4 * 4 * (width // 8) * (height // 8)
    return Disk(
        lora=tensors // (1 if saving.precision == "float" else 2) + HEADER_BYTES,
        loras=(sum(loras) + has_best + 1) * copies,
        state=adapter + optimizer + HEADER_BYTES,
        states=states,
        previews=picture_bytes(*painted, count_pictures(settings.preview, counts.previews)),
        latents=encoded * latent if settings.dataset.latent_folder is not None else 0,
        log=2 * work.steps * LOG_BYTES,
    )


def check_room(
    settings: TrainSettings, folder: Path, dataset: Dataset, model: LoadedModel, listener: Listener, *, goes_on: bool
) -> None:
    """Raise OutputError where a run in ``folder`` cannot write what it will; a warning where it hardly can."""
    if not epoch_draws(settings, dataset, 0):
        return
    if settings.method == "full":
        parts = whole_parts(model, settings.adapter)
        trained = 4 * sum(parameter.numel() for part in parts for parameter in model.parts[part].parameters())
        moments = 2 * trained
    else:
        adapters = trained_tensors(settings, model)
        trained = sum(parameter.nbytes for parameter in adapters.parameters())
        moments = optimizer_bytes(adapters, settings, model.family.name)
    disk = count_disk(
        settings,
        count_work(settings, dataset),
        adapter=trained * (2 if settings.ema.enabled else 1),
        optimizer=moments,
        encoded=len(dataset.samples) * (2 if settings.dataset.flip else 1),
    )
    require_room(disk.needs(folder, settings.dataset.latent_folder, goes_on=goes_on), listener)
