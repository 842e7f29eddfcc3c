"""The demo: the whole job on real drawings, in the order of the LoRA guide, in a folder that stays.

Two plans: a style (two dozen OpenMoji drawings) and a character (Noto's cat faces, with regularization images).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageChops, ImageStat

from loraloom.actions import Action, Sentence
from loraloom.control import Control, heed, keep_going
from loraloom.errors import OutputError
from loraloom.events import Event, Listener, Notice, PreviewSaved, StageReached, ignore
from loraloom.formats.files import make_folder, write_text
from loraloom.formats.image_info import save_image
from loraloom.formats.room import Need, require_room
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.sheets import draw_sheet
from loraloom.generation.text_to_image import GeneratedImage
from loraloom.hardware import one_thread
from loraloom.studio.curves import CURVES_NAME, read_curves
from loraloom.studio.embedded import write_checkpoint
from loraloom.studio.painter import Loading, Painter
from loraloom.studio.runs.log import RunLog
from loraloom.studio.runs.training import run_training
from loraloom.studio.weights import merge_loras, weighted_lora
from loraloom.training.settings import TrainSettings

__all__ = [
    "CHARACTER",
    "STAGES",
    "STYLE",
    "DemoPlan",
    "DemoResult",
    "Pictures",
    "copy_dataset",
    "make_checkpoint",
    "paint_regularization",
    "run_demo",
    "training_settings",
]

RESOLUTION_PX = 128
DEMO_BYTES = 120_000_000
"""What a demo leaves, rounded up."""
GUIDANCE = 3.0  # what suits the small checkpoint; real ones want about 7
SAMPLER = "DPM++ 2M SDE Karras"  # without fresh noise, backgrounds stay speckled
STEPS = 20
SEED = 42
REGULARIZATION_SEED = 7000
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
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
        return Pictures(folder, loras or folder, self.painter, self.listener, self.control)


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
    epochs_sheet = _epochs_sheet(folder, plan, trained.previews)
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
        epochs_sheet=epochs_sheet,
        weights_sheet=weighed.sheet,
        merge_sheet=merged.sheet,
        image_without=pictures.path(_image_name(0, WEIGHTS[0])),
        image_with=pictures.path(_image_name(0, WEIGHTS[-1])),
        image_merged=pictures.path("merged"),
        merged_checkpoint=merged.checkpoint,
        lora_pixel_difference=_largest_difference(without.image, with_lora.image),
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
        raise OutputError("the training was ended without a LoRA", "run the demo again in another folder")
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
        tuple(_paint_row(pictures, demo.checkpoint, prompt, lora.stem, number))
        for number, prompt in enumerate(demo.prompts)
    )
    sheet = _weights_sheet(demo.folder, demo.plan, demo.prompts, rows)
    changes = tuple(_mean_difference(row[0].image, row[-1].image) for row in rows)
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
    difference = _largest_difference(with_lora.image, image.image)
    sheet = demo.folder / "sheets" / "merge.png"
    _write_sheet(
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
            f"preview.steps={STEPS}",
            f"preview.seed={SEED}",
            *plan.overrides,
            *overrides,
        ],
    )


@dataclass(frozen=True)
class Pictures:
    """Paints the demo's pictures into a folder: one size and sampler, fp32."""

    folder: Path
    lora_folder: Path
    painter: Painter
    listener: Listener = ignore
    control: Control = keep_going

    def path(self, name: str) -> Path:
        """Where a picture is saved."""
        return self.folder / f"{name}.png"

    def paint(self, checkpoint: Path, wanted: Mapping[str, tuple[str, int]]) -> list[GeneratedImage]:
        """Paint and save pictures, each a name with its (prompt, seed), all in one pass through the model."""
        settings = GenerateSettings(
            width=RESOLUTION_PX,
            height=RESOLUTION_PX,
            steps=STEPS,
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


def make_checkpoint(path: Path) -> Path:
    """Write the small checkpoint that comes with the package as an ordinary SD 1.x file; the same bytes every time."""
    make_folder(path.parent)
    with as_file(files("loraloom.studio") / "embedded_base.safetensors") as packaged:
        write_checkpoint(packaged, path)
    return path


def copy_dataset(plan: DemoPlan, folder: Path) -> Path:
    """Copy the drawings of a plan that come with the package, with their licence, into a dataset folder."""
    with as_file(files("loraloom.studio") / plan.drawings) as drawings:
        shutil.copytree(drawings, folder)
    return folder


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
    pictures = Pictures(folder, folder, painter, listener, control)
    for number, prompt in enumerate(plan.regularization_prompts):
        pictures.paint(checkpoint, {f"{number:02d}": (prompt, REGULARIZATION_SEED + number)})
        write_text(folder / f"{number:02d}.txt", prompt + "\n")
    return [pictures.path(f"{number:02d}") for number in range(len(plan.regularization_prompts))]


def _image_name(row: int, weight: float) -> str:
    return f"row{row + 1}_weight_{weight:g}"


def _paint_row(pictures: Pictures, checkpoint: Path, prompt: str, lora: str, row: int) -> list[GeneratedImage]:
    """One prompt and seed with all weights; 0 is the checkpoint alone."""
    tags = {weight: f" <lora:{lora}:{weight:g}>" if weight else "" for weight in WEIGHTS}
    wanted = {_image_name(row, weight): (prompt + tag, SEED + row) for weight, tag in tags.items()}
    return pictures.paint(checkpoint, wanted)


def _weights_sheet(
    folder: Path, plan: DemoPlan, prompts: Sequence[str], rows: Sequence[Sequence[GeneratedImage]]
) -> Path:
    path = folder / "sheets" / "weights.png"
    columns = [f"{weight:g}" if weight else "0: no LoRA" for weight in WEIGHTS]
    cells = [[painted.image for painted in row] for row in rows]
    _write_sheet(path, cells, rows=prompts, columns=columns, title=f"{plan.name}: weight of the LoRA")
    return path


def _epochs_sheet(folder: Path, plan: DemoPlan, previews: Sequence[PreviewSaved]) -> Path:
    """The previews as rows of prompts and columns of epochs."""
    path = folder / "sheets" / "epochs.png"
    prompts = list(dict.fromkeys(preview.prompt for preview in previews))
    epochs = sorted({preview.epoch for preview in previews})
    cells: list[list[Image.Image | None]] = [[None] * len(epochs) for _ in prompts]
    for preview in previews:
        with Image.open(preview.path) as image:
            cells[prompts.index(preview.prompt)][epochs.index(preview.epoch)] = image.convert("RGB")
    columns = [f"epoch {epoch}" if epoch else "before training" for epoch in epochs]
    _write_sheet(path, cells, rows=prompts, columns=columns, title=f"{plan.name}: the same seeds after each epoch")
    return path


def _write_sheet(
    path: Path,
    cells: Sequence[Sequence[Image.Image | None]],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
) -> None:
    make_folder(path.parent)
    save_image(draw_sheet(cells, rows=rows, columns=columns, title=title, text_px=13), path, title)


def _quoted(path: Path) -> str:
    """A path as a TOML literal string, in which nothing needs escaping."""
    return f"'{path}'" if "'" not in str(path) else str(path)


def _largest_difference(first: Image.Image, second: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(first, second).getextrema())  # type: ignore[misc]


def _mean_difference(first: Image.Image, second: Image.Image) -> float:
    return fmean(ImageStat.Stat(ImageChops.difference(first, second)).mean)
