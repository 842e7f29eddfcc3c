"""How well the run does on pictures it does not train on, and on each one that it does.

Every measurement asks the same questions: the same pictures, the same noise, the same timesteps. The numbers of two
epochs, or of two runs with other settings, can therefore be compared directly, and are far less noisy than the training
loss. The loss is always the plain squared error of the model's own target, whatever the run itself minimises.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.control import Control, heed, keep_going
from loraloom.data.batches import Draw
from loraloom.data.cache import LatentCache
from loraloom.data.dataset import load_dataset
from loraloom.data.problems import Problem, readable
from loraloom.data.sample import Dataset, Sample
from loraloom.diffusion import objectives
from loraloom.errors import DatasetError
from loraloom.formats.files import write_text
from loraloom.models.conditioning import Conditioning, Text
from loraloom.models.loaded import LoadedModel
from loraloom.randomness import normal, seed_of
from loraloom.training.captions import text_of
from loraloom.training.settings import ValidationSettings

__all__ = ["ImageLosses", "Losses", "Patience", "Validator", "split_off", "validation_pictures", "write_image_losses"]

Encode = Callable[[Sequence[Text]], Conditioning]
Sizes = Callable[[Draw], tuple[int, int, int, int, int, int]]


@dataclass(frozen=True)
class Losses:
    """Mean losses: of each picture by its name, and of each timestep that was asked."""

    by_image: dict[str, float]
    by_timestep: dict[int, float]

    @property
    def mean(self) -> float:
        """Over all pictures."""
        return sum(self.by_image.values()) / len(self.by_image)


@dataclass(frozen=True)
class Validator:
    """The fixed questions. ``timesteps`` are the middles of equal parts of the schedule; ``draws`` noises for each."""

    model: LoadedModel
    cache: LatentCache
    encode: Encode
    sizes: Sizes
    samples: Sequence[Sample]
    settings: ValidationSettings
    batch_size: int

    @property
    def timesteps(self) -> list[int]:
        """The timesteps that are asked, cleanest first."""
        count = len(self.model.schedule)
        return [int((index + 0.5) * count / self.settings.timesteps) for index in range(self.settings.timesteps)]

    @torch.no_grad()
    def measure(self, control: Control = keep_going) -> Losses:
        """Ask everything. The caller has put the adapters into eval mode. ``control`` is heeded before each batch."""
        asked = [
            (sample, timestep, draw)
            for sample in self.samples
            for timestep in self.timesteps
            for draw in range(self.settings.draws)
        ]

        # Latents of different sizes fit into no batch.
        by_bucket: dict[tuple[int, int], list[tuple[Sample, int, int]]] = {}
        for question in asked:
            by_bucket.setdefault(question[0].bucket, []).append(question)

        sums: dict[str, list[float]] = {sample.identity: [] for sample in self.samples}
        at: dict[int, list[float]] = {timestep: [] for timestep in self.timesteps}
        for questions in by_bucket.values():
            for start in range(0, len(questions), self.batch_size):
                heed(control)
                part = questions[start : start + self.batch_size]
                for (sample, timestep, _), loss in zip(part, self._losses(part).tolist(), strict=True):
                    sums[sample.identity].append(loss)
                    at[timestep].append(loss)

        return Losses(
            {sample.name: _mean(sums[sample.identity]) for sample in self.samples},
            {timestep: _mean(losses) for timestep, losses in at.items()},
        )

    def _losses(self, questions: Sequence[tuple[Sample, int, int]]) -> Tensor:
        model, device = self.model, self.model.device
        # Without the randomness of the encoding: its mean.
        latents = torch.stack([self.cache.get(sample)[0] for sample, _, _ in questions]).to(device)
        noise = torch.stack(
            [
                normal(latents.shape[1:], self.settings.seed, "validation", sample.digest, timestep, draw)
                for sample, timestep, draw in questions
            ]
        ).to(device)
        timesteps = torch.tensor([timestep for _, timestep, _ in questions])
        sizes = [self.sizes(Draw(sample, 0, False)) for sample, _, _ in questions]
        # The whole caption, whatever the run shuffles or drops.
        conditioning = self.encode(
            [text_of(sample.fullest_caption, weighted=sample.captions.weighted) for sample, _, _ in questions]
        )
        conditioning = conditioning.with_sizes(torch.tensor(sizes, dtype=torch.float32, device=device))
        noisy = objectives.add_noise(model.schedule, latents, noise, timesteps)
        target = objectives.target(model.schedule, model.prediction, latents, noise, timesteps)
        return (model.denoise(noisy, timesteps, conditioning) - target).square().mean(dim=(1, 2, 3))


@dataclass
class Patience:
    """Remembers the best validation loss, and says when too many measurements brought nothing better."""

    limit: int = 0
    """Measurements without a better loss after which to stop; 0: never."""
    best: float = float("inf")
    best_step: int = 0
    best_epoch: int = 0
    without_better: int = 0

    def heard(self, loss: float, *, step: int, epoch: int) -> bool:
        """Note a measurement; True when it is the best so far."""
        if loss < self.best:
            self.best, self.best_step, self.best_epoch, self.without_better = loss, step, epoch, 0
            return True
        self.without_better += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return 0 < self.limit <= self.without_better

    def state_dict(self) -> dict[str, float]:
        """For exact resume."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "best_epoch": self.best_epoch,
            "without_better": self.without_better,
        }

    def load_state_dict(self, values: Mapping[str, Any], /) -> None:
        """The inverse of :meth:`state_dict`; the limit is that of the present settings."""
        self.best = float(values["best"])
        self.best_step, self.best_epoch = int(values["best_step"]), int(values["best_epoch"])
        self.without_better = int(values["without_better"])


