"""Settings of a dataset and of its captions that change nothing in their combination. No torch here."""

from __future__ import annotations

from loraloom.data.settings import CaptionSettings, ConceptSettings, DatasetSettings
from loraloom.idle import Remark, Row, remarks, told

__all__ = [
    "CAPTION_ROWS",
    "DATASET_ROWS",
    "captions_without_effect",
    "concept_remarks",
    "dataset_remarks",
    "dataset_without_effect",
]


def captions_without_effect(settings: CaptionSettings) -> list[str]:
    """What was set but changes nothing in this combination, a sentence each."""
    return told(CAPTION_ROWS, settings, settings)


def dataset_without_effect(settings: DatasetSettings) -> list[str]:
    """The same of a dataset, with its captions and its list of concepts."""
    return [remark.text for remark in dataset_remarks(settings)]


def dataset_remarks(settings: DatasetSettings, prefix: str = "") -> list[Remark]:
    """The same with the settings that each sentence is about; ``prefix``: the group that ``settings`` are in."""
    said = remarks(CAPTION_ROWS, settings.captions, settings.captions, f"{prefix}captions.")
    said += remarks(DATASET_ROWS, settings, settings, prefix)
    return said + [
        Remark(
            f"mask_folder of concept {concept.folder} has no effect unless masks=folder",
            (f"{prefix}concepts.{index}.mask_folder",),
        )
        for index, concept in enumerate(settings.concepts)
        if concept.mask_folder is not None and concept.over(settings).masks != "folder"
    ]


def concept_remarks(settings: DatasetSettings, prefix: str = "") -> list[Remark]:
    """What the concepts' own caption settings make of no effect."""
    said = set(captions_without_effect(settings.captions))
    found: list[Remark] = []
    for index, concept in enumerate(settings.concepts):
        if not (concept.enabled and concept.captions):
            continue
        label = concept.name or concept.folder.name
        idle = captions_without_effect(settings.captions.merged(concept.captions))
        path = f"{prefix}concepts.{index}.captions"
        found += [Remark(f"concept {label!r}: {text}", (path,)) for text in idle if text not in said]
    return found


CAPTION_ROWS: tuple[Row[CaptionSettings], ...] = (
    Row(
        ("keep_tokens", "keep_tokens_separator"),
        lambda own: not own.splits,
        sentence="captions.keep_tokens has no effect without shuffle, tag_dropout or warm-up",
    ),
    Row(
        ("keep_tags",),
        lambda own: not own.tag_dropout,
        sentence="captions.keep_tags has no effect without tag_dropout",
    ),
    Row(
        ("warmup_min",),
        lambda own: not (own.warmup_steps or own.warmup_epochs),
        sentence="captions.warmup_min has no effect without warmup_steps or warmup_epochs",
    ),
    Row(
        ("dropout", "dropout_every_epochs"),
        lambda own: own.dropout == 1 or own.dropout_every_epochs == 1,
        sentence="captions.dropout leaves out every caption: the run learns without words",
    ),
    Row(
        ("lines",),
        lambda own: own.source != "file",
        sentence=lambda own: f"captions.lines has no effect with captions.source={own.source}",
    ),
    Row(
        ("table",),
        lambda own: own.source != "file",
        sentence=lambda own: f"captions.table has no effect with captions.source={own.source}",
    ),
)


def _any_concept(own: DatasetSettings, name: str) -> bool:
    return any(getattr(concept, name) for concept in own.concepts)


def _crops(own: DatasetSettings) -> bool:
    return own.random_crop or _any_concept(own, "random_crop")


def _varies(own: DatasetSettings) -> bool:
    return _crops(own) or own.color_augmentation or _any_concept(own, "color_augmentation")


def _wants_a_folder(concept: ConceptSettings) -> bool:
    return concept.masks == "folder"


DATASET_ROWS: tuple[Row[DatasetSettings], ...] = (
    Row(
        ("random_crop_zoom",),
        lambda own: own.random_crop_zoom > 1 and not _crops(own),
        "has no effect without random_crop",
    ),
    Row(("variants",), lambda own: not _varies(own), "has no effect without random_crop or color_augmentation"),
    Row(
        ("variants",),
        lambda own: own.variants == 1 and _varies(own),
        sentence="random_crop and color_augmentation have no effect with variants=1, the picture as it is",
    ),
    Row(
        (),
        lambda own: _crops(own) and own.buckets and own.random_crop_zoom == 1,
        about=("random_crop_zoom",),
        sentence="random_crop has little to cut where pictures keep their shape: set random_crop_zoom=1.25",
    ),
    Row(
        ("mask_folder",),
        lambda own: own.masks != "folder" and not any(_wants_a_folder(concept) for concept in own.concepts),
        "has no effect unless masks=folder",
    ),
    Row(
        ("resolution_choice",),
        lambda own: len(own.resolutions) < 2,
        "has no effect with one resolution",
    ),
)
