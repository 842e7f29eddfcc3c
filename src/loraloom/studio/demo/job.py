"""The whole job on real drawings, in the order of the LoRA guide, in a folder that stays."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from loraloom.actions import Action, Sentence
from loraloom.control import Control, heed, keep_going
from loraloom.errors import OutputError
from loraloom.events import Event, Listener, PreviewSaved, StageReached, ignore
from loraloom.formats.files import make_folder
from loraloom.formats.room import Need, require_room
from loraloom.generation.text_to_image import GeneratedImage
from loraloom.hardware import one_thread
from loraloom.studio.curves import CURVES_NAME, read_curves
from loraloom.studio.demo.pictures import (
    WEIGHTS,
    Pictures,
    epochs_sheet,
    image_name,
    largest_difference,
    mean_difference,
    paint_regularization,
    paint_row,
    weights_sheet,
    write_sheet,
)
from loraloom.studio.demo.plans import SEED, STYLE, DemoPlan, copy_dataset, make_checkpoint, training_settings
from loraloom.studio.painter import Painter
from loraloom.studio.runs.log import RunLog
from loraloom.studio.runs.training import run_training
from loraloom.studio.weights import merge_loras, weighted_lora

__all__ = ["STAGES", "DemoResult", "run_demo"]

DEMO_BYTES = 120_000_000
"""What a demo leaves, rounded up."""
STAGES = (
    "checkpoint",
    "dataset",
    "regularization",
    "prepared",
    "training",
    "trained",
    "weights",
    "weighed",
    "merge",
    "merged",
    "end",
)
"""What a demo comes to, in this order; regularization images are painted for a character alone."""


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and how far the merged checkpoint's image is from the on-the-fly one."""

    folder: Path
    checkpoint: Path
    lora: Path
    previews: tuple[Path, ...]
    curves: Path
    """The learning curves."""
    epochs_sheet: Path
    """The previews: prompts x epochs."""
    weights_sheet: Path
    """Prompts that are not captions x weights of the LoRA."""
    merge_sheet: Path
    """Without the LoRA, with it, merged."""
    image_without: Path
    image_with: Path
    image_merged: Path
    merged_checkpoint: Path
    lora_pixel_difference: int
    """Largest difference between the image without and with the LoRA, of 255."""
    merge_pixel_difference: int
    """Largest difference between the image on the fly and the merged one, of 255."""
    merge_latent_difference: float
    """The same for the latents (which have a standard deviation of about 1)."""
    changes: tuple[float, ...]
    """Mean change of each of the sheet's rows from weight 0 to 1, of 255: those with the trigger word first."""
    seconds: float


@dataclass(frozen=True)
class _Demo:
    """One demo: where it goes, what it teaches, its listener and its control."""

    folder: Path
    plan: DemoPlan
    painter: Painter
    listener: Listener
    control: Control

    def reach(self, stage: str, **facts: object) -> None:
        """Tell that the demo came to a stage, unless it is asked to end there."""
        heed(self.control)
        self.listener(StageReached(stage, facts))

    @property
    def checkpoint(self) -> Path:
        """The small checkpoint."""
        return self.folder / "checkpoint" / "demo-sd1.safetensors"

    @property
    def prompts(self) -> tuple[str, ...]:
        """The rows of the sheet."""
        return (*self.plan.prompts, *self.plan.control_prompts)

    def pictures(self, folder: Path, loras: Path | None = None) -> Pictures:
        """What paints into a folder."""
        steps = self.plan.sampler_steps
        return Pictures(folder, loras or folder, self.painter, self.listener, self.control, steps)


@dataclass(frozen=True)
class _Trained:
    """What came of the training."""

    run: Path
    lora: Path
    previews: tuple[PreviewSaved, ...]


@dataclass(frozen=True)
class _Weighed:
    """The pictures of each row by weight, and their sheet."""

    rows: tuple[tuple[GeneratedImage, ...], ...]
    sheet: Path
    changes: tuple[float, ...]


@dataclass(frozen=True)
class _Merged:
    """The checkpoint with the LoRA in it, its picture, and how far that is from the one on the fly, of 255."""

    checkpoint: Path
    sheet: Path
    image: GeneratedImage
    difference: int


