"""Masked training: is what the mask covers left unlearned, whether the mask is the alpha channel or a file?

    python benchmarks/masked_training.py [--folder WORK]

Every picture of the demo's style dataset gets a violet square in a corner, as a watermark would be, which no caption
mentions. The same LoRA is trained without masks, with the square transparent, and with mask files; then things that
were not in the dataset are painted. The figure is the share of the corner that is violet. One thread, about 6 minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import record
from learning import Pictures, style_prompts, write_sheet
from PIL import Image

from loraloom.studio.demo import STYLE, copy_dataset, make_checkpoint, training_settings
from loraloom.studio.runs.training import run_training

VIOLET = (150, 60, 200)
CORNER = 0.28
"""Side of the square as a share of the picture's."""
RIVALS = {
    "no LoRA": None,
    "no mask": [],
    "alpha channel": ["dataset.masks=alpha"],
    "mask files": ["dataset.masks=folder"],
}


def marked(folder: Path) -> None:
    """The demo's drawings with a violet square: as they are, with the square transparent, and masks of it."""
    for source in sorted(copy_dataset(STYLE, folder / "originals").glob("*_openmoji/*.png")):
        picture = Image.open(source).convert("RGB")
        side = round(CORNER * picture.width)
        box = (picture.width - side, picture.height - side, picture.width, picture.height)
        picture.paste(VIOLET, box)
        mask = Image.new("L", picture.size, 255)
        mask.paste(0, box)
        for kind in ("plain", "alpha", "masks"):
            (folder / kind / "10_openmoji").mkdir(parents=True, exist_ok=True)
        picture.save(folder / "plain" / "10_openmoji" / source.name)
        mask.save(folder / "masks" / "10_openmoji" / source.name)
        transparent = picture.copy()
        transparent.putalpha(mask)
        transparent.save(folder / "alpha" / "10_openmoji" / source.name)
        caption = source.with_suffix(".txt").read_text(encoding="utf-8")
        for kind in ("plain", "alpha"):
            (folder / kind / "10_openmoji" / source.with_suffix(".txt").name).write_text(caption, encoding="utf-8")


def violet_share(images: Sequence[Image.Image]) -> float:
    """Mean share of the corner's pixels that are nearer to violet than 80 of 255 (Euclidean)."""
    shares = []
    for image in images:
        pixels = np.asarray(image.convert("RGB"), np.float32)
        side = round(CORNER * pixels.shape[0])
        corner = pixels[-side:, -side:]
        shares.append(float((np.sqrt(((corner - np.array(VIOLET)) ** 2).sum(-1)) < 80).mean()))
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a new folder for runs and the sheet; left out: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = Pictures(make_checkpoint(folder / "base.safetensors"))
        marked(folder)
        prompts, _ = style_prompts(12)
        began = time.process_time()
        figures: dict[str, Any] = {}
        columns = []
        for name, masks in RIVALS.items():
            lora = None
            if masks is not None:
                dataset = folder / ("alpha" if name == "alpha channel" else "plain")
                more = [f"dataset.mask_folder='{folder / 'masks'}'"] if name == "mask files" else []
                settings = training_settings(
                    STYLE,
                    pictures.checkpoint,
                    dataset,
                    folder / "runs",
                    epochs=4,
                    # The demo learns from the lower timesteps alone, at which the layout is settled already.
                    overrides=["device=cpu", "objective.max_timestep=1000", *masks, *more],
                )
                settings = settings.model_copy(update={"name": name.replace(" ", "-")})
                lora = run_training(settings).lora
            columns.append(pictures.paint(prompts, lora=lora))
            figures[name] = round(violet_share(columns[-1]), 4)
            print(name, figures[name], flush=True)
        cells = [[column[row] for column in columns] for row in range(6)]
        write_sheet(folder / "masked.png", (cells, prompts[:6], list(RIVALS)), title="what the mask covers")
        record(
            "masked_training",
            {
                "what": __doc__.splitlines()[0],
                "violet_share_of_the_corner": figures,
                "prompts": len(prompts),
                "processor_s": round(time.process_time() - began),
            },
        )


if __name__ == "__main__":
    main()
