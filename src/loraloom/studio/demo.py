"""The demo: the whole job on real drawings, in the order of the LoRA guide, in a folder that stays.

Two plans: a style (two dozen OpenMoji drawings) and a character (Noto's cat faces, with regularization images).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageChops, ImageStat

from loraloom.actions import Action, Sentence
from loraloom.control import Control, heed, keep_going
from loraloom.errors import OutputError
from loraloom.events import Event, Listener, PreviewSaved, ignore
from loraloom.formats.files import make_folder, size_text, write_text
from loraloom.formats.image_info import save_image
from loraloom.formats.room import Need, require_room
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.sheets import draw_sheet
from loraloom.generation.text_to_image import GeneratedImage, paint_each
from loraloom.hardware import choose_device, one_thread
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.studio.curves import CURVES_NAME, read_curves, sparkline
from loraloom.studio.embedded import write_checkpoint
from loraloom.studio.runs.log import RunLog
from loraloom.studio.runs.training import run_training
from loraloom.studio.stopping import heeding
from loraloom.studio.weights import merge_loras
from loraloom.training.settings import TrainSettings

__all__ = [
    "CHARACTER",
    "STYLE",
    "DemoPlan",
    "DemoResult",
    "Painter",
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
    """Prompts that are no captions x weights of the LoRA."""
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
class _Doors:
    """How the demo speaks to whoever started it."""

    listener: Listener
    say: Callable[[str], None]
    show_dataset: Callable[[Path], None]
    control: Control

    @property
    def heeding(self) -> Listener:
        """The listener of all but the training, which ends well by itself: a stop that is asked for is heard."""
        return heeding(self.listener, self.control)

    def go_on(self) -> None:
        """Wait out a pause, and raise Interrupted when the end was asked for."""
        heed(self.control)


def run_demo(
    folder: Path,
    *,
    plan: DemoPlan = STYLE,
    listener: Listener = ignore,
    say: Callable[[str], None] = lambda text: None,
    show_dataset: Callable[[Path], None] = lambda folder: None,
    epochs: int | None = None,
    control: Control = keep_going,
) -> DemoResult:
    """Prepare a dataset, train a LoRA on it, use it on the fly, merge it; everything lands in ``folder``, a new one.

    ``say`` gets the explanations, ``show_dataset`` is asked to show the report on the dataset. Left out, ``epochs``
    are those of the plan. Raises Interrupted at the next event once ``control`` asks for the end; what is finished
    stays. Raises OutputError for a folder that is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already", Sentence(Action.NAME_DEMO_FOLDER))
    require_room([Need(folder, DEMO_BYTES, "checkpoints, LoRAs, pictures")], listener)
    make_folder(folder)
    doors = _Doors(listener, say, show_dataset, control)
    return _whole_job(folder, plan, epochs or plan.epochs, doors)


