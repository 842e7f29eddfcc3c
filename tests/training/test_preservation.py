"""Keeping what the checkpoint knows: class prompts and regularization images answered as the checkpoint alone would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from loraloom.adapters.attach import AdapterSet, Attachment, attach, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.errors import SettingsError
from loraloom.events import Notice
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.training.preservation import Preservation, check_trigger, class_caption
from loraloom.training.settings import ObjectiveSettings, TrainSettings
from loraloom.training.step import Batch, Objective, training_loss, training_losses, without_adapters
from loraloom.training.trainer import TrainingRun, train

MakeSettings = Callable[..., TrainSettings]


def objective(**settings: object) -> Objective:
    return Objective(NoiseSchedule.scaled_linear(), "epsilon", 7, ObjectiveSettings.model_validate(settings))


def batch(count: int = 4, epoch: int = 0) -> Batch:
    latents = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    keys = [(epoch, f"picture {index}", 0) for index in range(count)]
    return Batch(latents, Conditioning(torch.zeros(count, 77, 8)), torch.ones(count), keys)


def test_the_class_takes_the_place_of_whole_words() -> None:
    assert class_caption("a photo of sks, sitting", "sks", "cat") == "a photo of cat, sitting"
    assert class_caption("SKS and sks", "sks", r"a \1 cat") == r"a \1 cat and a \1 cat"
    assert class_caption("sksual, asks", "sks", "cat") is None
    assert class_caption("by (o_o)!", "(o_o)", "x") == "by x!"


def test_captions_without_the_trigger_are_said(make_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match=r"set saving\.trigger"):
        make_settings("objective.preserve_class=cat")
    settings = make_settings("objective.preserve_class=cat", "saving.trigger=sks")
    assert check_trigger(settings, ["sks", "a sks"]) == []
    assert "1 of 2 captions" in check_trigger(settings, ["sks", "a dog"])[0]
    with pytest.raises(SettingsError, match="no caption has the trigger word 'sks'"):
        check_trigger(settings, ["a dog"])
    own = make_settings("objective.preserve_class=cat", "saving.trigger=other", "objective.preserve_trigger=dog")
    assert check_trigger(own, ["a dog"]) == []


@pytest.fixture
def toy(checkpoints: Callable[[str], Path]) -> LoadedModel:
    return load_model(checkpoints("sd1"), device=torch.device("cpu"))


def adapted(model: LoadedModel, **settings: object) -> tuple[AdapterSet, Attachment]:
    adapters = create_adapters(AdapterSettings(rank=2, **settings), model.targets, seed=0)
    return adapters, attach(adapters, {target.name: model.layer(target) for target in model.targets})


def shaken(adapters: AdapterSet) -> None:
    """Give the adapters an effect, without training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def settings(make_settings: MakeSettings) -> TrainSettings:
    return make_settings("objective.preserve_class=cat", "saving.trigger=sks")


def asked_batch(model: LoadedModel, captions: list[str]) -> Batch:
    return replace(batch(len(captions)), conditioning=model.encode_text(captions))


def test_an_adapter_that_does_nothing_preserves_exactly(toy: LoadedModel, settings: TrainSettings) -> None:
    _, attachment = adapted(toy)
    captions = ["sks on grass", "a dog", "sks again"]
    preservation = Preservation(settings, toy.encode_text, attachment, True)
    given = preservation.add_to(asked_batch(toy, captions), captions, [False, False, True])
    assert given.preserved is not None
    assert list(given.preserved.rows) == [0]  # the second has no trigger word, the third is a regularization image
    own, extra = training_losses(toy, given, objective(), attachment)
    assert float(own.detach().min()) > 0
    assert extra.tolist() == [0.0, 0.0, 0.0]
    plain = training_loss(toy, replace(given, preserved=None), objective(), attachment)
    assert torch.equal(training_loss(toy, given, objective(), attachment), plain)