def run_demo(
    folder: Path,
    *,
    plan: DemoPlan = STYLE,
    epochs: int | None = None,
    painter: Painter | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> DemoResult:
    """Prepare a dataset, train a LoRA on it, use it on the fly, merge it; everything lands in ``folder``, a new one.

    ``listener`` hears StageReached for each of :data:`STAGES`, besides what training and painting tell. Left out,
    ``epochs`` are those of the plan. Raises OutputError for a folder that holds anything, Interrupted once ``control``
    asks for the end; what is finished stays.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already", Sentence(Action.NAME_DEMO_FOLDER))
    require_room([Need(folder, DEMO_BYTES, "checkpoints, LoRAs, pictures")], listener)
    make_folder(folder)
    began = time.monotonic()
    demo = _Demo(folder, plan, painter or Painter(), listener, control)

    checkpoint = make_checkpoint(demo.checkpoint)
    demo.reach("checkpoint", path=str(checkpoint), bytes=checkpoint.stat().st_size)
    dataset = _prepare_dataset(demo)
    trained = _train(demo, dataset, epochs or plan.epochs)
    by_epoch = epochs_sheet(folder, plan, trained.previews)
    weighed = _paint_by_weight(demo, trained.lora)
    merged = _merge(demo, trained.lora, weighed)
    demo.reach("end", regularization=bool(plan.regularization_prompts))

    without, with_lora = weighed.rows[0][0], weighed.rows[0][-1]
    pictures = demo.pictures(folder / "images")
    return DemoResult(
        folder=folder,
        checkpoint=checkpoint,
        lora=trained.lora,
        previews=tuple(Path(preview.path) for preview in trained.previews),
        curves=trained.run / CURVES_NAME,
        epochs_sheet=by_epoch,
        weights_sheet=weighed.sheet,
        merge_sheet=merged.sheet,
        image_without=pictures.path(image_name(0, WEIGHTS[0])),
        image_with=pictures.path(image_name(0, WEIGHTS[-1])),
        image_merged=pictures.path("merged"),
        merged_checkpoint=merged.checkpoint,
        lora_pixel_difference=largest_difference(without.image, with_lora.image),
        merge_pixel_difference=merged.difference,
        merge_latent_difference=float((with_lora.latent - merged.image.latent).abs().max()),
        changes=weighed.changes,
        seconds=time.monotonic() - began,
    )


def _prepare_dataset(demo: _Demo) -> Path:
    """Pictures with captions, and for a character regularization images."""
    plan = demo.plan
    demo.reach("dataset", trigger=plan.trigger)
    dataset = copy_dataset(plan, demo.folder / "dataset")
    if plan.regularization_prompts:
        demo.reach("regularization", images=len(plan.regularization_prompts))
        place = dataset / "regularization_images"
        paint_regularization(
            demo.checkpoint, plan, place, painter=demo.painter, listener=demo.listener, control=demo.control
        )
    demo.reach("prepared", folder=str(dataset))
    return dataset


def _train(demo: _Demo, dataset: Path, epochs: int) -> _Trained:
    demo.reach("training", lr=demo.plan.lr)
    previews: list[PreviewSaved] = []

    def listen(event: Event) -> None:
        if isinstance(event, PreviewSaved):
            previews.append(event)
        demo.listener(event)

    settings = training_settings(
        demo.plan, demo.checkpoint, dataset, demo.folder / "runs", epochs=epochs, previews=True
    )
    with one_thread():
        result = run_training(settings, listener=listen, control=demo.control)
    heed(demo.control)
    if result.lora is None:
        raise OutputError("the training was stopped before it saved a LoRA", "run the demo again in another folder")
    demo.reach(
        "trained",
        losses=[mean for _, mean in read_curves(RunLog(result.folder).events()).means],
        curves=str(result.folder / CURVES_NAME),
        lora=str(result.lora),
        bytes=result.lora.stat().st_size,
        checkpoint_bytes=demo.checkpoint.stat().st_size,
    )
    return _Trained(result.folder, result.lora, tuple(previews))


def _paint_by_weight(demo: _Demo, lora: Path) -> _Weighed:
    """The same prompts with more and more of the LoRA: each row has one seed."""
    demo.reach("weights")
    pictures = demo.pictures(demo.folder / "images", lora.parent)
    rows = tuple(
        tuple(paint_row(pictures, demo.checkpoint, prompt, lora.stem, number))
        for number, prompt in enumerate(demo.prompts)
    )
    sheet = weights_sheet(demo.folder, demo.plan, demo.prompts, rows)
    changes = tuple(mean_difference(row[0].image, row[-1].image) for row in rows)
    called, others = changes[: len(demo.plan.prompts)], changes[len(demo.plan.prompts) :]
    demo.reach(
        "weighed",
        sheet=str(sheet),
        trigger=demo.plan.trigger,
        changed_with_trigger=fmean(called),
        changed_without=fmean(others) if others else None,
    )
    return _Weighed(rows, sheet, changes)


def _merge(demo: _Demo, lora: Path, weighed: _Weighed) -> _Merged:
    """The LoRA in a checkpoint of its own, which is to paint the same picture."""
    demo.reach("merge")
    output = demo.folder / "checkpoint" / f"demo-sd1-{demo.plan.name}.safetensors"
    report = merge_loras(
        demo.checkpoint,
        [weighted_lora(lora, unet=WEIGHTS[-1], text_encoder=WEIGHTS[-1])],
        output,
        precision="float",
        listener=demo.listener,
        control=demo.control,
    )
    (image,) = demo.pictures(demo.folder / "images", lora.parent).paint(output, {"merged": (demo.prompts[0], SEED)})
    without, with_lora = weighed.rows[0][0], weighed.rows[0][-1]
    difference = largest_difference(with_lora.image, image.image)
    sheet = demo.folder / "sheets" / "merge.png"
    write_sheet(
        sheet,
        [[without.image, with_lora.image, image.image]],
        columns=("the checkpoint", "with the LoRA on the fly", "the merged checkpoint"),
        title=demo.prompts[0],
    )
    demo.reach(
        "merged",
        changed=report.changed,
        tensors=report.tensors,
        checkpoint=str(output),
        difference=difference,
        sheet=str(sheet),
    )
    return _Merged(output, sheet, image, difference)
