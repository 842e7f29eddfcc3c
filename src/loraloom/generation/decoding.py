"""The autoencoder at generation: latents to pixels and back, whole or in overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor

from loraloom.errors import CheckpointError, HardwareError, LoraloomError
from loraloom.events import Listener, Notice, ignore
from loraloom.generation.noise import LATENT_STEP
from loraloom.models.loaded import LoadedModel

__all__ = ["LARGEST_WHOLE", "TILE", "decode", "encode", "image_of", "not_finite", "tiled"]

LARGEST_WHOLE = 2048 * 2048
"""Pixels up to which a picture goes through the autoencoder whole, unless the settings say otherwise."""
TILE = 64
"""Width and height of a tile in latent pixels."""
OVERLAP = 16
"""Latent pixels that neighbouring tiles share; they blend there."""


def decode(model: LoadedModel, latents: Tensor, *, tiling: bool | None = None, listener: Listener = ignore) -> Tensor:
    """(B, 4, h, w) scaled latents -> (B, 3, 8h, 8w) in [-1, 1].

    ``tiling`` None: in tiles above :data:`LARGEST_WHOLE` and where memory runs out, with a notice.
    """
    area = latents.shape[-1] * latents.shape[-2] * LATENT_STEP**2
    if tiling is None and area > LARGEST_WHOLE:
        listener(Notice(f"the autoencoder works in tiles: more than {LARGEST_WHOLE:,} pixels (vae_tiling)"))
        tiling = True
    if not tiling:
        try:
            return _checked(model, model.decode_latents(latents))
        except torch.OutOfMemoryError:
            if tiling is not None:
                raise
            listener(Notice("not enough memory to decode the picture whole: in tiles (vae_tiling)", "warning"))
    return _checked(model, tiled(latents, model.decode_latents, channels=3, step_out=LATENT_STEP))


def encode(model: LoadedModel, pixels: Tensor, *, tiling: bool | None = None) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> mean latents (B, 4, H/8, W/8), scaled; in tiles as :func:`decode`."""
    if tiling is None:
        tiling = pixels.shape[-1] * pixels.shape[-2] > LARGEST_WHOLE
    if not tiling:
        return model.encode_images(pixels)[0]
    return tiled(pixels, lambda tile: model.encode_images(tile)[0], channels=4, step_in=LATENT_STEP)


def tiled(
    values: Tensor, function: Callable[[Tensor], Tensor], *, channels: int, step_in: int = 1, step_out: int = 1
) -> Tensor:
    """``function`` of overlapping tiles of (B, C, H, W), blended linearly where they overlap.

    ``step_in`` and ``step_out``: pixels of the input and of the result for each latent pixel.
    """
    height, width = (extent // step_in for extent in values.shape[-2:])
    total = torch.zeros(len(values), channels, height * step_out, width * step_out)
    weight = torch.zeros(1, 1, height * step_out, width * step_out)
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            tile = values[..., top * step_in : bottom * step_in, left * step_in : right * step_in]
            made = function(tile).float().cpu()
            share = _ramp(top, bottom, height, step_out)[:, None] * _ramp(left, right, width, step_out)[None]
            place = slice(top * step_out, bottom * step_out), slice(left * step_out, right * step_out)
            total[..., place[0], place[1]] += made * share
            weight[..., place[0], place[1]] += share
    return total / weight


def _spans(extent: int) -> Iterator[tuple[int, int]]:
    """Tiles of one axis, in latent pixels, evenly spread."""
    if extent <= TILE:
        yield 0, extent
        return
    count = -(-(extent - OVERLAP) // (TILE - OVERLAP))
    for number in range(count):
        start = round(number * (extent - TILE) / (count - 1))
        yield start, start + TILE


def _ramp(start: int, end: int, extent: int, step: int) -> Tensor:
    """How much each pixel of a tile counts along one axis: rising from its inner edges over the overlap."""
    length, rise = (end - start) * step, OVERLAP * step
    places = torch.arange(length) + 0.5
    share = torch.ones(length)
    if start > 0:
        share = torch.minimum(share, places / rise)
    if end < extent:
        share = torch.minimum(share, (length - places) / rise)
    return share


def image_of(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as a picture."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy())


def _checked(model: LoadedModel, pixels: Tensor) -> Tensor:
    if not bool(torch.isfinite(pixels).all()):
        raise not_finite(model, "the decoded image")
    return pixels


def not_finite(model: LoadedModel, what: str) -> LoraloomError:
    """The error for a result that is NaN or infinite, with what can be done about it."""
    if model.compute != torch.float32:
        name = str(model.compute).removeprefix("torch.")
        return HardwareError(
            f"{what} became NaN or infinite in {name}", "set precision=no (fp32), or bf16 if it was fp16"
        )
    return CheckpointError(
        f"{model.checkpoint.path}: {what} became NaN or infinite",
        "the checkpoint is damaged, is not of the prediction that was assumed, or a LoRA weight is far too large",
    )