def test_the_extra_loss_is_the_distance_from_the_base(toy: LoadedModel, settings: TrainSettings) -> None:
    adapters, attachment = adapted(toy)
    captions = ["sks on grass", "a dog", "two sks"]
    bare = batch(3)
    asked = objective(preserve_weight=2.5)
    noisy = asked.add_noise(bare.latents, asked.noise(bare), asked.timesteps(bare))
    classes = ["cat on grass", "a dog", "two cat"]
    with torch.no_grad():
        before = toy.denoise(noisy, asked.timesteps(bare), toy.encode_text(classes))
        shaken(adapters)
        after = toy.denoise(noisy, asked.timesteps(bare), toy.encode_text(classes))
    distance = (after - before).square().mean(dim=(1, 2, 3))
    given = Preservation(settings, toy.encode_text, attachment, True).add_to(
        asked_batch(toy, captions), captions, [False] * 3
    )
    _, extra = training_losses(toy, given, asked, attachment)
    assert float(distance.min()) > 1e-6
    torch.testing.assert_close(extra, 2.5 * distance * torch.tensor([1.0, 0.0, 1.0]), rtol=1e-3, atol=1e-7)


def test_regularization_images_are_asked_for_the_bases_answer(toy: LoadedModel, make_settings: MakeSettings) -> None:
    adapters, attachment = adapted(toy)
    captions = ["sks", "a cat"]
    settings = make_settings("objective.preserve_regularization=true")
    preservation = Preservation(settings, toy.encode_text, attachment, True)
    given = preservation.add_to(asked_batch(toy, captions), captions, [False, True])
    (untouched,) = training_losses(toy, given, objective(), attachment)
    assert untouched[1].item() == pytest.approx(0.0, abs=1e-10)  # one picture alone rounds otherwise than two
    plain = training_loss(toy, replace(given, regularization=None), objective(), attachment)
    assert untouched[0].item() == plain[0].item()
    shaken(adapters)
    given = preservation.add_to(asked_batch(toy, captions), captions, [False, True])
    (moved,) = training_losses(toy, given, objective(), attachment)
    assert moved[1].item() > 0
    adapters.zero_grad()
    moved[1].backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


def test_the_adapters_come_back_even_after_an_error(toy: LoadedModel) -> None:
    adapters, attachment = adapted(toy)
    shaken(adapters)
    with torch.no_grad():
        adapted_text = toy.encode_text(["sks"]).context
        with without_adapters(attachment):
            assert not torch.equal(toy.encode_text(["sks"]).context, adapted_text)
        with pytest.raises(SettingsError), without_adapters(attachment):
            toy.encode_text(["sks"], clip_skip=99)
        assert torch.equal(toy.encode_text(["sks"]).context, adapted_text)


def test_preservation_keeps_the_class_where_it_was(toy: LoadedModel, settings: TrainSettings) -> None:
    """Twenty steps on one picture: the class prompt stays nearer to the base, and the trigger is still learned."""
    captions = ["sks"] * 4

    def trained(preserve: bool) -> tuple[float, float]:
        adapters, attachment = adapted(toy)
        optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-2)
        asked = objective()
        preservation = Preservation(settings, toy.encode_text, attachment, True)
        for step in range(20):
            given = replace(asked_batch(toy, captions), keys=[(step, f"{row}", 0) for row in range(4)])
            if preserve:
                given = preservation.add_to(given, captions, [False] * 4)
            for part in training_losses(toy, given, asked, attachment):
                part.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        probe = batch(4, epoch=99)
        noise, timesteps = asked.noise(probe), asked.timesteps(probe)
        noisy = asked.add_noise(probe.latents, noise, timesteps)
        with torch.no_grad():
            loss = float((toy.denoise(noisy, timesteps, toy.encode_text(captions)) - noise).square().mean())
            moved = toy.denoise(noisy, timesteps, toy.encode_text(["cat"] * 4))
            with without_adapters(attachment):
                base = toy.denoise(noisy, timesteps, toy.encode_text(["cat"] * 4))
                untrained = float((toy.denoise(noisy, timesteps, toy.encode_text(captions)) - noise).square().mean())
        attachment.detach()
        return float((moved - base).square().mean()), loss / untrained

    free, kept = trained(preserve=False), trained(preserve=True)
    assert kept[0] < 0.7 * free[0]
    assert kept[1] < 1.0


