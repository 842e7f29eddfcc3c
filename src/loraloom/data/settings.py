"""What a dataset is made of, how its pictures are prepared and what captions become. No torch here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from PIL import ImageColor
from pydantic import BeforeValidator, Field, field_validator, model_validator

from loraloom.folders import cache_folder
from loraloom.setting_marks import ForBeginners, Kohya, MayChange, Unit
from loraloom.settings import Settings

__all__ = ["UNCHANGED", "CaptionSettings", "ConceptSettings", "DatasetSettings", "MaskSource", "Resolution"]


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


def _sizes(value: Any) -> Any:
    """``"512 768x512"`` and ``[512, [768, 512]]`` list resolutions; one alone may stand without brackets."""
    if isinstance(value, str):
        value = value.replace(";", " ").split()
    if isinstance(value, int):
        value = [value]
    return tuple(_size(item) for item in value) if isinstance(value, (list, tuple)) else value


def _tags(value: Any) -> Any:
    """``"cat, red fox"`` and ``["cat", "red fox"]`` both list tags."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, (list, tuple)):
        return tuple(tag.strip() if isinstance(tag, str) else tag for tag in value if tag != "")
    return value


Side = Annotated[int, Field(ge=32, le=8192)]
Share = Annotated[float, Field(ge=0, le=1)]
USUAL_RESOLUTION = 512
"""What an unset dataset.resolution means where no checkpoint says its own."""
Resolution = Annotated[Side | tuple[Side, Side], BeforeValidator(_size)]
MaskSource = Annotated[
    Literal["none", "alpha", "folder", "beside"],
    BeforeValidator(lambda value: {True: "alpha", False: "none"}[value] if isinstance(value, bool) else value),
]


