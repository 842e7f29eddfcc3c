"""Paint prompts with an exported checkpoint, through Loraloom's own pipeline, onto one sheet."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from drawings import read_concepts
from PIL import Image, ImageDraw
from torch import Tensor
from world import BACKGROUNDS, with_article

from loraloom.diffusion.objectives import denoised
from loraloom.diffusion.sampling.multistep import dpmpp_2m
from loraloom.diffusion.schedules import sampling_sigmas
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.randomness import normal


def paint(
    model: LoadedModel, prompts: list[str], *, steps: int = 20, guidance: float = 4.0, seed: int = 0, batch: int = 12
) -> list[Image.Image]:
    """One 128 x 128 image for each prompt."""
    images: list[Image.Image] = []
    sigmas = sampling_sigmas(model.schedule, "Karras", steps)
    empty = model.encode_text([""])
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        texts = [model.encode_text([prompt]) for prompt in part]
        both = Conditioning.stack([*texts, *[empty] * len(part)])

        def denoise(x: Tensor, sigma: Tensor, both: Conditioning = both) -> Tensor:
            timesteps = model.schedule.sigma_to_timestep(sigma)
            scaled = x / (1 + sigma.view(-1, 1, 1, 1).square()).sqrt()
            output = model.denoise(scaled.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
            wanted, plain = output.chunk(2)
            return denoised(model.prediction, plain + guidance * (wanted - plain), x, sigma)

        noise = torch.stack([normal((4, 16, 16), "sheet", seed, first + number) for number in range(len(part))])
        with torch.no_grad():
            latents = dpmpp_2m(denoise, noise * sigmas[0], sigmas, noise=lambda x, step: torch.zeros_like(x))
            pixels = model.decode_latents(latents)
        shown = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        images += [Image.fromarray(np.ascontiguousarray(image)) for image in shown]
    return images


def prompts_for_sheet(count: int = 48, last_stage: int = 2) -> list[str]:
    """The most frequent things first, on white and on coloured backgrounds in turn."""
    known = [concept for concept in read_concepts() if concept.stage <= last_stage]
    concepts = sorted(known, key=lambda concept: -concept.weight)
    colours = list(BACKGROUNDS)
    return [
        f"{with_article(concept.name)} on a{'n' * (colour == 'orange')} {colour} background"
        for number, concept in enumerate(concepts[:count])
        for colour in ["white" if number % 2 == 0 else colours[1 + number // 2 % (len(colours) - 1)]]
    ]


def sheet(images: list[Image.Image], labels: list[str], columns: int = 8) -> Image.Image:
    """Images in rows, each with its prompt below."""
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * 132, rows * 144), "white")
    pen = ImageDraw.Draw(page)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = number % columns * 132 + 2, number // columns * 144 + 2
        page.paste(image, (x, y))
        pen.text(
            (x, y + 129),
            label.replace(" background", "").replace(" on an ", ", ").replace(" on a ", ", "),
            fill="black",
            font_size=9,
        )
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a PNG")
    parser.add_argument("--stage", type=int, default=2, help="only things of these stages (concepts.tsv)")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.checkpoint, device=torch.device("cpu"))
    prompts = prompts_for_sheet(arguments.count, arguments.stage)
    images = paint(model, prompts, steps=arguments.steps, guidance=arguments.guidance, seed=arguments.seed)
    sheet(images, prompts).save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
