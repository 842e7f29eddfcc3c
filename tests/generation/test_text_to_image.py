"""Text to image on toy checkpoints: what may and may not change an image, and LoRAs on the fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from controls import Asked, asked_to_stop_at
from loraloom.adapters.strength import LoraStrength
from loraloom.control import Interrupted, Request
from loraloom.errors import AdapterError, LoraloomError, PromptError, SettingsError
from loraloom.events import Event, Notice, SamplerStepped
from loraloom.formats.image_info import parse_parameters
from loraloom.formats.tensors import write_tensors
from loraloom.generation.loras import load_lora
from loraloom.generation.noise import initial_noise
from loraloom.generation.prompts import LoraTag
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import paint, text_to_image
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import LoadedModel, load_model

Models = Callable[[str], LoadedModel]
WriteLora = Callable[..., None]
BASE = {"prompt": "a (red:1.2) cat", "negative_prompt": "dog", "width": 64, "height": 48, "steps": 3, "seed": 7}


def settings(**changes: object) -> GenerateSettings:
    return GenerateSettings.parse({**BASE, "lora_folders": [], **changes})


def latent(model: LoadedModel, **changes: object) -> torch.Tensor:
    return text_to_image(model, settings(**changes))[0].latent


def assert_same(first: torch.Tensor, second: torch.Tensor) -> None:
    """Equal to float tolerance: toys are not trained, their latents are as large as 20."""
    torch.testing.assert_close(first, second, atol=5e-5 * float(second.std()), rtol=0)


def snapshot(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in model.parts.items()
        for name, tensor in module.state_dict().items()
    }


def hooks(model: LoadedModel) -> int:
    return sum(len(layer._forward_hooks) for module in model.parts.values() for layer in module.modules())


# --- images


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_family_paints(toy_model: Models, family: str) -> None:
    (image,) = text_to_image(toy_model(family), settings(sampler="DPM++ 2M Karras"))
    assert image.image.size == (64, 48)
    assert image.image.mode == "RGB"
    assert image.latent.shape == (4, 6, 8)
    assert image.latent.dtype == torch.float32
    assert image.seed == 7
    assert float(image.latent.std()) > 0.01


def test_an_image_is_a_function_of_its_settings(toy_model: Models) -> None:
    model = toy_model("sd1")
    reference = latent(model)
    assert torch.equal(latent(model), reference)
    for change in ({"seed": 8}, {"prompt": "a house"}, {"negative_prompt": "sky"}, {"cfg_scale": 3}, {"steps": 4}):
        assert not torch.allclose(latent(model, **change), reference, atol=1e-4)


def test_global_random_numbers_play_no_part(toy_model: Models) -> None:
    model = toy_model("sd1")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = latent(model, sampler="Euler a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(latent(model, sampler="Euler a"), first)


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_an_image_does_not_depend_on_its_batch(toy_model: Models, sampler: str) -> None:
    model = toy_model("sd1")
    together = text_to_image(model, settings(count=3, batch_size=3, sampler=sampler))
    uneven = text_to_image(model, settings(count=3, batch_size=2, sampler=sampler))
    alone = [text_to_image(model, settings(seed=seed, sampler=sampler))[0] for seed in (7, 8, 9)]
    assert [image.seed for image in together] == [7, 8, 9]
    for first, second, third in zip(together, uneven, alone, strict=True):
        assert_same(first.latent, third.latent)
        assert_same(second.latent, third.latent)
    assert not torch.allclose(together[0].latent, together[1].latent, atol=1e-2)


def test_initial_noise_is_torchs_own_of_that_seed() -> None:
    expected = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(123))
    assert torch.equal(initial_noise(123, 64, 48), expected)


def test_a_random_seed_is_recorded_and_gives_the_image_again(toy_model: Models) -> None:
    model = toy_model("sd1")
    (image,) = text_to_image(model, settings(seed=-1))
    recorded = int(parse_parameters(image.infotext).fields["Seed"])
    assert recorded == image.seed
    assert recorded >= 0
    assert torch.equal(latent(model, seed=recorded), image.latent)


def test_low_memory_gives_the_same_image_and_leaves_parts_at_rest(
    toy_path: Callable[[str], Path], toy_model: Models
) -> None:
    offloaded = load_model(toy_path("sd1"), device=torch.device("cpu"), prediction="epsilon", offload=True)
    before = snapshot(offloaded)
    assert_same(latent(offloaded, low_memory=True), latent(toy_model("sd1")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(offloaded).items())


def test_guidance_is_the_papers_and_scale_one_needs_one_pass(
    toy_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("sd1")
    sizes: list[int] = []
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda noisy, *rest: (sizes.append(len(noisy)), denoise(noisy, *rest))[1])
    plain = latent(model, cfg_scale=1, steps=1, sampler="Euler")
    assert sizes == [1]
    unwanted = latent(model, cfg_scale=0, steps=1, sampler="Euler")
    guided = latent(model, cfg_scale=5, steps=1, sampler="Euler")
    assert sizes == [1, 2, 2]
    assert_same(guided, unwanted + 5 * (plain - unwanted))


def test_prompts_of_different_length_share_a_batch(toy_model: Models) -> None:
    model = toy_model("sd1")
    long = ", ".join(f"word{index}" for index in range(60))
    reference = latent(model, prompt=long)
    low = latent(model, prompt=long, low_memory=True)  # two passes: no padding at all
    assert_same(reference, low)
    three = {"prompt": f"a BREAK {long}", "negative_prompt": long}  # 3 chunks and 2: no common batch
    assert_same(latent(model, **three), latent(model, **three, low_memory=True))


def test_an_empty_negative_prompt_is_zeros_where_training_dropped_captions_as_zeros(
    toy_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("sdxl")
    seen: list[torch.Tensor] = []
    denoise = model.denoise

    def spy(noisy: torch.Tensor, timesteps: torch.Tensor, conditioning) -> torch.Tensor:
        seen.extend([conditioning.context, conditioning.pooled, conditioning.sizes])
        return denoise(noisy, timesteps, conditioning)

    monkeypatch.setattr(model, "denoise", spy)
    latent(model, negative_prompt="", steps=1)
    context, pooled, sizes = seen[:3]
    assert not context[0].any()
    assert not pooled[0].any()
    assert context[1].any()
    assert pooled[1].any()
    assert sizes.tolist() == [[48, 64, 0, 0, 48, 64]] * 2


def test_painting_is_left_between_two_steps_and_the_model_is_as_it_was(
    toy_model: Models, write_lora: WriteLora, tmp_path: Path
) -> None:
    model = toy_model("sd1")
    write_lora(model, tmp_path / "ada.safetensors", 1)
    plain = settings(seed=5, count=2, batch_size=1, steps=3, lora_folders=(tmp_path,))
    before = text_to_image(model, plain)[0].image.tobytes()
    for mode in ("side", "merge"):
        chosen = plain.model_copy(update={"prompt": "a cat <lora:ada:0.7>", "lora_mode": mode})
        heard: list[Event] = []
        with pytest.raises(Interrupted):
            # A pause; then before the first image, after its three steps, before the second one, after its first step.
            text_to_image(model, chosen, listener=heard.append, control=asked_to_stop_at(7))
        steps = [(event.image, event.step) for event in heard if isinstance(event, SamplerStepped)]
        assert steps == [(1, 1), (1, 2), (1, 3), (2, 1)]
        assert text_to_image(model, plain)[0].image.tobytes() == before
        whole = text_to_image(model, chosen)[0].image.tobytes()
        assert text_to_image(model, chosen, control=Asked(Request.PAUSE, Request.GO))[0].image.tobytes() == whole


def test_progress_is_told_step_by_step(toy_model: Models) -> None:
    events: list[Event] = []
    text_to_image(toy_model("sd1"), settings(count=2), listener=events.append)
    assert events == [SamplerStepped(step, 3, image, 2) for image in (1, 2) for step in (1, 2, 3)]


def test_zero_terminal_snr_paints(toy_path: Callable[[str], Path]) -> None:
    model = load_model(toy_path("sd2"), device=torch.device("cpu"), prediction="v", zero_terminal_snr=True)
    for sampler in ("Euler a", "DDIM", "DPM++ 2M Karras", "Heun"):
        assert float(latent(model, sampler=sampler).abs().max()) < 50


# --- parameters


def test_parameters_tell_everything(toy_model: Models, write_lora: WriteLora, tmp_path: Path) -> None:
    model = toy_model("sd1")
    write_lora(model, tmp_path / "style.safetensors")
    changes = {
        "prompt": "a cat <lora:style:0.5>",
        "sampler": "dpmpp_2m_karras",
        "clip_skip": 2,
        "lora_folders": [tmp_path],
    }
    (image,) = text_to_image(model, settings(**changes), model_hash="0123456789")
    read = parse_parameters(image.infotext)
    assert read.prompt == "a cat <lora:style:0.5>"
    assert read.negative_prompt == "dog"
    lora_hash = read.fields["Lora hashes"].removeprefix("style: ")
    assert len(lora_hash) == 12
    assert {key: value for key, value in read.fields.items() if key not in ("Lora hashes", "Version")} == {
        "Steps": "3",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "7",
        "Seed": "7",
        "Size": "64x48",
        "Model hash": "0123456789",
        "Model": "toy-sd1",
        "Clip skip": "2",
        "RNG": "CPU",
    }
    assert read.fields["Version"].startswith("loraloom-")


# --- LoRA on the fly


def test_a_tag_changes_the_image_and_nothing_else(toy_model: Models, write_lora: WriteLora, tmp_path: Path) -> None:
    model = toy_model("sd1")
    write_lora(model, tmp_path / "style.safetensors")
    before, plain = snapshot(model), latent(model)
    folders = {"lora_folders": [tmp_path]}
    with_lora = latent(model, prompt=BASE["prompt"] + "<lora:style:1>", **folders)
    assert not torch.allclose(with_lora, plain, atol=1e-3)
    assert torch.equal(latent(model, prompt=BASE["prompt"] + "<lora:style:0>", **folders), plain)
    assert torch.equal(latent(model), plain)
    assert hooks(model) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(model).items())


def test_text_encoder_and_unet_weigh_separately(toy_model: Models, write_lora: WriteLora, tmp_path: Path) -> None:
    model = toy_model("sd1")
    write_lora(model, tmp_path / "style.safetensors")

    def image(tag: str) -> torch.Tensor:
        return latent(model, prompt=f"{BASE['prompt']}{tag}", lora_folders=[tmp_path])

    both, text, unet = image("<lora:style:1>"), image("<lora:style:1:0>"), image("<lora:style:0:1>")
    assert len({tuple(values.flatten().tolist()) for values in (both, text, unet)}) == 3
    assert torch.equal(image("<lora:style:unet=0>"), text)
    assert torch.equal(image("<lora:style:te=0:unet=1>"), unet)


def test_several_loras_equal_their_sum_in_the_weights(
    toy_path: Callable[[str], Path], toy_model: Models, write_lora: WriteLora, tmp_path: Path
) -> None:
    model = toy_model("sd1")
    tags = [LoraTag("one", LoraStrength(0.6, 0.8)), LoraTag("two", LoraStrength(0.5, -0.3))]
    for seed, tag in enumerate(tags):
        write_lora(model, tmp_path / f"{tag.name}.safetensors", seed)
    text = "".join(f"<lora:{tag.name}:{tag.strength.text_encoder}:{tag.strength.unet}>" for tag in tags)
    on_the_fly = latent(model, prompt=BASE["prompt"] + text, lora_folders=[tmp_path], cfg_scale=1)

    merged = load_model(toy_path("sd1"), device=torch.device("cpu"), prediction="epsilon")
    for tag in tags:
        lora = load_lora(tag, [tmp_path], merged)
        for target, adapter in lora.adapters.items():
            weight = lora.strength.unet if target.part == "unet" else lora.strength.text_encoder
            layer = merged.layer(target)
            layer.weight.data = layer.weight.data + weight * adapter.delta().reshape(layer.weight.shape)
    assert_same(on_the_fly, latent(merged, cfg_scale=1))  # guidance would multiply what is rounded otherwise


def test_the_lora_comes_off_when_painting_fails(toy_model: Models, write_lora: WriteLora, tmp_path: Path) -> None:
    model = toy_model("sd1")
    write_lora(model, tmp_path / "style.safetensors")
    plain = latent(model)

    def fail(event: Event) -> None:
        raise KeyboardInterrupt

    wanted = settings(prompt="a <lora:style:1>", lora_folders=[tmp_path])
    with pytest.raises(KeyboardInterrupt):
        text_to_image(model, wanted, listener=fail)
    assert hooks(model) == 0
    images = paint(model, settings(prompt="a <lora:style:1>", lora_folders=[tmp_path], count=2))
    next(images)
    assert hooks(model) == 0, "a caller may use the model between two images"
    assert torch.is_grad_enabled()
    images.close()  # type: ignore[attr-defined]
    assert hooks(model) == 0
    assert torch.equal(latent(model), plain)


def test_a_lora_object_works_like_its_tag(toy_model: Models, write_lora: WriteLora, tmp_path: Path) -> None:
    model = toy_model("sd1")
    write_lora(model, tmp_path / "style.safetensors")
    lora = load_lora(LoraTag("style", LoraStrength(0.9, 0.5)), [tmp_path], model)
    (by_object,) = text_to_image(model, settings(), [lora])
    (by_tag,) = text_to_image(model, settings(prompt=BASE["prompt"] + "<lora:style:0.5:0.9>", lora_folders=[tmp_path]))
    assert torch.equal(by_object.latent, by_tag.latent)
    assert by_object.infotext == by_tag.infotext


def test_tags_in_the_negative_prompt_are_left_out_with_a_warning(toy_model: Models) -> None:
    events: list[Event] = []
    wanted = settings(negative_prompt="dog<lora:absent:1>")
    (image,) = text_to_image(toy_model("sd1"), wanted, listener=events.append)
    assert torch.equal(image.latent, latent(toy_model("sd1")))
    assert any(isinstance(event, Notice) and event.level == "warning" for event in events)


# --- what is refused


def test_unknown_loras_are_told_before_any_work(toy_model: Models, write_lora: WriteLora, tmp_path: Path) -> None:
    write_lora(toy_model("sd1"), tmp_path / "watercolour.safetensors")
    with pytest.raises(PromptError, match="no LoRA 'watercolor'") as error:
        latent(toy_model("sd1"), prompt="<lora:watercolor:1>", lora_folders=[tmp_path])
    assert "did you mean 'watercolour'" in error.value.hint


def test_a_lora_of_another_family_is_refused(toy_model: Models, write_lora: WriteLora, tmp_path: Path) -> None:
    write_lora(toy_model("sdxl"), tmp_path / "xl.safetensors")
    with pytest.raises(AdapterError) as error:
        latent(toy_model("sd1"), prompt="<lora:xl:1>", lora_folders=[tmp_path])
    assert error.value.hint
    assert hooks(toy_model("sd1")) == 0


def test_a_deep_clip_skip_is_told(toy_model: Models) -> None:
    with pytest.raises(SettingsError, match="clip_skip"):
        latent(toy_model("sd1"), clip_skip=12)


def poisoned(path: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> LoadedModel:
    tensors = FAMILIES.load("sd1")().toy(seed=1)
    change(tensors)
    write_tensors(folder / "changed.safetensors", tensors)
    return load_model(folder / "changed.safetensors", device=torch.device("cpu"), prediction="epsilon")


@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_out.bias"])
def test_nan_is_told(tmp_path: Path, name: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.full_like(tensors[name], float("nan"))

    with pytest.raises(LoraloomError, match="NaN") as error:
        latent(poisoned(tmp_path, tmp_path, change))
    assert error.value.hint


# --- samplers, noise and guidance


@pytest.mark.parametrize("sampler", ["DPM++ SDE", "DPM++ 2S a", "DPM fast", "DPM adaptive", "DDIM CFG++", "LCM"])
def test_batches_do_not_change_images_of_random_samplers(toy_model: Models, sampler: str) -> None:
    model = toy_model("sd1")
    wanted = {"sampler": sampler, "steps": 2, "cfg_scale": 2, "sigma_min": 3.0 if "DPM a" in sampler else None}
    together = text_to_image(model, settings(count=2, batch_size=2, **wanted))
    alone = [text_to_image(model, settings(seed=seed, **wanted))[0] for seed in (7, 8)]
    for first, second in zip(together, alone, strict=True):
        assert_same(first.latent, second.latent)


def test_settings_of_noise_change_the_image_and_are_written(toy_model: Models) -> None:
    model = toy_model("sd1")
    plain = latent(model)
    for change, field in (
        ({"variation_strength": 0.2, "variation_seed": 3}, "Variation seed"),
        ({"seed_resize_from": "32x32"}, "Seed resize from"),
        ({"eta_noise_seed_delta": 31337}, "ENSD"),
        ({"s_noise": 1.1}, "Sigma noise"),
        ({"guidance_rescale": 0.7}, "CFG rescale"),
        ({"skip_early_cfg": 0.5}, "Skip Early CFG"),
        ({"s_min_uncond": 20.0, "s_min_uncond_all": True}, "NGMS"),
        ({"sgm_noise_multiplier": True}, "SGM noise multiplier"),
        ({"discard_penultimate_sigma": True}, "Discard penultimate sigma"),
        ({"schedule": "Karras", "rho": 3.0}, "Schedule rho"),
    ):
        (image,) = text_to_image(model, settings(**change))
        assert not torch.allclose(image.latent, plain, atol=1e-4), change
        assert field in parse_parameters(image.infotext).fields


def test_settings_without_effect_are_told(toy_model: Models) -> None:
    events: list[Event] = []
    text_to_image(toy_model("sd1"), settings(sampler="Euler", eta=0.5), listener=events.append)
    assert Notice("Euler has no use for eta", "warning") in events
