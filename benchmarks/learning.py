"""What a LoRA learns, measured on pictures: a style, a character, by which part, at which learning rate.

    python benchmarks/learning.py [--parts style character parts rates] [--checkpoint FILE] [--folder WORK]
                                  [--epochs N] [--seed N] [--name NAME]

Trains the demo's plans on the small checkpoint that comes with the package (or another of its kind), paints things that
were never in the dataset, and judges the pictures by tools/embedded_base/features.py. ``rates`` is the central
experiment of the LoRA guide, one run for each learning rate, with the loss on drawings that were held out. Sheets and
runs are left in WORK. Processor time is about two minutes for each run and half a second for each picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools" / "embedded_base")]

from features import features, outlined
from harness import record

from loraloom.generation.settings import GenerateSettings
from loraloom.generation.sheets import draw_sheet
from loraloom.generation.text_to_image import text_to_image
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.studio.demo import (
    CHARACTER,
    GUIDANCE,
    RESOLUTION_PX,
    SAMPLER,
    STEPS,
    STYLE,
    WEIGHTS,
    DemoPlan,
    copy_dataset,
    make_checkpoint,
    paint_regularization,
    training_settings,
)
from loraloom.studio.painter import Painter
from loraloom.studio.runs.training import run_training
from loraloom.training.step import Batch, Objective, training_loss

REFERENCE = ROOT / "tests" / "data_files" / "embedded_base"
HELD_OUT = {path.stem.split(" ", 1)[1]: path for path in sorted((REFERENCE / "openmoji").glob("*.png"))}
"""OpenMoji's drawings of things of the base's world that the style's dataset does not show."""
SEED = 1000
CALLS = (
    "a mewo cat on a red background", "a mewo cat on an orange background", "a mewo cat on a white background",
    "a mewo cat, sleeping, on a blue background",
)  # fmt: skip
"""Prompts with the character's trigger word; all but one on backgrounds that its dataset does not show."""
OTHERS = (
    "a cat on a yellow background", "a dog face on a white background", "a lion face on a white background",
    "a grinning face on a white background", "a horse on a blue background", "a tomato on a white background",
)  # fmt: skip
"""Prompts without it, from near to far."""