def test_a_run_asks_what_the_settings_say_and_records_it(make_settings: MakeSettings, tmp_path: Path) -> None:
    regularization = tmp_path / "regularization_images"
    regularization.mkdir()
    Image.new("RGB", (64, 64), (10, 200, 10)).save(regularization / "0.png")
    settings = make_settings(
        f"dataset.regularization_folder='{regularization}'",
        "batch_size=12",
        "steps=3",
        "objective.prior_loss_min=0.5",
        "objective.preserve_regularization=true",
        "objective.preserve_class=shape",
        "objective.preserve_trigger=red",
        "objective.loss_type=huber",
        "objective.noise_offset=0.05",
        "objective.multires_noise_iterations=3",
        "objective.min_snr_gamma=5",
        "objective.max_timestep=900",
        "objective.ip_noise_gamma=0.1",
        "objective.mask_floor=0.1",
    )
    events: list[object] = []
    run = TrainingRun.prepare(settings, tmp_path / "prepared", events.append)
    try:
        (draws,) = run.plan.epoch_batches(0)[0]
        run.progress.step = 1
        made = run.batches.batch(0, draws, run.progress.step)
    finally:
        run.parts.attachment.detach()
    regular = [draw.sample.is_regularization for draw in draws]
    assert made.weights.tolist() == [0.75 if is_regularization else 1.0 for is_regularization in regular]
    assert made.regularization is not None
    assert made.preserved is not None
    assert list(made.regularization.rows) == [row for row, is_regularization in enumerate(regular) if is_regularization]
    red = ["red" in draw.sample.caption and not draw.sample.is_regularization for draw in draws]
    assert list(made.preserved.rows) == [row for row, is_red in enumerate(red) if is_red]
    assert 0 < sum(red) < len(red) - sum(regular)
    warnings = [event.text for event in events if isinstance(event, Notice) and event.level == "warning"]
    assert any(text.startswith("objective.mask_floor has no effect") for text in warnings)
    assert any("captions do not have the trigger word 'red'" in text for text in warnings)

    (tmp_path / "run" / "weights").mkdir(parents=True)
    with safe_open(train(settings, tmp_path / "run"), "pt") as file:
        metadata = file.metadata()
    recorded = {key.removeprefix("ss_"): value for key, value in metadata.items()}
    assert {key: recorded[key] for key in EXPECTED} == EXPECTED
    assert "ss_debiased_estimation" in metadata
    assert "ss_v_pred_like_loss" not in metadata


EXPECTED = {
    "loss_type": "huber",
    "huber_schedule": "snr",
    "huber_c": "0.1",
    "noise_offset": "0.05",
    "noise_offset_random_strength": "False",
    "multires_noise_iterations": "3",
    "multires_noise_discount": "0.3",
    "min_snr_gamma": "5.0",
    "max_timestep": "900",
    "ip_noise_gamma": "0.1",
    "masked_loss": "False",
    "preserve_class": "shape",
}


def test_options_that_the_checkpoint_forbids_stop_before_the_first_step(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"objective\.scale_v_like_noise is for v models.*predicts epsilon"):
        TrainingRun.prepare(make_settings("objective.scale_v_like_noise=true"), tmp_path, lambda event: None)


def test_a_longer_class_makes_room_for_itself(make_settings: MakeSettings, tmp_path: Path) -> None:
    name = " ".join(["very"] * 80)
    settings = make_settings(f"objective.preserve_class='{name}'", "objective.preserve_trigger=red", "steps=1")
    run = TrainingRun.prepare(settings, tmp_path, lambda event: None)
    run.parts.attachment.detach()
    assert run.parts.max_token_length == 150
