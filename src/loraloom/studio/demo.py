"""The demo: the whole job on real drawings, in the order of the LoRA guide, in a folder that stays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image, ImageChops

from loraloom.errors import OutputError
from loraloom.events import Listener, ignore
from loraloom.formats.image_info import save_image
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import GeneratedImage, text_to_image
from loraloom.hardware import choose_device, one_thread
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.studio.embedded import write_checkpoint
from loraloom.studio.training import StopRequest, run_training
from loraloom.studio.weights import merge_loras
from loraloom.training.settings import TrainSettings

__all__ = ["DemoResult", "run_demo"]

SUBJECT = "a red balloon on a white background"
TRIGGER = "openmoji"
RESOLUTION_PX = 128
WEIGHT = 0.8
GUIDANCE = 3.0  # what suits the small checkpoint; real ones want about 7


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and how far the merged checkpoint's image is from the on-the-fly one."""

    folder: Path
    checkpoint: Path
    lora: Path
    previews: tuple[Path, ...]
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
    seconds: float


def run_demo(
    folder: Path,
    *,
    listener: Listener = ignore,
    say: Callable[[str], None] = lambda text: None,
    show_dataset: Callable[[Path], None] = lambda folder: None,
    epochs: int = 4,
    stop: StopRequest | None = None,
) -> DemoResult:
    """Prepare a dataset, train a LoRA on it, use it on the fly, merge it; everything lands in ``folder``, a new one.

    ``say`` gets the explanations, ``show_dataset`` is asked to show the report on the dataset.
    """
    began = time.monotonic()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already", "name another folder: loraloom demo FOLDER")
    folder.mkdir(parents=True, exist_ok=True)

    with one_thread():
        return _whole_job(folder, listener, say, show_dataset, epochs, stop, began)


def _whole_job(
    folder: Path,
    listener: Listener,
    say: Callable[[str], None],
    show_dataset: Callable[[Path], None],
    epochs: int,
    stop: StopRequest | None,
    began: float,
) -> DemoResult:
    say(
        "1. A checkpoint. Yours will be a real Stable Diffusion model; this one has the same file layout and comes with"
    )
    say("   the package: tiny, trained from scratch on the Noto emoji drawings, it paints simple things roughly.")
    checkpoint = make_checkpoint(folder / "checkpoint" / "demo-sd1.safetensors")
    say(f"   {checkpoint}")

    say("2. A dataset: drawings with captions in a folder n_name, where n is the number of repeats.")
    dataset = copy_drawings(folder / "dataset")
    show_dataset(dataset)

    say("3. Training, with previews. In your own run: loraloom train checkpoint=... dataset.folder=...")
    settings = TrainSettings.load(
        None,
        [
            f"checkpoint={_quoted(checkpoint)}",
            f"output={_quoted(folder / 'runs')}",
            f"name={TRIGGER}-style",
            f"dataset.folder={_quoted(dataset)}",
            f"dataset.resolution={RESOLUTION_PX}",
            f"epochs={epochs}",
            "batch_size=4",
            f"preview.cfg_scale={GUIDANCE}",
            "optimizer.lr=1e-3",
            "adapter.rank=8",
            f"saving.trigger={TRIGGER}",
            f"preview.prompts=['{TRIGGER}, {SUBJECT}', '{TRIGGER}, a red apple on a white background']",
        ],
    )
    result = run_training(settings, listener=listener, stop=stop)

    say("4. The LoRA on the fly, in text-to-image: the same prompt and seed without and with it.")

    prompt = f"{TRIGGER}, {SUBJECT}"
    painter = Painter(folder / "images", lora_folder=result.lora.parent)
    base = painter.load(checkpoint)
    without = painter.paint(base, "without.png", prompt)
    with_lora = painter.paint(base, "with.png", f"{prompt} <lora:{result.lora.stem}:{WEIGHT}>")

    say("5. The LoRA merged into the checkpoint: a model of its own that needs no LoRA.")
    merged = folder / "checkpoint" / "demo-sd1-openmoji.safetensors"
    report = merge_loras(checkpoint, [f"{result.lora}:{WEIGHT}"], merged, precision="float")
    say(f"   {report.changed} of {report.tensors} tensors changed: {merged}")
    from_merged = painter.paint(painter.load(merged), "merged.png", prompt)

    return DemoResult(
        folder=folder,
        checkpoint=checkpoint,
        lora=result.lora,
        previews=tuple(sorted((result.folder / "previews").iterdir())),
        image_without=painter.folder / "without.png",
        image_with=painter.folder / "with.png",
        image_merged=painter.folder / "merged.png",
        merged_checkpoint=merged,
        lora_pixel_difference=_pixel_difference(without.image, with_lora.image),
        merge_pixel_difference=_pixel_difference(with_lora.image, from_merged.image),
        merge_latent_difference=float((with_lora.latent - from_merged.latent).abs().max()),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class Painter:
    """Paints the demo's pictures: one size, one seed, fp32."""

    folder: Path
    lora_folder: Path

    def load(self, checkpoint: Path) -> LoadedModel:
        """The checkpoint on the best device."""
        return load_model(checkpoint, device=choose_device())

    def paint(self, model: LoadedModel, name: str, prompt: str) -> GeneratedImage:
        """Paint and save one picture."""
        settings = GenerateSettings(
            prompt=prompt,
            width=RESOLUTION_PX,
            height=RESOLUTION_PX,
            sampler="DPM++ 2M Karras",
            cfg_scale=GUIDANCE,
            seed=42,
            lora_folders=(self.lora_folder,),
        )
        painted = text_to_image(model, settings)[0]
        self.folder.mkdir(exist_ok=True)
        save_image(painted.image, self.folder / name, painted.infotext)
        return painted


def make_checkpoint(path: Path) -> Path:
    """Write the small checkpoint that comes with the package as an ordinary SD 1.x file; the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with as_file(files("loraloom.studio") / "embedded_base.safetensors") as packaged:
        write_checkpoint(packaged, path)
    return path


def copy_drawings(folder: Path) -> Path:
    """Copy the drawings that come with the package, with their licence, into a dataset folder."""
    with as_file(files("loraloom.studio") / "drawings") as drawings:
        shutil.copytree(drawings, folder)
    return folder


def _quoted(path: Path) -> str:
    """A path as a TOML literal string, in which nothing needs escaping."""
    return f"'{path}'" if "'" not in str(path) else str(path)


def _pixel_difference(first: Image.Image, second: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(first, second).getextrema())  # type: ignore[misc]