@dataclass(frozen=True)
class Pictures:
    """Paints with one checkpoint; pictures of the first prompt have the seeds ``seed``, ``seed`` + 1, ..."""

    checkpoint: Path
    seed: int = SEED

    @cached_property
    def model(self) -> LoadedModel:
        """The checkpoint, on the CPU: figures of different machines are then comparable."""
        return load_model(self.checkpoint, device=torch.device("cpu"))

    def paint(
        self, prompts: Sequence[str], *, seeds: int = 1, lora: Path | None = None, weight: float = 1.0
    ) -> list[Image.Image]:
        """``seeds`` pictures of each prompt, in order; with ``lora`` None without any tag."""
        tag = "" if lora is None else f" <lora:{lora.stem}:{weight:g}>"
        images = []
        for number, prompt in enumerate(prompts):
            settings = GenerateSettings(
                prompt=prompt + tag,
                width=RESOLUTION_PX,
                height=RESOLUTION_PX,
                steps=STEPS,
                sampler=SAMPLER,
                cfg_scale=GUIDANCE,
                seed=self.seed + 100 * number,
                count=seeds,
                batch_size=seeds,
                lora_folders=() if lora is None else (lora.parent,),
            )
            images += [painted.image for painted in text_to_image(self.model, settings)]
        return images

    def as_shown(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """The images through the checkpoint's autoencoder: the most that it could paint of them."""
        shown = []
        with torch.no_grad():
            for image in images:
                pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1)
                decoded = self.model.decode_latents(self.model.encode_images(pixels[None])[0])[0].clamp(-1, 1)
                shown.append(Image.fromarray(((decoded + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().copy()))
        return shown


class Judge:
    """Knows what the things of the checkpoint's world look like, as Noto and as OpenMoji draw them.

    Both: by Noto's drawings alone not even OpenMoji's own would be named reliably.
    """

    def __init__(self) -> None:
        with np.load(REFERENCE / "drawings.npz") as data:
            self.names = [str(name) for name in data["names"]] * 2
            self.vectors = np.concatenate([data[f"{kind}_vectors"] for kind in ("noto", "openmoji")]).astype(np.float32)
            self.outlined = {kind: data[f"{kind}_outlined"] for kind in ("noto", "openmoji")}

    def nearest(self, image: Image.Image) -> str:
        """The name of the drawing most like the image; empty for the character's faces."""
        return self.names[int((self.vectors @ features(image)).argmax())]

    def five_nearest(self, image: Image.Image) -> list[str]:
        """The names of the five things whose drawings are most like the image."""
        order = [self.names[index] for index in (self.vectors @ features(image)).argsort()[::-1][:20]]
        return list(dict.fromkeys(order))[:5]

    def among_five(self, images: Sequence[Image.Image], names: Sequence[str]) -> float:
        """Share of the images whose name is among those of the five nearest things."""
        return float(np.mean([name in self.five_nearest(image) for image, name in zip(images, names, strict=True)]))

    def named(self, images: Sequence[Image.Image], names: Sequence[str]) -> float:
        """Share of the images whose nearest drawing is that of their name."""
        return float(np.mean([self.nearest(i) == name for i, name in zip(images, names, strict=True)]))


def style_score(images: Sequence[Image.Image]) -> float:
    """Mean share of the edge that is outlined in black: OpenMoji's style."""
    return float(np.mean([outlined(image) for image in images]))


def drift(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
    """Mean absolute difference of pixels, of 255."""
    pairs = zip(before, after, strict=True)
    return float(np.mean([np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean() for a, b in pairs]))


def train_plan(
    plan: DemoPlan, pictures: Pictures, folder: Path, *, epochs: int | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Train a plan of the demo as the demo does, without previews; ``folder`` is a new one. Returns the LoRA."""
    dataset = copy_dataset(plan, folder / "dataset")
    if plan.regularization_prompts:
        paint_regularization(pictures.checkpoint, plan, dataset / "regularization_images", painter=Painter())
    settings = training_settings(
        plan, pictures.checkpoint, dataset, folder / "runs", epochs=epochs, overrides=["device=cpu", *overrides]
    )
    lora = run_training(settings).lora
    assert lora is not None, "nobody asked the run to end early"
    return lora


def style_prompts(count: int) -> tuple[list[str], list[str]]:
    """(prompts with the trigger word, names) of held-out things."""
    names = list(HELD_OUT)[:count]
    return [f"{STYLE.trigger}, {_a(name)} on a white background" for name in names], names


def measure_style(pictures: Pictures, lora: Path, *, count: int = 24, few: int = 12) -> dict[str, Any]:
    """Style and naming by weight; the weights between 0 and 1 are measured on the first ``few`` prompts only."""
    judge = Judge()
    prompts, names = style_prompts(count)
    without = pictures.paint(prompts)
    painted = {
        weight: pictures.paint(prompts if weight in (0.0, 1.0) else prompts[:few], lora=lora, weight=weight)
        for weight in WEIGHTS
    }
    drawings = [Image.open(HELD_OUT[name]).convert("RGB") for name in names]
    real = style_score(drawings)
    base, styled = style_score(without), style_score(painted[1.0])
    return {
        "weight_0_equals_base": all(a.tobytes() == b.tobytes() for a, b in zip(without, painted[0.0], strict=True)),
        "base_score": round(base, 4),
        "score_at_weight_1": round(styled, 4),
        "openmoji_score": round(real, 4),
        "openmoji_score_through_autoencoder": round(style_score(pictures.as_shown(drawings)), 4),
        "share_of_the_way": round((styled - base) / (real - base), 3),
        "scores_by_weight": {f"{weight:g}": round(style_score(painted[weight][:few]), 4) for weight in WEIGHTS},
        "named_base": round(judge.named(without, names), 3),
        "named_at_weight_1": round(judge.named(painted[1.0], names), 3),
        "among_five_base": round(judge.among_five(without, names), 3),
        "among_five_at_weight_1": round(judge.among_five(painted[1.0], names), 3),
        "_sheet": ([[painted[weight][row] for weight in WEIGHTS] for row in range(few)], prompts[:few], WEIGHTS),
    }


def measure_character(pictures: Pictures, lora: Path, *, seeds: int = 6) -> dict[str, Any]:
    """How often the trigger word calls the cat, and what changes without it."""
    judge = Judge()
    faces = [judge.nearest(image) == "" for image in pictures.paint(CALLS, seeds=seeds, lora=lora)]
    before, after = pictures.paint(OTHERS, seeds=seeds), pictures.paint(OTHERS, seeds=seeds, lora=lora)
    base_calls, calls = pictures.paint(CALLS, seeds=1), pictures.paint(CALLS, seeds=1, lora=lora)
    likeness = [float(features(a) @ features(b)) for a, b in zip(before, after, strict=True)]
    rows = [[a, b] for a, b in zip(base_calls, calls, strict=True)]
    rows += [[before[i], after[i]] for i in range(0, len(before), seeds)]
    return {
        "cat_with_trigger": round(float(np.mean(faces)), 3),
        "cat_without_trigger": round(float(np.mean([judge.nearest(image) == "" for image in after])), 3),
        "cat_in_base": round(float(np.mean([judge.nearest(image) == "" for image in before])), 3),
        "drift_with_trigger": round(drift(base_calls, calls), 2),
        "drift_without_trigger": round(drift(before, after), 2),
        "likeness_without_trigger": round(float(np.mean(likeness)), 3),
        "_sheet": (rows, [*CALLS, *OTHERS], ("base", "LoRA")),
    }


def validation_loss(model: LoadedModel, drawings: dict[str, Image.Image], *, draws: int = 8) -> float:
    """Mean loss on captioned drawings, each ``draws`` times with noise and timesteps that never change."""
    objective = Objective(model.schedule, model.prediction, SEED)
    losses = []
    with torch.no_grad():
        for caption, image in drawings.items():
            pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1)
            latent = model.encode_images(pixels[None])[0]
            batch = Batch(
                latents=latent.repeat(draws, 1, 1, 1),
                conditioning=model.encode_text([caption] * draws),
                weights=torch.ones(draws),
                keys=[("validation", caption, draw) for draw in range(draws)],
            )
            losses.append(float(training_loss(model, batch, objective).mean()))
    return float(np.mean(losses))


def held_out_drawings() -> dict[str, Image.Image]:
    """OpenMoji's drawings of the held-out things by caption."""
    prompts, names = style_prompts(len(HELD_OUT))
    return {prompt: Image.open(HELD_OUT[name]).convert("RGB") for prompt, name in zip(prompts, names, strict=True)}


def with_lora(model: LoadedModel, lora: Path, measure: Callable[[], float]) -> float:
    """What ``measure`` says while the LoRA is on the model at weight 1."""
    from loraloom.generation.loras import attached, load_lora
    from loraloom.generation.prompts import extract_loras

    (tag,) = extract_loras(f"<lora:{lora.stem}:1>")[1]
    with attached(model, [load_lora(tag, (lora.parent,), model)]):
        return measure()


def compare_parts(pictures: Pictures, folder: Path, epochs: int | None) -> dict[str, Any]:
    """The style learned by the U-Net only, the text encoder only, both."""
    overrides = {
        "unet": ["adapter.text_encoder=false"],
        "text_encoder": ["adapter.unet=false", "adapter.conv_rank=0"],
        "both": [],
    }
    found = {}
    plan = dataclasses.replace(STYLE, text_encoder_lr=STYLE.lr / 2)
    for name, changed in overrides.items():
        lora = train_plan(plan, pictures, folder / name, epochs=epochs, overrides=changed)
        found[name] = measure_style(pictures, lora, count=12)
        write_sheet(folder / f"{name}.png", found[name].pop("_sheet"), title=f"style, trained: {name}")
    return found


def compare_rates(
    pictures: Pictures,
    folder: Path,
    epochs: int | None,
    rates: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2),
) -> dict[str, Any]:
    """The guide's experiment: the same dataset, seeds and prompts, one run for each learning rate."""
    judge = Judge()
    prompts, names = style_prompts(8)
    found: dict[str, dict[str, float]] = {}
    columns = []
    base = pictures.paint(prompts)
    drawings = held_out_drawings()
    found["base"] = {"validation_loss": round(validation_loss(pictures.model, drawings), 5)}
    for rate in rates:
        plan = dataclasses.replace(STYLE, lr=rate, text_encoder_lr=rate)
        lora = train_plan(plan, pictures, folder / f"{rate:g}", epochs=epochs)
        columns.append(pictures.paint(prompts, lora=lora))
        loss = with_lora(pictures.model, lora, lambda: validation_loss(pictures.model, drawings))
        found[f"{rate:g}"] = {
            "score_at_weight_1": round(style_score(columns[-1]), 4),
            "named_at_weight_1": round(judge.named(columns[-1], names), 3),
            "validation_loss": round(loss, 5),
        }
    cells = [[base[row], *(column[row] for column in columns)] for row in range(len(prompts))]
    write_sheet(folder / "rates.png", (cells, prompts, ["no LoRA", *rates]), title="learning rate")
    trained = {name: figures for name, figures in found.items() if name != "base"}
    return {
        "rates": found,
        "best_by": {
            "style_score": max(trained, key=lambda name: trained[name]["score_at_weight_1"]),
            "validation_loss": min(trained, key=lambda name: trained[name]["validation_loss"]),
        },
    }


def write_sheet(path: Path, sheet: tuple[Sequence[Any], Sequence[str], Sequence[Any]], *, title: str) -> None:
    """Save (cells, rows, columns) as a labelled sheet."""
    cells, rows, columns = sheet
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [column if isinstance(column, str) else f"{column:g}" for column in columns]
    draw_sheet(cells, rows=rows, columns=labels, title=title, text_px=13).save(path)


def _a(name: str) -> str:
    return name if name == "cherries" else f"an {name}" if name[0] in "aeiou" else f"a {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["style", "character", "parts", "rates"])
    parser.add_argument("--checkpoint", type=Path, help="left out: the one that comes with the package")
    parser.add_argument("--folder", type=Path, default=Path("learning"), help="a new folder for runs and sheets")
    parser.add_argument("--epochs", type=int, help="of each run; left out: the demo's")
    parser.add_argument("--seed", type=int, default=SEED, help="of the first picture")
    parser.add_argument("--name", default="learning", help="of the file of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    pictures = Pictures(arguments.checkpoint or make_checkpoint(folder / "base.safetensors"), arguments.seed)
    figures: dict[str, Any] = {"what": __doc__.splitlines()[0], "epochs": arguments.epochs or "the demo's"}
    figures["seed"] = arguments.seed
    began = time.process_time()
    if "style" in arguments.parts:
        figures["style"] = measure_style(
            pictures, train_plan(STYLE, pictures, folder / "style", epochs=arguments.epochs)
        )
        write_sheet(folder / "style.png", figures["style"].pop("_sheet"), title="style: weight of the LoRA")
        print(figures["style"], flush=True)
    if "character" in arguments.parts:
        plans = {
            "with_regularization": CHARACTER,
            "without_regularization": dataclasses.replace(CHARACTER, regularization_prompts=()),
        }
        figures["character"] = {}
        for name, plan in plans.items():
            found = measure_character(pictures, train_plan(plan, pictures, folder / name, epochs=arguments.epochs))
            write_sheet(folder / f"{name}.png", found.pop("_sheet"), title=f"character, {name.replace('_', ' ')}")
            figures["character"][name] = found
            print(name, found, flush=True)
    if "parts" in arguments.parts:
        figures["parts"] = compare_parts(pictures, folder / "parts", arguments.epochs)
        print(figures["parts"], flush=True)
    if "rates" in arguments.parts:
        figures["rates"] = compare_rates(pictures, folder / "rates", arguments.epochs)
    figures["processor_s"] = round(time.process_time() - began)
    record(arguments.name, figures)


if __name__ == "__main__":
    main()
