"""Settings that change nothing in their combination are said, one by one, and others are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from loraloom.events import ignore
from loraloom.training.opening import open_run
from loraloom.training.settings import TrainSettings
from loraloom.training.without_effect import ROWS, without_effect

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