@dataclass(frozen=True)
class ImageLosses:
    """One training picture: its loss with the checkpoint alone and with the LoRA."""

    name: str
    before: float
    after: float

    @property
    def learned(self) -> float:
        """Share of the loss that the LoRA took away; 0 is nothing."""
        return 1.0 - self.after / self.before if self.before else 0.0


def split_off(dataset: Dataset, settings: ValidationSettings) -> tuple[Dataset, tuple[Sample, ...]]:
    """The dataset without the pictures that are held out, and those.

    Chosen by content alone, so a picture that is added or renamed does not move another to the other side. Raises
    DatasetError if nothing would be left to train on.
    """
    if not settings.share:
        return dataset, ()
    ranked = sorted(
        dataset.training, key=lambda sample: (seed_of(settings.seed, "held out", sample.digest), sample.name)
    )
    count = max(1, round(settings.share * len(ranked)))
    held = {sample.digest for sample in ranked[:count]}  # copies of a picture go together
    chosen = tuple(sample for sample in dataset.training if sample.digest in held)
    if len(chosen) >= len(dataset.training):
        raise DatasetError(
            f"{dataset.folder}: validation.share = {settings.share:g} leaves no picture to train on",
            "lower it, or name other pictures in validation.folder",
        )
    rest = tuple(sample for sample in dataset.samples if sample.is_regularization or sample.digest not in held)
    return replace(dataset, samples=rest), chosen


def validation_pictures(
    settings: ValidationSettings, dataset: Dataset, control: Control = keep_going
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    """The pictures of ``validation.folder``, prepared as those of the dataset are, and what is wrong with them.

    ``control`` is heeded between them.
    """
    if settings.folder is None:
        return (), ()
    update = {"folder": settings.folder, "concepts": (), "use_regularization": False, "regularization_folder": None}
    found = load_dataset(dataset.settings.model_copy(update=update), control=control)
    # The remarks on the settings have been made for the dataset already.
    problems = [problem for problem in found.problems if problem.severity != "info" and problem.kind != "settings"]
    trained = {sample.digest for sample in dataset.samples}
    pictures = {sample.digest: sample.path for sample in found.training}
    alike = [path for digest, path in pictures.items() if digest in trained]
    if alike:
        count = f"{len(alike)} of the {len(pictures)} pictures to measure on"
        note = f"{count} are trained on too, such as {readable(alike[0].name)}"
        hint = "the loss then does not show when the run has learned enough; keep them apart, or set validation.share"
        problems.append(Problem("warning", "validation", found.folder, note, hint))
    return found.training, tuple(problems)


def write_image_losses(path: Path, rows: Sequence[ImageLosses]) -> None:
    """A table as CSV, the picture that was learned least first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["picture", "loss of the checkpoint", "loss with the LoRA", "learned"])
    for row in sorted(rows, key=lambda row: row.learned):
        table.writerow([row.name, f"{row.before:.6f}", f"{row.after:.6f}", f"{row.learned:.4f}"])
    write_text(path, text.getvalue())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