def _whole_job(folder: Path, plan: DemoPlan, epochs: int, doors: _Doors) -> DemoResult:
    began = time.monotonic()
    checkpoint = _explain_checkpoint(folder, doors)
    base = load_model(checkpoint, device=choose_device())
    dataset = _prepare_dataset(folder, plan, base, doors)
    run, lora, previews = _train(folder, plan, checkpoint, dataset, epochs, doors)
    epochs_sheet = _epochs_sheet(folder, plan, previews)

    say = doors.say
    say("5. What came of it")
    say(
        "   The same prompts with more and more of the LoRA, on the fly: <lora:NAME:WEIGHT> in the prompt. Each row has"
    )
    say("   one seed, so all that differs in it is the weight. None of these prompts is a caption of the dataset.")
    painter = Painter(folder / "images", lora.parent, doors.heeding)
    prompts = (*plan.prompts, *plan.control_prompts)
    rows = [_paint_row(painter, base, prompt, lora.stem, number) for number, prompt in enumerate(prompts)]
    weights_sheet = _weights_sheet(folder, plan, prompts, rows)
    say(f"   {weights_sheet}")
    changes = tuple(_mean_difference(row[0].image, row[-1].image) for row in rows)
    if plan.control_prompts:
        called, others = changes[: len(plan.prompts)], changes[len(plan.prompts) :]
        say(f"   With the trigger word {plan.trigger!r} the pictures change by {fmean(called):.0f} of 255 in the mean,")
        say(f"   without it by {fmean(others):.0f}: that is what the regularization images are for.")

    say("   The same LoRA merged: a checkpoint of its own that needs no LoRA, and paints the same picture.")
    without, with_lora = rows[0][0], rows[0][-1]
    merged = folder / "checkpoint" / f"demo-sd1-{plan.name}.safetensors"
    doors.go_on()
    report = merge_loras(checkpoint, [f"{lora}:{WEIGHTS[-1]:g}"], merged, precision="float", listener=doors.heeding)
    (from_merged,) = painter.paint(load_model(merged, device=choose_device()), {"merged": (prompts[0], SEED)})
    difference = _largest_difference(with_lora.image, from_merged.image)
    merge_sheet = folder / "sheets" / "merge.png"
    _write_sheet(
        merge_sheet,
        [[without.image, with_lora.image, from_merged.image]],
        columns=("the checkpoint", "with the LoRA on the fly", "the merged checkpoint"),
        title=prompts[0],
    )
    say(f"   {report.changed} of {report.tensors} tensors changed: {merged}")
    say(f"   Its picture differs from the one on the fly by at most {difference} of 255: {merge_sheet}")
    return DemoResult(
        folder=folder,
        checkpoint=checkpoint,
        lora=lora,
        previews=tuple(Path(preview.path) for preview in previews),
        curves=run / CURVES_NAME,
        epochs_sheet=epochs_sheet,
        weights_sheet=weights_sheet,
        merge_sheet=merge_sheet,
        image_without=painter.path(_image_name(0, WEIGHTS[0])),
        image_with=painter.path(_image_name(0, WEIGHTS[-1])),
        image_merged=painter.path("merged"),
        merged_checkpoint=merged,
        lora_pixel_difference=_largest_difference(without.image, with_lora.image),
        merge_pixel_difference=difference,
        merge_latent_difference=float((with_lora.latent - from_merged.latent).abs().max()),
        changes=changes,
        seconds=time.monotonic() - began,
    )


def _explain_checkpoint(folder: Path, doors: _Doors) -> Path:
    """Chapters 1 and 2 of the guide: what a LoRA is, how it is used."""
    checkpoint = make_checkpoint(folder / "checkpoint" / "demo-sd1.safetensors")
    size = size_text(checkpoint.stat().st_size)
    say = doors.say
    say("1. What a LoRA is: a small file that teaches a Stable Diffusion checkpoint something new")
    say("   The checkpoint itself stays as it is; beside the layers of its U-Net and its text encoder small pairs of")
    say("   matrices are trained. Your checkpoint will be a real one. The demo's comes with the package, in the file")
    say("   layout of a real one: tiny, trained from scratch on emoji drawings, it knows a hundred simple things.")
    say(f"   {checkpoint} ({size})")
    say("2. How it is used: on the fly, with a weight you choose for each picture, or merged into a checkpoint")
    say("   On the fly is the recommended way, since the weight stays free. Step 5 does both.")
    return checkpoint


def _prepare_dataset(folder: Path, plan: DemoPlan, base: LoadedModel, doors: _Doors) -> Path:
    """Chapter 3: pictures with captions, and for a character regularization images."""
    say = doors.say
    say("3. Preparing a dataset: pictures with captions in a folder n_name, where n is the number of repeats")
    say(f"   Each caption says what is to be seen, and has a word of its own for what is taught: {plan.trigger!r}.")
    say("   That is the trigger word, by which you call it in a prompt later.")
    dataset = copy_dataset(plan, folder / "dataset")
    if plan.regularization_prompts:
        count = len(plan.regularization_prompts)
        say(f"   Regularization images: {count} pictures that the checkpoint itself paints of things of that kind")
        say("   without the trigger word (at least as many as training images). They show the LoRA what must not")
        say("   change. Their captions are the prompts they were painted from.")
        paint_regularization(base, plan, dataset / "regularization_images", listener=doors.heeding)
    doors.show_dataset(dataset)
    return dataset


