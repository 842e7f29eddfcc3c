"""An autoencoder from a file of its own, or out of another checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.errors import CheckpointError, FileFormatError
from loraloom.formats.tensors import is_finite, open_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.diffusers_folder import is_diffusers_folder
from loraloom.models.loaded import LoadedModel
from loraloom.models.names import checkpoint_tensor, pairs_from_diffusers
from loraloom.models.parts import not_finite
from loraloom.models.vae import VAE

__all__ = ["read_vae", "replace_vae", "vae_tensors"]

_PREFIX = "first_stage_model."
_PREFIXES = (_PREFIX, "vae.", "")


def read_vae(path: Path) -> VAE:
    """The autoencoder in a file: alone (original or diffusers names), in a checkpoint, or in a Diffusers folder.

    Raises MissingFileError, FileFormatError, CheckpointError where there is none.
    """
    tensors = vae_tensors(path)
    with torch.device("meta"):
        vae = VAE.from_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    wanted = vae.state_dict()
    for name in wanted:
        if not is_finite(tensors[name]):
            raise not_finite(path, _PREFIX + name, tensors[name])
    vae.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
    vae.requires_grad_(False).eval()
    return vae


def replace_vae(model: LoadedModel, path: Path) -> None:
    """Give a loaded model the autoencoder of a file, in the precision that its own has.

    Raises CheckpointError for one whose latents have not 4 channels.
    """
    vae = read_vae(path)
    old = model.parts["vae"]
    if vae.post_quant_conv.weight.shape[0] != model.vae.post_quant_conv.weight.shape[0]:
        raise CheckpointError(
            f"{path}: its latents have {vae.post_quant_conv.weight.shape[0]} channels",
            "a VAE for Stable Diffusion 1, 2 or XL has 4",
        )
    like = next(old.parameters())
    model.parts["vae"] = vae.to(like.device, like.dtype)
    model.damage.pop("vae", None)


def vae_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of the autoencoder in a file or folder, by their original names (as after ``first_stage_model.``).

    Raises CheckpointError for a file that holds none, FileFormatError for one that holds a tensor of it twice.
    """
    if path.is_dir() and is_diffusers_folder(path):
        checkpoint = open_checkpoint(path)
        return {name.removeprefix(_PREFIX): checkpoint[name] for name in checkpoint if name.startswith(_PREFIX)}

    file = open_tensors(_weights(path) if path.is_dir() else path)
    for prefix in _PREFIXES:
        if prefix + "decoder.conv_in.weight" not in file:
            continue
        found = {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}
        pairs = pairs_from_diffusers("vae", {name: tuple(tensor.shape) for name, tensor in found.items()})
        translated = {pair.checkpoint: checkpoint_tensor([pair], found.__getitem__) for pair in pairs}
        # Two names for one tensor, of which one would win in silence.
        if len(translated) != len(pairs):
            raise FileFormatError(f"{path}: a tensor of the VAE is there under two names", "get the file again")
        return translated
    raise CheckpointError(
        f"{path} holds no VAE (no tensor decoder.conv_in.weight)",
        Sentence(Action.INSPECT_FILE.of(file=path), " tells what a file is"),
    )


def _weights(folder: Path) -> Path:
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
