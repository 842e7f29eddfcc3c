"""What a demo paints, and the sheets that show it: every row has one seed, so that what differs has one cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageChops, ImageStat

from loraloom.control import Control, keep_going
from loraloom.events import Event, Listener, Notice, PreviewSaved, ignore
from loraloom.formats.files import make_folder, write_text
from loraloom.formats.image_info import save_image
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.sheets import draw_sheet
from loraloom.generation.text_to_image import GeneratedImage
from loraloom.studio.demo.plans import GUIDANCE, RESOLUTION_PX, SAMPLER, SEED, STEPS, DemoPlan
from loraloom.studio.painter import Loading, Painter

__all__ = [
    "WEIGHTS",
    "Pictures",
    "epochs_sheet",
    "image_name",
    "largest_difference",
    "mean_difference",
    "paint_regularization",
    "paint_row",
    "weights_sheet",
    "write_sheet",
]

REGULARIZATION_SEED = 7000
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Columns of the sheet."""


@dataclass(frozen=True)
class Pictures:
    """Paints the demo's pictures into a folder: one size and sampler, fp32."""

    folder: Path
    lora_folder: Path
    painter: Painter
    listener: Listener = ignore
    control: Control = keep_going
    steps: int = STEPS

    def path(self, name: str) -> Path:
        """Where a picture is saved."""
        return self.folder / f"{name}.png"

    def paint(self, checkpoint: Path, wanted: Mapping[str, tuple[str, int]]) -> list[GeneratedImage]:
        """Paint and save pictures, each a name with its (prompt, seed), all in one pass through the model."""
        settings = GenerateSettings(
            width=RESOLUTION_PX,
            height=RESOLUTION_PX,
            steps=self.steps,
            sampler=SAMPLER,
            cfg_scale=GUIDANCE,
            batch_size=len(wanted),
            lora_folders=(self.lora_folder,),
        )
        make_folder(self.folder)
        images = []
        each = [(prompt, "", seed) for prompt, seed in wanted.values()]
        with self.painter.job(checkpoint, Loading(precision="no"), listener=self._heard, control=self.control) as job:
            for name, image in zip(wanted, job.paint_each(settings, each), strict=True):
                save_image(image.image, self.path(name), image.infotext)
                images.append(image)
        return images

    def _heard(self, event: Event) -> None:
        """Notices about the checkpoint are not repeated here: they are the same with every row."""
        if not isinstance(event, Notice):
            self.listener(event)


def paint_regularization(
    checkpoint: Path,
    plan: DemoPlan,
    folder: Path,
    *,
    painter: Painter,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> list[Path]:
    """Paint a plan's regularization images with the bare checkpoint, each with its prompt as caption."""
    pictures = Pictures(folder, folder, painter, listener, control, plan.sampler_steps)
    for number, prompt in enumerate(plan.regularization_prompts):
        pictures.paint(checkpoint, {f"{number:02d}": (prompt, REGULARIZATION_SEED + number)})
        write_text(folder / f"{number:02d}.txt", prompt + "\n")
    return [pictures.path(f"{number:02d}") for number in range(len(plan.regularization_prompts))]


def image_name(row: int, weight: float) -> str:
    """What a picture of the sheet is called, by its row, from 0, and the weight of the LoRA."""
    return f"row{row + 1}_weight_{weight:g}"


def paint_row(pictures: Pictures, checkpoint: Path, prompt: str, lora: str, row: int) -> list[GeneratedImage]:
    """One prompt and seed with all weights; 0 is the checkpoint alone."""
    tags = {weight: f" <lora:{lora}:{weight:g}>" if weight else "" for weight in WEIGHTS}
    wanted = {image_name(row, weight): (prompt + tag, SEED + row) for weight, tag in tags.items()}
    return pictures.paint(checkpoint, wanted)


def weights_sheet(
    folder: Path, plan: DemoPlan, prompts: Sequence[str], rows: Sequence[Sequence[GeneratedImage]]
) -> Path:
    """The pictures as rows of prompts and columns of weights."""
    path = folder / "sheets" / "weights.png"
    columns = [f"{weight:g}" if weight else "0: no LoRA" for weight in WEIGHTS]
    cells = [[painted.image for painted in row] for row in rows]
    write_sheet(path, cells, rows=prompts, columns=columns, title=f"{plan.name}: weight of the LoRA")
    return path


def epochs_sheet(folder: Path, plan: DemoPlan, previews: Sequence[PreviewSaved]) -> Path:
    """The previews as rows of prompts and columns of epochs."""
    path = folder / "sheets" / "epochs.png"
    prompts = list(dict.fromkeys(preview.prompt for preview in previews))
    epochs = sorted({preview.epoch for preview in previews})
    cells: list[list[Image.Image | None]] = [[None] * len(epochs) for _ in prompts]
    for preview in previews:
        with Image.open(preview.path) as image:
            cells[prompts.index(preview.prompt)][epochs.index(preview.epoch)] = image.convert("RGB")
    columns = [f"epoch {epoch}" if epoch else "before training" for epoch in epochs]
    write_sheet(path, cells, rows=prompts, columns=columns, title=f"{plan.name}: the same seeds after each epoch")
    return path


def write_sheet(
    path: Path,
    cells: Sequence[Sequence[Image.Image | None]],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
) -> None:
    """Draw a sheet of pictures and save it."""
    make_folder(path.parent)
    save_image(draw_sheet(cells, rows=rows, columns=columns, title=title, text_px=13), path, title)


def largest_difference(first: Image.Image, second: Image.Image) -> int:
    """Of any value of two pictures, of 255."""
    return max(high for _, high in ImageChops.difference(first, second).getextrema())  # type: ignore[misc]


def mean_difference(first: Image.Image, second: Image.Image) -> float:
    """Of all values of two pictures, of 255."""
    return fmean(ImageStat.Stat(ImageChops.difference(first, second)).mean)
