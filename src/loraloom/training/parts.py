"""What a training run is made of: put together once by ``preparing.py``, then shared by all that works on the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from loraloom.data.cache import LatentCache
from loraloom.data.sample import Dataset, Sample
from loraloom.events import Listener
from loraloom.hardware import Precision
from loraloom.models.loaded import LoadedModel
from loraloom.training.captions import CaptionEncoder
from loraloom.training.ema import Ema
from loraloom.training.optimizers import evaluating
from loraloom.training.saving import FileFacts
from loraloom.training.settings import TrainSettings
from loraloom.training.step import Objective
from loraloom.training.team import ALONE, Team
from loraloom.training.trained import Trained, View

__all__ = ["RunParts"]


@dataclass
class RunParts:
    """What a run is made of."""

    settings: TrainSettings
    folder: Path
    listener: Listener
    dataset: Dataset
    model: LoadedModel
    precision: Precision
    adapters: Trained
    attachment: View
    write: Callable[[Path, FileFacts], None]
    """Makes a file of what is trained."""
    cache: LatentCache
    encode: CaptionEncoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    max_token_length: int
    started: float = 0.0
    ema: Ema | None = None
    held_out: tuple[Sample, ...] = ()
    """The pictures that the validation loss is measured on."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Metadata about the LoRA files that the training started from."""
    team: Team = ALONE
    """The processes that train together."""

    @contextmanager
    def as_shown(self) -> Iterator[None]:
        """Inside, the adapters hold what is saved and painted; behind it, bit for bit, what is trained."""
        with evaluating(self.optimizer):
            if self.ema is None:
                yield
            else:
                with self.ema.applied():
                    yield
