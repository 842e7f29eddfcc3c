"""What jobs that are no runs are told: settings, as a form shows them and ``job.json`` keeps them. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from loraloom.data.settings import DatasetSettings
from loraloom.generation.settings import GenerateSettings
from loraloom.settings import Settings
from loraloom.studio.sweeps import split_axes
from loraloom.training.settings import TrainSettings

__all__ = ["ClassImagesSettings", "DemoSettings", "SweepSettings"]


class SweepSettings(Settings):
    """One run for every combination of settings."""

    train: TrainSettings
    """What all runs have in common."""
    axes: tuple[str, ...]
    """Settings that are varied, each with its values: optimizer.lr=1e-5,1e-4."""

    @classmethod
    def load_axes(cls, path: Path | None, overrides: Sequence[str]) -> Self:
        """From a settings file and overrides, of which those with several values are the axes.

        Raises SettingsError as :meth:`load` does, and where there is no axis.
        """
        _, axes = split_axes(overrides)
        first = {axis.key: axis.values[0] for axis in axes}
        fixed = [text for text in overrides if _key(text) not in first]
        train = TrainSettings.load(path, [*fixed, *(f"{key}={value}" for key, value in first.items())])
        return cls.parse({"train": train, "axes": tuple(text for text in overrides if _key(text) in first)})


class ClassImagesSettings(Settings):
    """Regularization images that a checkpoint paints itself."""

    checkpoint: Path
    """The checkpoint that will be trained on."""
    dataset: DatasetSettings
    """The dataset they are for."""
    paint: GenerateSettings
    """What to paint (the prompt is the class, or [filewords]) and how."""
    count: Annotated[int | None, Field(ge=1)] = None
    """Pictures in all. Unset: one for each training picture."""
    folder: Path | None = None
    """Where they go. Unset: regularization_images/1_CLASS in the dataset folder."""
    trigger: str = ""
    """The word that [filewords] leaves out."""


class DemoSettings(Settings):
    """The whole job once, on drawings that come with the package."""

    character: bool = False
    """Teach a character with regularization images instead of a style."""
    epochs: Annotated[int | None, Field(ge=1)] = None
    """Training epochs. Unset: a few minutes' worth."""


def _key(override: str) -> str:
    return override.partition("=")[0].strip().replace("-", "_")