def _train(
    folder: Path, plan: DemoPlan, checkpoint: Path, dataset: Path, epochs: int, doors: _Doors
) -> tuple[Path, Path, list[PreviewSaved]]:
    """Chapter 4: the training. Returns the run's folder, the LoRA and the previews."""
    say = doors.say
    say("4. Training: show a picture with noise added, ask the model which noise, correct the LoRA a little; repeat")
    say(f"   Learning rate {plan.lr:g}, far more than the 1e-4 that suits a real checkpoint: this one is tiny, and")
    say("   minutes are short. After each epoch the LoRA is saved and the same pictures are painted from the same")
    say("   seeds; compare them, and take the epoch you like best.")
    previews: list[PreviewSaved] = []

    def listen(event: Event) -> None:
        if isinstance(event, PreviewSaved):
            previews.append(event)
        doors.listener(event)

    settings = training_settings(plan, checkpoint, dataset, folder / "runs", epochs=epochs, previews=True)
    with one_thread():
        result = run_training(settings, listener=listen, control=doors.control)
    doors.go_on()
    if result.lora is None:
        raise OutputError("the training was ended without a LoRA", "run the demo again in another folder")
    curves = read_curves(RunLog(result.folder).events())
    values = [mean for _, mean in curves.means]
    say(f"   The loss, averaged: {values[0]:.3f} {sparkline(values)} {values[-1]:.3f}")
    say(
        "   It jumps from step to step, since some noise is easier to see than other; only its average means something,"
    )
    say("   and a low one does not prove that the pictures are good. Look at them as well.")
    say(f"   {result.folder / CURVES_NAME}")
    size, whole = (size_text(path.stat().st_size) for path in (result.lora, checkpoint))
    say(f"   {result.lora} ({size}; the checkpoint: {whole})")
    return result.folder, result.lora, previews


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
class Painter:
    """Paints the demo's pictures into a folder: one size and sampler, fp32."""

    folder: Path
    lora_folder: Path
    listener: Listener = ignore

    def path(self, name: str) -> Path:
        """Where a picture is saved."""
        return self.folder / f"{name}.png"

    def paint(self, model: LoadedModel, wanted: Mapping[str, tuple[str, int]]) -> list[GeneratedImage]:
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
        painted = paint_each(model, settings, each, listener=self.listener)
        for name, image in zip(wanted, painted, strict=True):
            save_image(image.image, self.path(name), image.infotext)
            images.append(image)
        return images


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
    model: LoadedModel, plan: DemoPlan, folder: Path, *, listener: Listener = ignore
) -> list[Path]:
    """Paint a plan's regularization images with the bare checkpoint, each with its prompt as caption."""
    painter = Painter(folder, folder, listener)
    for number, prompt in enumerate(plan.regularization_prompts):
        painter.paint(model, {f"{number:02d}": (prompt, REGULARIZATION_SEED + number)})
        write_text(folder / f"{number:02d}.txt", prompt + "\n")
    return [painter.path(f"{number:02d}") for number in range(len(plan.regularization_prompts))]


def _image_name(row: int, weight: float) -> str:
    return f"row{row + 1}_weight_{weight:g}"


def _paint_row(painter: Painter, model: LoadedModel, prompt: str, lora: str, row: int) -> list[GeneratedImage]:
    """One prompt and seed with all weights; 0 is the checkpoint alone."""
    tags = {weight: f" <lora:{lora}:{weight:g}>" if weight else "" for weight in WEIGHTS}
    return painter.paint(model, {_image_name(row, weight): (prompt + tag, SEED + row) for weight, tag in tags.items()})


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
