"""The listener that writes losses, learning rates and previews for TensorBoard into the run folder."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from loraloom.errors import SettingsError
from loraloom.events import Event, PreviewSaved, RunResumed, StepFinished, ValidationMeasured

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Writes ``<run>/tensorboard``; TensorBoard shows it, given the run folder. A context manager.

    Raises SettingsError when the package is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError(
                ["tensorboard=true needs the package tensorboard, which is not installed"],
                'pip install "loraloom[tensorboard]", or leave it out: curves.png has the same curves',
            ) from error
        self._folder = str(run / "tensorboard")
        self._make = SummaryWriter
        self._writer = SummaryWriter(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def __call__(self, event: Event) -> None:
        writer = self._writer
        match event:
            case StepFinished():
                writer.add_scalar("loss/step", event.loss, event.step)
                writer.add_scalar("loss/average", event.average_loss, event.step)
                for name, rate in event.learning_rates.items():
                    writer.add_scalar(f"learning rate/{name}", rate, event.step)
            case ValidationMeasured():
                writer.add_scalar("loss/validation", event.loss, event.step)
                for timestep, loss in event.by_timestep.items():
                    writer.add_scalar(f"validation by timestep/{timestep}", loss, event.step)
            case PreviewSaved():
                self._picture(event)
            case RunResumed():
                # What was written behind the state that the run goes on from is hidden.
                writer.close()
                self._writer = self._make(self._folder, purge_step=event.step + 1)
            case _:
                pass

    def _picture(self, event: PreviewSaved) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(event.path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(event.prompt[:80], pixels, event.step, dataformats="HWC")
