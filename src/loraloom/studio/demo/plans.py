"""What a demo teaches: a style (two dozen OpenMoji drawings), or a character (Noto's cat faces, with regularization
images); and what comes with the package for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from loraloom.studio.embedded import make_checkpoint
from loraloom.training.settings import TrainSettings

__all__ = [
    "CHARACTER",
    "GUIDANCE",
    "RESOLUTION_PX",
    "SAMPLER",
    "SEED",
    "STEPS",
    "STYLE",
    "DemoPlan",
    "copy_dataset",
    "make_checkpoint",
    "training_settings",
]

RESOLUTION_PX = 128
GUIDANCE = 3.0  # what suits the small checkpoint; real ones want about 7
SAMPLER = "DPM++ 2M SDE Karras"  # without fresh noise, backgrounds stay speckled
STEPS = 20
SEED = 42


@dataclass(frozen=True)
class DemoPlan:
    """What one demo teaches, and how; the numbers suit the small checkpoint."""

    name: str
    """Of the run and of its LoRA."""
    drawings: str
    """Folder of the package with a dataset."""
    trigger: str
    prompts: tuple[str, ...]
    """Rows of the sheet; none of them is a caption of the dataset. The first is the one that is merged."""
    control_prompts: tuple[str, ...] = ()
    """More rows: without the trigger word, to see what the LoRA must leave alone."""
    regularization_prompts: tuple[str, ...] = ()
    """What the demo paints with the checkpoint itself, as regularization images."""
    epochs: int = 7
    batch_size: int = 4
    lr: float = 1e-3
    text_encoder_lr: float | None = 5e-4
    """None: the text encoder is not trained."""
    rank: int = 16
    sampler_steps: int = STEPS
    overrides: tuple[str, ...] = ()
    """More settings of the run, as on the command line."""


def _on(background: str, *subjects: str) -> tuple[str, ...]:
    return tuple(f"{subject} on a {background} background" for subject in subjects)


STYLE = DemoPlan(
    name="openmoji-style",
    drawings="drawings",
    trigger="openmoji",
    prompts=_on(
        "white",
        "openmoji, a fox face",
        "openmoji, a tomato",
        "openmoji, a frog face",
        "openmoji, a hedgehog",
        "openmoji, a red heart",
        "openmoji, a lemon",
    ),
    epochs=10,
    lr=2e-3,
    text_encoder_lr=None,
    rank=8,
    # Lines are drawn at low noise; what a thing is, is decided before. The layers between attention draw them too.
    overrides=("objective.max_timestep=400", "adapter.conv_rank=8"),
)
CHARACTER = DemoPlan(
    name="mewo-cat",
    drawings="character",
    trigger="mewo cat",
    prompts=(
        *_on("red", "a mewo cat"),
        *_on("blue", "a mewo cat", "a mewo cat, crying,"),
    ),
    control_prompts=(
        *_on("white", "a cat", "a dog face", "a fox face", "a horse"),
        *_on("yellow", "a tomato"),
    ),
    regularization_prompts=tuple(
        prompt
        for background in ("white", "blue", "green")
        for prompt in _on(background, "a cat", "a dog face", "a fox face", "a pig face", "a panda face", "a frog face")
    ),
    epochs=8,
    lr=1e-3,
    text_encoder_lr=1e-3,
    rank=8,
)


def training_settings(
    plan: DemoPlan,
    checkpoint: Path,
    dataset: Path,
    output: Path,
    *,
    epochs: int | None = None,
    previews: bool = False,
    overrides: Sequence[str] = (),
) -> TrainSettings:
    """The settings of a plan's run; ``previews`` paints and saves after each epoch, ``overrides`` come last."""
    text_encoder = ["adapter.text_encoder=false"]
    if plan.text_encoder_lr is not None:
        text_encoder = [f"optimizer.text_encoder_lr={plan.text_encoder_lr}"]
    painted = [*plan.prompts[:2], *plan.control_prompts[:1]] if previews else []
    return TrainSettings.load(
        None,
        [
            f"checkpoint={_quoted(checkpoint)}",
            f"output={_quoted(output)}",
            f"name={plan.name}",
            f"dataset.folder={_quoted(dataset)}",
            f"dataset.resolution={RESOLUTION_PX}",
            f"epochs={epochs or plan.epochs}",
            f"batch_size={plan.batch_size}",
            f"optimizer.lr={plan.lr}",
            *text_encoder,
            f"adapter.rank={plan.rank}",
            f"saving.trigger={plan.trigger}",
            f"saving.every_epochs={int(previews)}",
            f"preview.prompts={painted}",
            f"preview.cfg_scale={GUIDANCE}",
            f"preview.steps={plan.sampler_steps}",
            f"preview.seed={SEED}",
            *plan.overrides,
            *overrides,
        ],
    )


def copy_dataset(plan: DemoPlan, folder: Path) -> Path:
    """Copy the drawings of a plan that come with the package, with their licence, into a dataset folder."""
    with as_file(files("loraloom.studio") / plan.drawings) as drawings:
        shutil.copytree(drawings, folder)
    return folder


def _quoted(path: Path) -> str:
    """A path as a TOML literal string, in which nothing needs escaping."""
    return f"'{path}'" if "'" not in str(path) else str(path)
