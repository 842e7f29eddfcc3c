"""Encode scenes of the world with the trained autoencoder, once, for the training of the U-Net.

Latents are made to have mean 0 and deviation 1 in every channel; what that took is kept in the files, and the export
folds it into the autoencoder's 1x1 convolutions, so that the factor 0.18215 of every SD 1.x file holds for ours too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from drawings import load_sprites, read_concepts
from parallel import Workers
from torch import Tensor
from train_vae import new_vae, to_tensor
from world import World, render

from loraloom.models.vae import VAE

PART, BATCH = 500, 20


def trained_vae(folder: Path) -> VAE:
    """The averaged weights of ``train_vae.py``."""
    vae = new_vae()
    vae.load_state_dict(torch.load(folder / "vae_state.pt", weights_only=True)["average"])
    return vae.requires_grad_(False).eval()


def encode(vae: VAE, pixels: Tensor) -> Tensor:
    """Latent means (B, 4, 16, 16), not normalised."""
    with torch.no_grad():
        return vae.encode(pixels.to(next(vae.parameters()).dtype))[0].float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True, help="unpacked @iconify-json/noto")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True, help=f"scenes, a multiple of {PART}")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    workers = Workers()
    concepts = read_concepts()
    world = World(concepts, seed=arguments.seed)
    sprites = load_sprites(
        arguments.package,
        [concept.code for concept in concepts],
        arguments.folder / "sprites" / arguments.package.parent.name,
    )
    vae = trained_vae(arguments.folder)
    parts = arguments.folder / "latents"
    parts.mkdir(exist_ok=True)
    scale_path = parts / "scale.pt"
    if workers.is_first and not scale_path.exists():
        sample = torch.cat(
            [
                encode(vae, torch.stack([to_tensor(render(world.scene(n), sprites)) for n in range(b, b + BATCH)]))
                for b in range(0, 200, BATCH)
            ]
        )
        torch.save({"mean": sample.mean((0, 2, 3)), "std": sample.std((0, 2, 3))}, scale_path)
    workers.same(0.0)
    scale = torch.load(scale_path, weights_only=True)
    mean, std = (scale[name].view(1, -1, 1, 1) for name in ("mean", "std"))
    fast = vae.to(torch.bfloat16)
    for part in range(workers.rank, arguments.count // PART, workers.count):
        path = parts / f"{part:05d}.pt"
        if path.exists():
            continue
        scenes = [world.scene(number) for number in range(part * PART, (part + 1) * PART)]
        latents = [
            (encode(fast, torch.stack([to_tensor(render(scene, sprites)) for scene in scenes[b : b + BATCH]])) - mean)
            / std
            for b in range(0, PART, BATCH)
        ]
        stages = torch.tensor([max(thing.concept.stage for thing in scene.things) for scene in scenes])
        captions = json.dumps([scene.caption for scene in scenes])
        part_of_set = {"latents": torch.cat(latents).half(), "captions": captions, "stages": stages}
        torch.save(part_of_set, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        print(f"{time.strftime('%H:%M:%S')} part {part}", flush=True)


if __name__ == "__main__":
    main()
