"""Begin again from the packaged checkpoint: writes the state from which the other scripts go on.

The packaged file holds the averaged weights only, so the optimizer starts anew. The autoencoder in it already gives
normalised latents times 1 / 0.18215, and so the scale of the new folder is that number for every channel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from export import LATENT_SCALE
from train_unet import TEXT_WIDTH

from loraloom.formats.tensors import open_tensors
from loraloom.studio.embedded import IDS, ROWS, token_vectors

_PARTS = {
    "unet.": "model.diffusion_model.",
    "text.": "cond_stage_model.transformer.text_model.",
    "vae.": "first_stage_model.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packaged", type=Path, required=True, help="an embedded_base.safetensors")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the training")
    arguments = parser.parse_args()
    (arguments.folder / "latents").mkdir(parents=True)
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    vectors = token_vectors(TEXT_WIDTH)
    with open_tensors(arguments.packaged) as file:
        used = file[IDS].long()
        vectors[used] = file[ROWS].float()
        for name in file:
            for part, prefix in _PARTS.items():
                if name.startswith(prefix) and name not in (IDS, ROWS):
                    parts[part][name.removeprefix(prefix)] = file[name].float()
    torch.save({"average": parts.pop("vae.")}, arguments.folder / "vae_state.pt")
    scale = {"mean": torch.zeros(4), "std": torch.full((4,), 1 / LATENT_SCALE)}
    torch.save(scale, arguments.folder / "latents" / "scale.pt")
    weights = {part + name: value for part, tensors in parts.items() for name, value in tensors.items()}
    average = weights | {"vectors": vectors}
    state = {"weights": weights, "vectors": vectors, "average": average, "used": used, "step": 0}
    torch.save(state, arguments.folder / "unet_state.pt")


if __name__ == "__main__":
    main()
