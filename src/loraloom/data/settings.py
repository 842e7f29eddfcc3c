"""What a dataset is made of and how its pictures are prepared. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from PIL import ImageColor
from pydantic import BeforeValidator, Field, field_validator, model_validator

from loraloom.folders import cache_folder
from loraloom.settings import Kohya, Settings

__all__ = ["DatasetSettings"]


def _size(value: Any) -> Any:
    """``512``, ``"512"``, ``"512,768"`` (sd-scripts), ``"512x768"`` and ``[512, 768]`` all name a resolution."""
    if isinstance(value, str):
        parts = value.lower().replace("x", ",").split(",")
        if all(part.strip().isdecimal() for part in parts):
            value = [int(part) for part in parts]
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 else tuple(value)
    return value


def _names(value: Any) -> Any:
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if isinstance(value, (list, tuple)):
        return tuple(f".{name.lower().lstrip('.')}" if isinstance(name, str) else name for name in value)
    return value


Side = Annotated[int, Field(ge=32, le=8192)]


class DatasetSettings(Settings):
    """The pictures and captions to train on."""

    folder: Annotated[Path, Kohya("train_data_dir", "image_dir")]
    """The dataset: a folder of n_name concept folders (10_cat is shown ten times an epoch), one such folder, or a
    folder of pictures."""

    regularization_folder: Annotated[Path | None, Kohya("reg_data_dir")] = None
    """Regularization images. Unset: a folder called regularization_images, regularization, reg or class_images inside
    the dataset folder or beside it is used."""

    use_regularization: bool = True
    """False leaves regularization images out even if a folder of them is found."""

    repeats: Annotated[int, Kohya("num_repeats"), Field(ge=1, le=9999)] = 1
    """Repeats of folders whose name does not say them (no n_ in front)."""

    resolution: Annotated[Side | tuple[Side, Side], Kohya("resolution"), BeforeValidator(_size)] = 512
    """Size to train at, in pixels: one number for a square, or width and height. With buckets it is the area
    that counts: no picture gets more pixels than this square has."""

    buckets: Annotated[bool, Kohya("enable_bucket")] = True
    """Pictures keep their shape: each goes to a bucket (width, height) as close to it as possible. False crops the
    centre of every picture to the resolution."""

    bucket_step: Annotated[int, Kohya("bucket_reso_steps"), Field(ge=8, le=256, multiple_of=8)] = 8
    """Bucket sides are multiples of this many pixels. 8 is the finest that the VAE allows."""

    bucket_min: Annotated[int | None, Kohya("min_bucket_reso"), Field(ge=32)] = None
    """Shortest side of a bucket in pixels. Unset: half the side of the resolution's square."""

    bucket_max: Annotated[int | None, Kohya("max_bucket_reso"), Field(ge=32)] = None
    """Longest side of a bucket in pixels. Unset: twice the side of the resolution's square."""

    max_crop: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    """Share of a picture that may be cropped away so that pictures of nearly the same shape share a bucket (and so a
    batch). 0 gives every picture its own best bucket."""

    upscale: bool = True
    """Enlarge pictures smaller than their bucket. False gives them a smaller bucket of their own size."""

    flip: Annotated[bool, Kohya("flip_aug")] = False
    """Show each picture mirrored half of the time. Not for anything asymmetrical."""

    background: str = "white"
    """Colour put behind transparent pictures: a name or #rrggbb."""

    max_megapixels: Annotated[float, Field(gt=0, le=178)] = 128.0
    """Pictures with more million pixels than this are reported and skipped (a small damaged or hostile file can
    claim any size)."""

    caption_extensions: Annotated[tuple[str, ...], Kohya("caption_extension"), BeforeValidator(_names)] = (
        ".txt",
        ".caption",
    )
    """Endings of caption files, the first that exists is used."""

    cache_to_disk: Annotated[bool, Kohya("cache_latents_to_disk")] = False
    """Keep encoded pictures in files, so that the next run on the same pictures starts at once."""

    cache_folder: Path | None = None
    """Where cache_to_disk keeps them. Unset: a folder of the user's cache, never the dataset folder."""

    @field_validator("background")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        ImageColor.getrgb(value)  # raises ValueError, which pydantic reports with the setting's name
        return value

    @field_validator("caption_extensions")
    @classmethod
    def _some_extension(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any(len(name) < 2 or "/" in name or "\\" in name for name in value):
            raise ValueError("at least one ending such as .txt is needed")
        return value

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        low, high = self.bucket_limits
        side = (self.size[0] * self.size[1]) ** 0.5
        if self.buckets and not low <= side <= high:
            raise ValueError(
                f"bucket_min={low} and bucket_max={high} (rounded to bucket_step) must bracket the resolution's side,"
                f" {side:.0f}"
            )
        return self

    @property
    def size(self) -> tuple[int, int]:
        """The resolution as (width, height)."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def bucket_limits(self) -> tuple[int, int]:
        """Shortest and longest bucket side, in whole steps."""
        side = (self.size[0] * self.size[1]) ** 0.5
        low = side / 2 if self.bucket_min is None else self.bucket_min
        high = side * 2 if self.bucket_max is None else self.bucket_max
        step = self.bucket_step
        return max(step, int(-(-low // step)) * step), int(high // step) * step

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The background colour, 0 to 255 each."""
        red, green, blue = ImageColor.getrgb(self.background)[:3]
        return red, green, blue

    @property
    def latent_folder(self) -> Path | None:
        """Folder of the latents kept on disk, None when they stay in memory."""
        if not self.cache_to_disk:
            return None
        if self.cache_folder is not None:
            return self.cache_folder
        return cache_folder() / "latents"