class CaptionSettings(Settings):
    """What is done to a caption each time its picture is shown, in this order."""

    source: Literal["file", "filename", "folder"] = "file"
    """Where captions come from: text files (pictures without one get the concept's name), the picture's file name
    without a number in front, or the folder's name."""

    table: Annotated[Path | None, Kohya("metadata_file", "in_json"), MayChange(on_a_machine=True)] = None
    """One file with the captions of many pictures: sd-scripts' JSON, or JSON lines or CSV with file_name and text. It
    takes precedence over text files. Unset: metadata.jsonl or metadata.csv in the folder, for pictures without a text
    file."""

    lines: Literal["first", "random", "join"] = "first"
    """Which lines of a caption file are used: the first, one at random each time, or all of them as one caption."""

    sentence: str = ""
    """A sentence around every caption, with [filewords] where the caption goes: a photo of sks dog, [filewords].
    Without [filewords] it replaces the captions."""

    prefix: Annotated[str, Kohya("caption_prefix")] = ""
    """Text put in front of every caption, followed by a space."""

    suffix: Annotated[str, Kohya("caption_suffix")] = ""
    """Text put after every caption, preceded by a space."""

    wildcards: Annotated[bool, Kohya("enable_wildcard")] = False
    """{red|green|blue} becomes one of the three at random each time. {{ and }} are braces. Off: braces are text."""

    replace_underscores: bool = False
    """Underscores become spaces, except in faces such as ^_^ and in the trigger."""

    separator: Annotated[str, Kohya("caption_separator"), Field(min_length=1)] = ","
    """What stands between tags."""

    keep_tokens: Annotated[int, Kohya("keep_tokens"), Field(ge=0), Unit("tags")] = 0
    """This many of the first tags stay in front when tags are shuffled, and are never dropped."""

    keep_tokens_separator: Annotated[str, Kohya("keep_tokens_separator")] = ""
    """A mark such as ||| in captions: the tags before it stay in front; after a second one they stay at the end.
    Captions without the mark use keep_tokens."""

    warmup_min: Annotated[int, Kohya("token_warmup_min"), Field(ge=0), Unit("tags")] = 1
    """Tag warm-up begins with this many tags (besides those that are kept)."""

    warmup_steps: Annotated[float, Kohya("token_warmup_step"), Field(ge=0)] = 0
    """Tags are added one by one, from the front, over this many steps; below 1 it is a share of the run. 0: all at
    once."""

    warmup_epochs: Annotated[float, Field(ge=0), Unit("epochs")] = 0
    """The same counted in epochs."""

    shuffle: Annotated[bool, Kohya("shuffle_caption"), ForBeginners()] = False
    """Tags come in a new order each time."""

    tag_dropout: Annotated[Share, Kohya("caption_tag_dropout_rate")] = 0.0
    """Share of tags left out at random each time, 0 to 1."""

    keep_tags: Annotated[tuple[str, ...], BeforeValidator(_tags)] = ()
    """Tags that tag_dropout never leaves out (the trigger never is)."""

    secondary_separator: Annotated[str, Kohya("secondary_separator")] = ""
    """A mark such as ;;; that holds several tags together as one while tags are shuffled and dropped; then it becomes
    the separator."""

    trigger: Annotated[str, ForBeginners()] = ""
    """The trigger word: put in front of captions that do not have it."""

    dropout: Annotated[Share, Kohya("caption_dropout_rate")] = 0.0
    """Share of showings with an empty caption, 0 to 1."""

    dropout_every_epochs: Annotated[int, Kohya("caption_dropout_every_n_epochs"), Field(ge=0)] = 0
    """Every N epochs all captions are empty (3: in the third, the sixth ...). 0: never."""

    weighted: Annotated[bool, Kohya("weighted_captions")] = False
    """(word), [word] and (word:1.3) are weights, as in prompts; a backslash before a bracket makes it text. Off:
    brackets are text."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("set captions.warmup_steps or captions.warmup_epochs, not both")
        return self

    @property
    def splits(self) -> bool:
        """Whether captions are taken apart into tags."""
        return self.shuffle or self.tag_dropout > 0 or self.warmup_steps > 0 or self.warmup_epochs > 0

    @property
    def varies(self) -> bool:
        """Whether one picture can have different captions in one run."""
        dropped = 0 < self.dropout < 1 or self.dropout_every_epochs > 1
        return self.splits or self.wildcards or self.lines == "random" or dropped

    def merged(self, overrides: dict[str, Any]) -> CaptionSettings:
        """These settings with a concept's own on top; raises pydantic's ValidationError for wrong ones."""
        if not overrides:
            return self
        return CaptionSettings.model_validate({**self.model_dump(), **overrides})


UNCHANGED = CaptionSettings()
"""Captions as they are."""


class ConceptSettings(Settings):
    """One folder of pictures with settings of its own."""

    folder: Annotated[Path, ForBeginners()]
    """The folder of pictures. Folders inside belong to it."""

    name: Annotated[str | None, ForBeginners()] = None
    """What it is called. Unset: the folder's name, without repeats in front."""

    enabled: Annotated[bool, ForBeginners()] = True
    """False leaves it out."""

    repeats: Annotated[int | None, Field(ge=1, le=9999), ForBeginners()] = None
    """How often each picture is shown in an epoch. Unset: the number in front of the folder's name (10_cat), else
    dataset.repeats."""

    caption: Annotated[str | None, ForBeginners()] = None
    """Caption of pictures without a caption file (sd-scripts: class_tokens). Unset: the name."""

    is_regularization: Annotated[bool, ForBeginners()] = False
    """These are regularization images."""

    loss_weight: Annotated[float, Field(ge=0)] = 1.0
    """How much these pictures count in the loss (regularization images: times prior_loss_weight)."""

    first_epoch: Annotated[int, Field(ge=1)] = 1
    """The first epoch that shows them, counted from 1."""

    last_epoch: Annotated[int | None, Field(ge=1)] = None
    """The last epoch that shows them. Unset: the last of the run."""

    steps: Annotated[int | None, Field(ge=1), Unit("showings")] = None
    """Stop showing them after this many showings in total (of all its pictures). Unset: never."""

    captions: dict[str, Any] = Field(default={})
    """Caption settings that differ from dataset.captions, by the same names."""

    caption_table: Path | None = None
    """One file with the captions of these pictures. Unset: dataset.captions.table."""

    resolutions: Annotated[tuple[Resolution, ...] | None, BeforeValidator(_sizes), Unit("pixels")] = None
    """Resolutions of these pictures. Unset: those of the dataset."""

    flip: bool | None = None
    """Unset: dataset.flip."""

    random_crop: bool | None = None
    """Unset: dataset.random_crop."""

    color_augmentation: bool | None = None
    """Unset: dataset.color_augmentation."""

    masks: MaskSource | None = None
    """Unset: dataset.masks."""

    mask_folder: Path | None = None
    """Masks of these pictures when masks=folder. Unset: a folder of this concept's name in dataset.mask_folder, or that
    folder itself."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if "table" in self.captions:
            raise ValueError("the table of a concept's captions is caption_table, not captions.table")
        CaptionSettings().merged(self.captions)
        if self.last_epoch is not None and self.last_epoch < self.first_epoch:
            raise ValueError(f"last_epoch={self.last_epoch} comes before first_epoch={self.first_epoch}")
        if self.is_regularization and self.steps is not None:
            raise ValueError(
                "steps is for training images: regularization images are shown as often as all training images together"
            )
        return self

    def over(self, dataset: DatasetSettings) -> DatasetSettings:
        """The settings of the dataset, with those given here in their place; ValidationError for wrong captions."""
        own = {
            "resolutions": self.resolutions or None,
            "flip": self.flip,
            "random_crop": self.random_crop,
            "color_augmentation": self.color_augmentation,
            "masks": self.masks,
            "mask_folder": self.mask_folder,
        }
        captions = dataset.captions.merged(self.captions)
        if self.caption_table is not None:
            captions = captions.model_copy(update={"table": self.caption_table})
        said = {name: value for name, value in own.items() if value is not None}
        return dataset.model_copy(update={**said, "captions": captions})


class DatasetSettings(Settings):
    """The pictures and captions to train on."""

    folder: Annotated[Path, Kohya("train_data_dir", "image_dir"), MayChange(on_a_machine=True), ForBeginners()]
    """The dataset: a folder of n_name concept folders (10_cat is shown ten times an epoch), one such folder, or a
    folder of pictures. Not needed where concepts are listed."""

    concepts: Annotated[tuple[ConceptSettings, ...], ForBeginners()] = ()
    """A list of folders, each with settings of its own, instead of what the folder holds."""

    regularization_folder: Annotated[
        Path | None, Kohya("reg_data_dir"), MayChange(on_a_machine=True), ForBeginners()
    ] = None
    """Regularization images. Unset: a folder called regularization_images, regularization, reg or class_images inside
    the dataset folder or beside it is used."""

    use_regularization: bool = True
    """False leaves regularization images out even if a folder of them is found."""

    pair_regularization: bool = False
    """Spread regularization images evenly, so that each batch holds one for every training image as far as its bucket
    has both. Off: drawn in any order."""

    repeats: Annotated[int, Kohya("num_repeats"), Field(ge=1, le=9999), ForBeginners()] = 1
    """Repeats of folders without a number in front of their name (no n_)."""

    resolution: Annotated[
        Side | tuple[Side, Side] | None, Kohya("resolution"), BeforeValidator(_size), Unit("pixels"), ForBeginners()
    ] = None
    """Size to train at, in pixels: one number for a square, or width and height. With buckets it is the area
    that counts: no picture gets more pixels than this square has. Unset: the checkpoint's own, or what its family was
    trained at (512 where no checkpoint is looked at)."""

    resolutions: Annotated[tuple[Resolution, ...], BeforeValidator(_sizes), Unit("pixels")] = ()
    """Several sizes to train at, instead of resolution: [512, 768]."""

    resolution_choice: Literal["each", "random"] = "each"
    """With several resolutions: each picture is shown once at each of them (an epoch is that much longer), or each time
    at one of them at random."""

    buckets: Annotated[bool, Kohya("enable_bucket")] = True
    """Pictures keep their shape: each goes to a bucket (width, height) as close to it as possible. False crops the
    centre of every picture to the resolution."""

    bucket_step: Annotated[int, Kohya("bucket_reso_steps"), Field(ge=8, le=256, multiple_of=8), Unit("pixels")] = 8
    """Bucket sides are multiples of this many pixels. 8 is the finest that the VAE allows."""

    bucket_min: Annotated[int | None, Kohya("min_bucket_reso"), Field(ge=32), Unit("pixels")] = None
    """Shortest side of a bucket in pixels. Unset: half the side of the resolution's square."""

    bucket_max: Annotated[int | None, Kohya("max_bucket_reso"), Field(ge=32), Unit("pixels")] = None
    """Longest side of a bucket in pixels. Unset: twice the side of the resolution's square."""

    max_crop: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    """Share of a picture that may be cropped away so that pictures of nearly the same shape share a bucket (and so a
    batch). 0 gives every picture its own best bucket."""

    upscale: bool = True
    """Enlarge pictures smaller than their bucket. False gives them a smaller bucket of their own size, and gives
    pictures that every bucket would crop by more than max_crop a bucket of their own shape."""

    flip: Annotated[bool, Kohya("flip_aug"), ForBeginners()] = False
    """Show each picture mirrored half of the time. Not for anything asymmetrical."""

    random_crop: Annotated[bool, Kohya("random_crop")] = False
    """Cut pictures at a random place instead of the centre. With buckets there is little to cut: see
    random_crop_zoom."""

    random_crop_zoom: Annotated[float, Field(ge=1, le=4)] = 1.0
    """random_crop first enlarges pictures by a random factor from 1 to this, so that there is something to cut."""

    color_augmentation: Annotated[bool, Kohya("color_aug")] = False
    """Change hue and brightness a little at random. Not where colours matter."""

    variants: Annotated[int, Field(ge=1, le=256)] = 8
    """How many versions of each picture random_crop and color_augmentation make before training, the picture as it is
    among them; each showing takes one at random. Encoding takes that many times longer."""

    masks: Annotated[MaskSource, Kohya("alpha_mask")] = "none"
    """Parts of pictures that are not learned. alpha: the transparent parts; folder: a black and white picture of the
    same name in mask_folder; beside: NAME-masklabel.png or NAME.mask.png next to NAME.png. White is learned."""

    mask_folder: Annotated[Path | None, Kohya("conditioning_data_dir"), MayChange(on_a_machine=True)] = None
    """Where masks=folder finds them, with the same names and inner folders as the pictures."""

    background: str = "white"
    """Colour put behind transparent pictures: a name or #rrggbb."""

    max_megapixels: Annotated[float, Field(gt=0, le=178), Unit("million pixels")] = 128.0
    """Pictures with more million pixels than this are reported and skipped (a small damaged or hostile file can
    claim any size)."""

    caption_extensions: Annotated[tuple[str, ...], Kohya("caption_extension"), BeforeValidator(_names)] = (
        ".txt",
        ".caption",
    )
    """Endings of caption files, the first that exists is used."""

    cache_to_disk: Annotated[bool | None, Kohya("cache_latents_to_disk"), MayChange(on_a_machine=True)] = None
    """Keep encoded pictures in files, so that the next run on the same pictures starts at once. Unset: only in a sweep,
    for all of its runs."""

    cache_text_to_disk: Annotated[bool, Kohya("cache_text_encoder_outputs_to_disk"), MayChange(on_a_machine=True)] = (
        False
    )
    """Keep encoded captions in files too. Only where the text encoder is not trained."""

    cache_folder: Annotated[Path | None, MayChange(on_a_machine=True)] = None
    """Where both are kept. Unset: a folder of the user's cache, never the dataset folder."""

    captions: CaptionSettings = UNCHANGED
    """What is done to captions."""

    @model_validator(mode="before")
    @classmethod
    def _folder_of_concepts(cls, data: Any) -> Any:
        """Listed concepts need no folder: it is the one that all of them are in."""
        if (
            not isinstance(data, dict)
            or data.get("folder") is not None
            or not isinstance(data.get("concepts"), (list, tuple))
        ):
            return data

        listed = data["concepts"]
        given = [item.get("folder") if isinstance(item, dict) else getattr(item, "folder", None) for item in listed]
        folders = [folder for folder in given if isinstance(folder, (str, Path)) and str(folder)]
        if not folders or len(folders) < len(given):
            return data

        absolute = [str(Path(folder).expanduser().absolute()) for folder in folders]
        try:
            common = Path(os.path.commonpath(absolute))
        except ValueError:  # on different drives
            common = Path(absolute[0])
        return {**data, "folder": common.parent if len(set(absolute)) == 1 else common}

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
        wanted = {*self.sizes}
        wanted.update(resolution for concept in self.concepts for resolution in concept.resolutions or ())
        for resolution in sorted(wanted, key=str):
            at = self.at(resolution)
            low, high = at.bucket_limits
            side = (at.size[0] * at.size[1]) ** 0.5
            if self.buckets and not low <= side <= high:
                raise ValueError(
                    f"bucket_min={low} and bucket_max={high} (rounded to bucket_step) must bracket the resolution's"
                    f" side, {side:.0f}"
                )
        return self

    @model_validator(mode="after")
    def _concepts_fit(self) -> Self:
        problems = []
        for concept in self.concepts:
            try:
                own = concept.over(self)
            except ValueError as error:
                problems.append(f"the captions of concept {concept.folder} contradict dataset.captions: {error}")
                # The rest of the concept is checked all the same, without what was at fault.
                own = concept.model_copy(update={"captions": {}}).over(self)
            if own.masks == "folder" and own.mask_folder is None:
                problems.append(f"masks=folder of concept {concept.folder} needs a mask_folder")

        if self.concepts and not any(item.enabled and not item.is_regularization for item in self.concepts):
            problems.append("none of the listed concepts is both enabled and a concept of training images")
        if self.masks == "folder" and self.mask_folder is None and not self.concepts:
            problems.append("masks=folder needs mask_folder (masks=beside finds NAME-masklabel.png next to NAME.png)")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def at(self, resolution: int | tuple[int, int]) -> DatasetSettings:
        """The same settings for one resolution."""
        return self.model_copy(update={"resolution": resolution, "resolutions": ()})

    @property
    def sizes(self) -> tuple[int | tuple[int, int], ...]:
        """The resolutions to train at: ``resolutions``, or ``resolution``, or what leaving both unset means.

        A run fills in its checkpoint's own before it asks.
        """
        return self.resolutions or (USUAL_RESOLUTION if self.resolution is None else self.resolution,)

    @property
    def size(self) -> tuple[int, int]:
        """The resolution as (width, height); of several the one with the most pixels."""
        sizes = [(value, value) if isinstance(value, int) else value for value in self.sizes]
        return max(sizes, key=lambda size: size[0] * size[1])

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

    @property
    def text_folder(self) -> Path | None:
        """Folder of the encoded captions kept on disk, None when they stay in memory."""
        if not self.cache_text_to_disk:
            return None
        return (self.cache_folder or cache_folder()) / "text"
