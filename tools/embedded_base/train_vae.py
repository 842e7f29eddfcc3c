"""Train the autoencoder on scenes, on other drawings, and on line drawings made up on the spot.

Three runs in the same folder: on random crops (most steps for the time), then ``--whole``, then, while the U-Net is
trained already, ``--whole --decoder-only``.
The step size falls linearly over the last third of the time, so the result is annealed at ``--minutes``, however fast
the machine is. Run again with the same folder to continue from its last state.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from drawings import IconSet, load_sprites, read_concepts
from parallel import Workers
from PIL import Image, ImageDraw
from torch import Tensor
from world import BACKGROUNDS, World, render

from loraloom.models.layouts import VaeSizes, random_tensors, vae_layout
from loraloom.models.vae import VAE
from loraloom.randomness import normal, seed_of

SIZES = VaeSizes(32, (1, 2, 3, 3), res_blocks=1)
CROP_PX, BATCH, CROPS_PER_IMAGE = 64, 8, 2
PEAK_RATE, KL_WEIGHT, EDGE_WEIGHT, EMA = 1e-3, 3e-4, 0.5, 0.995


def new_vae(seed: int = 0) -> VAE:
    """A VAE of random weights."""
    shapes = dict(vae_layout(SIZES))
    vae = VAE.from_shapes(shapes)
    weights = random_tensors({"": iter(shapes.items())}, "vae", seed, dtype=torch.float32)
    for name, weight in weights.items():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1:
            weight.fill_(1.0)
        elif name.endswith(("conv2.weight", "proj_out.weight")):
            weight *= 0.2
    vae.load_state_dict(weights)
    return vae


class Pictures:
    """Pictures to crop from, by number: scenes of the world, any drawing, or made-up line drawings."""

    def __init__(self, packages: list[Path], cache: Path, *, seed: int) -> None:
        concepts = read_concepts()
        self.seed = seed
        self.world = World(concepts, seed=seed)
        self.sprites = load_sprites(
            packages[0], [concept.code for concept in concepts], cache / packages[0].parent.name
        )
        self.others: list[Image.Image] = []
        for package in packages:
            # Every 25th drawing is kept for measuring.
            codes = [code for number, code in enumerate(IconSet(package).codes()) if number % 25]
            self.others += load_sprites(package, codes, cache / package.parent.name).values()

    def picture(self, number: int) -> Image.Image:
        """Picture ``number``, 128 x 128."""
        draw = np.random.default_rng(seed_of("picture", self.seed, number))
        kind = draw.random()
        if kind < 0.5:
            return render(self.world.scene(number), self.sprites)
        if kind < 0.75:
            return on_background(self.others[draw.integers(len(self.others))], draw)
        return line_drawing(draw)


def on_background(sprite: Image.Image, draw: np.random.Generator) -> Image.Image:
    """A drawing on a plain background."""
    colours = list(BACKGROUNDS.values())
    page = Image.new("RGB", (128, 128), colours[draw.integers(len(colours))])
    side = int(draw.integers(60, 125))
    sprite = sprite.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    page.paste(sprite, ((128 - side) // 2, (128 - side) // 2), sprite)
    return page


def line_drawing(draw: np.random.Generator) -> Image.Image:
    """Flat shapes with black outlines, so that the autoencoder can show styles that the world does not have."""

    def colour() -> tuple[int, ...]:
        return tuple(int(value) for value in draw.integers(0, 256, 3))

    page = Image.new("RGB", (256, 256), (255, 255, 255) if draw.random() < 0.5 else colour())
    pen = ImageDraw.Draw(page)
    for _ in range(draw.integers(2, 8)):
        width = int(draw.integers(3, 11))
        ink = (0, 0, 0) if draw.random() < 0.8 else colour()
        points = [(float(x), float(y)) for x, y in draw.integers(10, 246, (int(draw.integers(3, 6)), 2))]
        shape = draw.integers(4)
        if shape == 0:
            pen.polygon(points, fill=colour())
            pen.line([*points, points[0], points[1]], fill=ink, width=width, joint="curve")
        elif shape == 1:
            x, y, w, h = (int(value) for value in (*draw.integers(0, 180, 2), *draw.integers(12, 130, 2)))
            pen.ellipse((x, y, x + w, y + h), fill=colour(), outline=ink, width=width)
        elif shape == 2:
            pen.line(points, fill=ink, width=width, joint="curve")
        else:
            x, y, w, h = (int(value) for value in (*draw.integers(0, 180, 2), *draw.integers(20, 130, 2)))
            pen.arc((x, y, x + w, y + h), *sorted(draw.uniform(0, 360, 2)), fill=ink, width=width)
    return page.resize((128, 128), Image.Resampling.BOX)


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float() / 127.5 - 1


def batch_of(pictures: Pictures, step: int, workers: Workers, *, whole: bool) -> Tensor:
    """This process's batch of a step: crops, or a quarter as many whole pictures (as many pixels)."""
    draw = np.random.default_rng(seed_of("crops", pictures.seed, step, workers.rank))
    if whole:
        first = (step * workers.count + workers.rank) * BATCH
        return torch.stack([to_tensor(pictures.picture(first + number)) for number in range(BATCH // 4)])
    batch = []
    for number in range(BATCH // CROPS_PER_IMAGE):
        unique = (step * workers.count + workers.rank) * BATCH + number
        pixels = to_tensor(pictures.picture(unique))
        for _ in range(CROPS_PER_IMAGE):
            x, y = draw.integers(0, 128 - CROP_PX + 1, 2)
            batch.append(pixels[:, y : y + CROP_PX, x : x + CROP_PX])
    return torch.stack(batch)


def loss_of(vae: VAE, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the reconstruction error (mean square)."""
    with torch.set_grad_enabled(next(vae.encoder.parameters()).requires_grad):
        mean, std = vae.encode(pixels)
    restored = vae.decode(mean + std * noise.to(mean.dtype)).float()
    mean, std, pixels = mean.float(), std.float(), pixels.float()
    edges = sum(F.l1_loss(restored.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
    divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.clamp_min(1e-12).log()).mean()
    error = (restored - pixels).square().mean()
    return F.l1_loss(restored, pixels) + 2 * error + EDGE_WEIGHT * edges + KL_WEIGHT * divergence, error.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, action="append", required=True, help="unpacked icons; Noto first")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-only", action="store_true", help="leave latents as they are")
    parser.add_argument("--whole", action="store_true", help="whole pictures: norms then see what they will see in use")
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    arguments = parser.parse_args()
    workers = Workers()
    pictures = Pictures(arguments.package, arguments.folder / "sprites", seed=arguments.seed)
    # Computing in bfloat16 is 1.6 times as fast; the optimizer works on float32 weights.
    master, average, vae = (new_vae(arguments.seed) for _ in range(3))
    vae.to(torch.bfloat16)
    parts = [
        (model.decoder, model.post_quant_conv) if arguments.decoder_only else (model,)
        for model in (vae, master, average)
    ]
    if arguments.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    fast_weights, weights, means = ([w for module in group for w in module.parameters()] for group in parts)
    optimizer = torch.optim.AdamW(weights, arguments.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    state_path, step = arguments.folder / "vae_state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        goes_on = state.get("decoder_only", False) == arguments.decoder_only
        # What is exported is the average: it is where the training of the decoder alone begins.
        master.load_state_dict(state["weights" if goes_on else "average"])
        average.load_state_dict(state["average"])
        step = state["step"]
        if goes_on:
            optimizer.load_state_dict(state["optimizer"])
    began, saved, errors, first_step = time.time(), time.time(), [], step
    while True:
        progress = workers.same((time.time() - began) / (60 * arguments.minutes))
        rate = arguments.rate * min(1.0, (step - first_step + 1) / 50) * min(1.0, 0.01 + 2 * max(0.0, 1 - progress))
        with torch.no_grad():
            for fast, exact in zip(vae.parameters(), master.parameters(), strict=True):
                fast.copy_(exact)
        pixels = batch_of(pictures, step, workers, whole=arguments.whole)
        size = (len(pixels), 4, pixels.shape[2] // 8, pixels.shape[3] // 8)
        noise = normal(size, "vae", arguments.seed, step, workers.rank)
        loss, error = loss_of(vae, pixels.to(torch.bfloat16), noise)
        vae.zero_grad()
        loss.backward()
        for fast, exact in zip(fast_weights, weights, strict=True):
            exact.grad = fast.grad.float()
        workers.average([weight.grad for weight in weights])
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        step += 1
        errors.append(float(error))
        with torch.no_grad():
            keep = min(EMA, 1 - 1 / (1 + 0.2 * step))
            for mean, exact in zip(means, weights, strict=True):
                mean.lerp_(exact, 1 - keep)
        finished = progress >= 1
        if workers.is_first and (step % 50 == 0 or finished):
            psnr = 10 * np.log10(4 / np.mean(errors[-200:]))
            print(
                f"{time.strftime('%H:%M:%S')} step {step} psnr {psnr:.2f} rate {rate:.1e} done {progress:.0%}",
                flush=True,
            )
        if workers.is_first and (time.time() - saved > 120 or finished):
            saved = time.time()
            state = {"weights": master.state_dict(), "average": average.state_dict(), "step": step}
            state["decoder_only"] = arguments.decoder_only
            torch.save(state | {"optimizer": optimizer.state_dict()}, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)
        if finished:
            break


if __name__ == "__main__":
    main()
