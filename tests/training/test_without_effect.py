"""Settings that change nothing in their combination are said, one by one, and others are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loraloom.data.settings import CaptionSettings, DatasetSettings
from loraloom.data.without_effect import CAPTION_ROWS, DATASET_ROWS, captions_without_effect, dataset_without_effect
from loraloom.errors import SettingsError
from loraloom.events import ignore
from loraloom.idle import Row, told
from loraloom.training.idle_choices import OPTIMIZER_ROWS, WHOLE_ROWS
from loraloom.training.opening import open_run
from loraloom.training.settings import TrainSettings
from loraloom.training.without_effect import (
    OBJECTIVE_ROWS,
    ROWS,
    known_after_loading,
    known_before_loading,
    without_effect,
)

MakeSettings = Callable[..., TrainSettings]


def said(settings: TrainSettings) -> list[str]:
    return without_effect(open_run(settings, ignore, device="cpu").facts)


IDLE = {
    "epochs": ["epochs=3", "steps=4"],
    "optimizer.lr": ["optimizer.lr=3e-4", "optimizer.unet_lr=1e-4", "optimizer.text_encoder_lr=5e-5"],
    "optimizer.block_lr.zero_threshold": ["optimizer.block_lr.zero_threshold=0.1"],
    "optimizer.text_encoder_stop": ["optimizer.text_encoder_stop=3"],
    "lr_schedule.warmup_steps": ["lr_schedule.warmup_steps=3"],
    "ema.decay": ["ema.decay=0.9"],
    "ema.warmup": ["ema.warmup=false"],
    "ema.every": ["ema.every=2"],
    "ema.save": ["ema.save=both"],
    "preview.steps": ["preview.steps=3"],
    "preview.weights": ["preview.weights=[0,1]"],
    "preview.at_start": ["preview.at_start=false"],
    "validation.timesteps": ["validation.timesteps=3"],
    "validation.draws": ["validation.draws=2"],
    "validation.seed": ["validation.seed=2"],
    "validation.every_steps": ["validation.every_steps=2"],
    "validation.save_best": ["validation.save_best=false"],
    "validation.every_epochs": ["validation.share=0.25", "validation.every_epochs=2", "validation.every_steps=3"],
    "notify.form": ["notify.form=json"],
    "notify.on": ["notify.on=['preview']"],
    "saving.keep_states": ["saving.keep_states=1", "saving.state=false"],
    "saving.state_every_steps": ["saving.state_every_steps=1", "saving.state=false"],
    "saving.state_every_minutes": ["saving.state_every_minutes=1", "saving.state=false"],
    "saving.every_epochs": ["saving.every_epochs=2", "saving.files_per_run=2"],
    "low_memory": ["low_memory=true"],
    "keep_file_precision": ["keep_file_precision=true", "quantize=int8"],
    "prior_loss_weight": ["prior_loss_weight=0.5"],
    "dataset.bucket_min": ["dataset.bucket_min=40", "dataset.buckets=false"],
    "dataset.bucket_max": ["dataset.bucket_max=96", "dataset.buckets=false"],
    "dataset.max_crop": ["dataset.max_crop=0.1", "dataset.buckets=false"],
    "dataset.cache_folder": ["dataset.cache_folder=kept"],
    "dataset.repeats": ["dataset.repeats=3"],
    "dataset.regularization_folder": ["dataset.regularization_folder=reg", "dataset.use_regularization=false"],
    "dataset.masks": ["dataset.masks=alpha"],
    "dataset.caption_extensions": ["dataset.caption_extensions=.cap", "dataset.captions.source=folder"],
    "dataset.captions.separator": ["dataset.captions.separator=';'"],
    "dataset.captions.wildcards": ["dataset.captions.wildcards=true"],
}


@pytest.mark.parametrize("path", IDLE)
def test_what_has_no_effect_is_said(make_settings: MakeSettings, path: str) -> None:
    told = said(make_settings("optimizer.lr=1e-4", *IDLE[path]))
    assert [text.split()[0] for text in told] == [path]


def test_every_row_of_the_table_is_tried() -> None:
    assert not [row.paths for row in ROWS if not any(path in IDLE for path in row.paths)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["epochs=3", "lr_schedule.warmup_steps=3", "optimizer.text_encoder_stop=3"],
        ["epochs=10", "steps=4", "optimizer.unet_lr=1e-4"],
        ["optimizer.name=prodigy", "optimizer.lr=0.5", "optimizer.unet_lr=1", "optimizer.text_encoder_lr=1"],
        ["adapter.text_encoder=false", "optimizer.block_lr.down=0", "optimizer.block_lr.zero_threshold=0.1"],
        ["ema.enabled=true", "ema.decay=0.9", "preview.prompts=['a']", "preview.steps=3"],
        ["validation.share=0.25", "validation.draws=2", "validation.save_best=false", "validation.every_epochs=2"],
        ["validation.image_losses=true", "validation.timesteps=3"],
        ["dataset.cache_text_to_disk=true", "dataset.cache_folder=kept", "saving.keep_states=1"],
        ["dataset.buckets=false", "dataset.bucket_step=16", "dataset.upscale=false"],
        ["dataset.captions.wildcards=true", "dataset.captions.prefix='{a|b}'"],
        ["dataset.captions.shuffle=true", "dataset.captions.separator=';'"],
    ],
)
def test_what_has_an_effect_is_not_mentioned(make_settings: MakeSettings, overrides: list[str]) -> None:
    assert said(make_settings("optimizer.lr=1e-4", *overrides)) == []


def test_pictures_decide_too(make_settings: MakeSettings, pictures: Path) -> None:
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(pictures / "1_blue" / "clear.png")
    (pictures / "regularization").mkdir()
    Image.new("RGB", (64, 64), "#101010").save(pictures / "regularization" / "a.png")
    assert said(make_settings("optimizer.lr=1e-4", "dataset.masks=alpha", "prior_loss_weight=0.5")) == []


def test_inside_the_list_of_concepts(make_settings: MakeSettings, pictures: Path) -> None:
    concepts = (
        f"dataset.concepts=[{{folder='{pictures / '2_red'}', captions={{keep_tokens=1}}}}, "
        f"{{folder='{pictures / '1_blue'}', name='sea', first_epoch=3}}]"
    )
    told = said(make_settings("optimizer.lr=1e-4", "epochs=2", concepts))
    assert len(told) == 2
    assert told[0].startswith("concept '2_red': captions.keep_tokens has no effect")
    assert told[1] == "concept 'sea' is never shown: its first_epoch is 3, the run has 2 epochs"
    assert said(make_settings("optimizer.lr=1e-4", "epochs=3", concepts.replace("keep_tokens=1", ""))) == []


# -- the other tables ------------------------------------------------------------------------------------------------


def train_settings(*overrides: str) -> TrainSettings:
    return TrainSettings.load(None, ["checkpoint=a.ckpt", "dataset.folder=b", *overrides])


OBJECTIVES = [
    (["huber_c=0.3"], "huber_c"),
    (["loss_type=huber", "huber_scale=2"], "huber_scale"),
    (["logit_mean=1"], "logit_mean"),
    (["timestep_sampling=importance", "logit_std=2"], "logit_std"),
    (["noise_offset_random_strength=true"], "noise_offset_random_strength"),
    (["adaptive_noise_scale=-0.1"], "adaptive_noise_scale"),
    (["multires_noise_discount=0.5"], "multires_noise_discount"),
    (["ip_noise_gamma_random_strength=true"], "ip_noise_gamma_random_strength"),
    (["mask_floor=0.1"], "mask_floor"),
    (["masked_loss_normalized=false"], "masked_loss_normalized"),
    (["prior_loss_steps=5"], "prior_loss_steps"),
    (["prior_loss_min=0.1"], "prior_loss_min"),
    (["preserve_regularization=true"], "preserve_regularization"),
    (["preserve_weight=2"], "preserve_weight"),
    (["preserve_trigger=sks"], "preserve_trigger"),
]


@pytest.mark.parametrize(("overrides", "name"), OBJECTIVES)
def test_what_an_objective_makes_no_use_of_is_said(
    make_settings: MakeSettings, overrides: list[str], name: str
) -> None:
    settings = make_settings(*(f"objective.{override}" for override in overrides))
    facts = replace(open_run(settings, ignore, device="cpu").facts, prediction="epsilon")
    assert [text.split()[0] for text in known_after_loading(facts)] == [f"objective.{name}"]


def test_an_objective_that_is_used_is_not_mentioned(make_settings: MakeSettings, pictures: Path) -> None:
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(pictures / "1_blue" / "clear.png")
    (pictures / "regularization").mkdir()
    Image.new("RGB", (64, 64), "#101010").save(pictures / "regularization" / "a.png")
    used = ("loss_type=huber", "huber_schedule=constant", "huber_scale=2", "mask_floor=0.1", "prior_loss_min=0.1",
            "prior_loss_steps=4", "adaptive_noise_scale=0.1", "stratified_timesteps=true")  # fmt: skip
    settings = make_settings("dataset.masks=alpha", *(f"objective.{text}" for text in used))
    facts = replace(open_run(settings, ignore, device="cpu").facts, prediction="epsilon")
    assert known_after_loading(facts) == []
    single = make_settings("batch_size=1", "objective.stratified_timesteps=true", "zero_terminal_snr=true")
    one, snr = known_after_loading(replace(facts, settings=single))
    assert "batch_size=1" in one and "zero_terminal_snr is for v models" in snr
    assert known_after_loading(replace(facts, settings=single, prediction="v")) == [one]


CAPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"keep_tokens_separator": "|||"}, "captions.keep_tokens"),
    ({"keep_tags": ("a",), "shuffle": True}, "captions.keep_tags"),
    ({"warmup_min": 2}, "captions.warmup_min"),
    ({"dropout_every_epochs": 1}, "captions.dropout"),
    ({"lines": "join", "source": "filename"}, "captions.lines"),
    ({"table": Path("t.csv"), "source": "folder"}, "captions.table"),
]
DATASETS: list[tuple[dict[str, Any], str]] = [
    ({"random_crop_zoom": 1.5}, "random_crop_zoom"),
    ({"variants": 3}, "variants"),
    ({"variants": 1, "color_augmentation": True}, "random_crop and color_augmentation"),
    ({"random_crop": True}, "random_crop has little to cut"),
    ({"mask_folder": "m"}, "mask_folder"),
    ({"resolution_choice": "random", "resolutions": [320]}, "resolution_choice"),
]


@pytest.mark.parametrize(("given", "words"), CAPTIONS)
def test_what_captions_make_no_use_of_is_said(given: dict[str, Any], words: str) -> None:
    (said,) = captions_without_effect(CaptionSettings.parse(given))
    assert said.startswith(words)
    assert (
        captions_without_effect(CaptionSettings(shuffle=True, tag_dropout=0.3, keep_tokens=2, keep_tags=("a",))) == []
    )


@pytest.mark.parametrize(("given", "words"), DATASETS)
def test_what_a_dataset_makes_no_use_of_is_said(given: dict[str, Any], words: str) -> None:
    (said,) = dataset_without_effect(DatasetSettings.parse({"folder": "img", **given}))
    assert said.startswith(words)
    varied = {"folder": "img", "random_crop": True, "random_crop_zoom": 1.5, "variants": 3}
    assert dataset_without_effect(DatasetSettings.parse(varied)) == []


def holding(row: Row[Any], facts: list[Any]) -> bool:
    """Whether any of the facts makes the row say something."""
    return any(told([row], getattr(each, "settings", each), each) for each in facts)


def test_every_row_of_the_other_tables_is_tried(make_settings: MakeSettings) -> None:
    assert [
        row for row in CAPTION_ROWS if not holding(row, [CaptionSettings.parse(given) for given, _ in CAPTIONS])
    ] == []
    datasets = [DatasetSettings.parse({"folder": "img", **given}) for given, _ in DATASETS]
    assert [row for row in DATASET_ROWS if not holding(row, datasets)] == []
    facts = open_run(make_settings("zero_terminal_snr=true"), ignore, device="cpu").facts
    objectives = [
        replace(facts, prediction="epsilon", settings=make_settings(*(f"objective.{text}" for text in overrides)))
        for overrides, _ in OBJECTIVES
    ]
    single = make_settings("batch_size=1", "objective.stratified_timesteps=true", "zero_terminal_snr=true")
    objectives.append(replace(facts, prediction="epsilon", settings=single))
    assert [row for row in OBJECTIVE_ROWS if not holding(row, objectives)] == []
    optimizers = [train_settings(*overrides) for overrides in OPTIMIZERS]
    assert [row for row in OPTIMIZER_ROWS if not holding(row, optimizers)] == []
    whole = [train_settings("method=full", "adapter.rank=3", "keep_file_precision=true", "optimizer.lr=3e-5")]
    assert [row for row in WHOLE_ROWS if not holding(row, whole)] == []


OPTIMIZERS = [
    ["optimizer.name=prodigy", "optimizer.lr=1e-4", "lr_schedule.name=cosine_with_restarts"],
    ["optimizer.name=prodigy", "lr_schedule.warmup_steps=10"],
    ["optimizer.name=schedule_free_adamw"],
    ["optimizer.name=SGDNesterov8bit"],
    ["optimizer.name=adafactor", "optimizer.args.relative_step=true"],
    ["adapter.text_encoder=false", "optimizer.text_encoder_lr=1e-5"],
    ["adapter.unet=false", "optimizer.block_lr.mid=0.3", "optimizer.unet_lr=3e-5"],
    ["lr_schedule.name=constant", "lr_schedule.warmup_steps=3", "lr_schedule.decay_steps=0.3", "lr_schedule.cycles=3",
     "lr_schedule.power=3", "lr_schedule.timescale=30", "lr_schedule.min_lr_ratio=0.3", "lr_schedule.rules='1:3,0.1'",
     "lr_schedule.args={step_size=3}"],
]  # fmt: skip


def test_what_is_said_before_the_checkpoint_is_loaded(make_settings: MakeSettings) -> None:
    settings = make_settings("lr_schedule.cycles=3", "adapter.conv_alpha=2", "ema.decay=0.9")
    said = known_before_loading(open_run(settings, ignore, device="cpu").facts)
    assert [text.split()[0] for text in said] == ["lr_schedule.cycles", "adapter.conv_alpha", "ema.decay"]
    with pytest.raises(SettingsError, match="max_norm"):
        open_run(make_settings("method=full", "adapter.max_norm=0.7"), ignore, device="cpu")
