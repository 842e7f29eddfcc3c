"""Write the trained model: a compact packaged file, and the ordinary SD 1.x file that Loraloom makes of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from make_latents import trained_vae
from torch import Tensor

from loraloom.formats.tensors import write_tensors
from loraloom.studio.embedded import IDS, ROWS, write_checkpoint

LATENT_SCALE = 0.18215
_TEXT = "cond_stage_model.transformer.text_model."
METADATA = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.title": "Loraloom embedded base",
    "modelspec.resolution": "128x128",
    "modelspec.prediction_type": "epsilon",
    "modelspec.license": "Apache-2.0",
    "modelspec.description": "Trained from scratch on drawings of Noto Emoji (Apache-2.0, copyright Google).",
}


def autoencoder(folder: Path) -> dict[str, Tensor]:
    """The VAE's tensors with the normalisation of latents folded in: ours = (theirs - mean) / std / 0.18215."""
    tensors = dict(trained_vae(folder).state_dict())
    scale = torch.load(folder / "latents" / "scale.pt", weights_only=True)
    mean, std = scale["mean"], scale["std"] * LATENT_SCALE
    shrink = torch.cat([1 / std, torch.ones(4)])
    shift = torch.cat([-mean / std, -2 * std.log()])
    tensors["quant_conv.weight"] = tensors["quant_conv.weight"] * shrink[:, None, None, None]
    tensors["quant_conv.bias"] = tensors["quant_conv.bias"] * shrink + shift
    weight = tensors["post_quant_conv.weight"]
    tensors["post_quant_conv.bias"] = tensors["post_quant_conv.bias"] + weight[:, :, 0, 0] @ mean
    tensors["post_quant_conv.weight"] = weight * std[None, :, None, None]
    return tensors


def packaged_tensors(folder: Path) -> dict[str, Tensor]:
    """Everything trained, in checkpoint names, float16."""
    state = torch.load(folder / "unet_state.pt", weights_only=True)
    average, used = state["average"], state["used"]
    tensors = {ROWS: average["vectors"][used]}
    for name, value in average.items():
        part, _, rest = name.partition(".")
        if part == "unet":
            tensors[f"model.diffusion_model.{rest}"] = value
        elif part == "text":
            tensors[_TEXT + rest] = value
    tensors |= {f"first_stage_model.{name}": value for name, value in autoencoder(folder).items()}
    halves = {name: value.half().contiguous() for name, value in tensors.items()}
    return halves | {IDS: used.int()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the training ran")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    packaged = arguments.output / "embedded_base.safetensors"
    write_tensors(packaged, packaged_tensors(arguments.folder), metadata=METADATA)
    full = arguments.output / "loraloom-base.safetensors"
    write_checkpoint(packaged, full)
    print(f"{packaged}: {packaged.stat().st_size / 1e6:.1f} MB; {full}: {full.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
