"""Image-to-image: the picture that painting starts from, its mask, and putting what was painted back into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from loraloom.errors import SettingsError
from loraloom.formats.pictures import grey_picture, rgb_picture
from loraloom.generation.decoding import encode
from loraloom.generation.noise import LATENT_STEP, ImageSeed, initial_noise
from loraloom.generation.settings import GenerateSettings
from loraloom.models.loaded import LoadedModel

__all__ = ["InitImage", "inpainting_channels", "pixels_of", "prepare_init_image"]

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class InitImage:
    """The picture as the model sees it, and where the result goes.

    ``latent`` (1, 4, h, w), scaled. ``painted`` (1, 1, h, w) is 1 where the mask lets the model paint, None without a
    mask. ``content`` is the setting ``mask_content``.
    """

    latent: Tensor
    painted: Tensor | None
    content: str
    picture: Image.Image
    """Of the size that is painted, or with ``box`` the whole picture."""
    mask: Image.Image | None
    """Soft, of the size of ``picture``."""
    box: Box | None
    """The part of the picture that is painted, where that is not all of it."""

    def latents(self, seeds: Sequence[ImageSeed]) -> Tensor:
        """(B, 4, h, w): the picture for each image; under the mask noise or nothing where the settings say so."""
        latents = self.latent.repeat(len(seeds), 1, 1, 1)
        if self.painted is None or self.content not in ("noise", "nothing"):
            return latents
        kept = latents * (1 - self.painted)
        if self.content == "nothing":
            return kept
        height, width = latents.shape[-2:]
        noise = [initial_noise(seed.seed, width * LATENT_STEP, height * LATENT_STEP) for seed in seeds]
        return kept + torch.stack(noise).to(latents.device) * self.painted

    def finished(self, image: Image.Image) -> Image.Image:
        """What was painted, in its place: pixels that the mask covers not at all are the picture's own."""
        if self.mask is None:
            return image
        if self.box is not None:
            left, top, right, bottom = self.box
            whole = self.picture.copy()
            whole.paste(image.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
            image = whole
        return Image.composite(image, self.picture, self.mask)


def prepare_init_image(model: LoadedModel, settings: GenerateSettings, size: tuple[int, int]) -> InitImage | None:
    """Read what ``init_image`` and ``mask`` name, for images of ``size`` (width, height); None without them.

    Raises MissingFileError, FileFormatError, FileError, SettingsError (a mask that lets nothing be painted).
    """
    if settings.init_image is None:
        return None
    picture = rgb_picture(settings.init_image)
    if settings.mask is None:
        picture = _resized(picture, size, settings.resize_mode)
        return InitImage(
            encode(model, pixels_of(picture), tiling=settings.vae_tiling), None, "original", picture, None, None
        )
    mask = _read_mask(settings.mask, picture.size, settings)
    box = None
    if settings.inpaint_area == "mask":
        box = _box_of(mask, settings.inpaint_padding, size)
        seen = picture.crop(box).resize(size, Image.Resampling.LANCZOS)
        seen_mask = mask.crop(box).resize(size, Image.Resampling.LANCZOS)
    else:
        seen = picture = _resized(picture, size, settings.resize_mode)
        seen_mask = mask = _resized(mask, size, settings.resize_mode)
    painted = _latent_mask(seen_mask).to(model.device)
    if settings.mask_content == "fill":
        seen = _filled(seen, seen_mask)
    return InitImage(
        encode(model, pixels_of(seen), tiling=settings.vae_tiling), painted, settings.mask_content, picture, mask, box
    )


def inpainting_channels(model: LoadedModel, init: InitImage | None, size: tuple[int, int]) -> Tensor | None:
    """(1, 5, h, w): mask and masked picture, which the U-Net of an inpainting model reads; None for other models.

    Without a picture everything is masked, so that the model paints from text alone.
    """
    if model.unet.in_channels != 9:
        return None
    width, height = size
    if init is None or init.painted is None:
        picture = torch.zeros(1, 3, height, width)
        mask = torch.ones(1, 1, height // LATENT_STEP, width // LATENT_STEP)
    else:
        mask = init.painted.cpu()
        seen = init.picture if init.box is None else init.picture.crop(init.box).resize(size, Image.Resampling.LANCZOS)
        covered = torch.nn.functional.interpolate(mask, size=(height, width), mode="nearest")
        picture = pixels_of(seen) * (1 - covered)
    latent = encode(model, picture)
    return torch.cat([mask.to(latent), latent], dim=1)


def pixels_of(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def _resized(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    if image.size == size:
        return image
    if mode == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if mode == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    inner = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
    # What is missing is the picture itself, stretched and blurred, so that no hard edge is there to be painted.
    around = image.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(max(size) / 16))
    around.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
    return around


def _read_mask(path: Path, size: tuple[int, int], settings: GenerateSettings) -> Image.Image:
    """(L) white where it is painted, black where it is transparent."""
    grey = grey_picture(path)
    if grey.size != size:
        grey = grey.resize(size, Image.Resampling.LANCZOS)
    if settings.mask_invert:
        grey = ImageOps.invert(grey)
    if grey.getextrema()[1] == 0:
        raise SettingsError(
            [f"mask: {path} leaves nothing to paint (it is black everywhere)"],
            "white is painted, black is kept; mask_invert=true reverses it",
        )
    return grey.filter(ImageFilter.GaussianBlur(settings.mask_blur)) if settings.mask_blur else grey


def _box_of(mask: Image.Image, padding: int, size: tuple[int, int]) -> Box:
    """The mask's own box, ``padding`` pixels wider, grown to the proportions of ``size`` where the picture allows."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, mask.width), min(bottom + padding, mask.height)
    wanted = size[0] / size[1]
    width = min(max(right - left, round((bottom - top) * wanted)), mask.width)
    height = min(max(bottom - top, round((right - left) / wanted)), mask.height)
    left = min(max((left + right - width) // 2, 0), mask.width - width)
    top = min(max((top + bottom - height) // 2, 0), mask.height - height)
    return left, top, left + width, top + height


def _latent_mask(mask: Image.Image) -> Tensor:
    """(1, 1, h, w) of 0 and 1: a latent pixel is painted where half of it and more is."""
    small = mask.resize((mask.width // LATENT_STEP, mask.height // LATENT_STEP), Image.Resampling.BOX)
    return torch.from_numpy((np.asarray(small, np.float32) >= 127.5).astype(np.float32))[None, None]


def _filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with what is masked in the colours of what is around it, smoother the further inside it is."""
    kept = 1 - torch.from_numpy(np.asarray(mask, np.float32) / 255)[None, None]
    colours = _spread((pixels_of(image) + 1) / 2 * kept, kept)
    return Image.fromarray((colours[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().copy())


def _spread(colours: Tensor, share: Tensor) -> Tensor:
    """Colours (1, 3, H, W), premultiplied by ``share`` (1, 1, H, W), where something is missing from half the size."""
    height, width = share.shape[-2:]
    if float(share.min()) > 0.99 or max(height, width) == 1:
        return colours / share.clamp(min=1e-4)
    half = (max(height // 2, 1), max(width // 2, 1))
    smaller = [torch.nn.functional.interpolate(values, size=half, mode="area") for values in (colours, share)]
    coarse = _spread(smaller[0], smaller[1])
    return colours + (1 - share) * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
