"""Prompts in the sampler: AND against its formula, changes at their steps, texts encoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.diffusion.samplers import SAMPLERS, SamplerPlan
from loraloom.generation.guidance import Guidance, ImagePlans, StepCounter, TextCache, calls_per_step
from loraloom.generation.loras import BatchLoras, LoraStore
from loraloom.generation.prompts import parse_attention, plan_prompt
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.strength import Strength
from loraloom.generation.text_to_image import text_to_image
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel

Models = Callable[[str], LoadedModel]
SIZE = (64, 48)
LONG = ", ".join(f"word{index}" for index in range(60))


def settings(**changes: object) -> GenerateSettings:
    base = {"width": 64, "height": 48, "steps": 4, "seed": 7, "lora_folders": [], "embedding_folders": []}
    return GenerateSettings.parse({**base, "sampler": "Euler", **changes})


def without_loras(model: LoadedModel, images: int) -> BatchLoras:
    return BatchLoras(model, [()] * images, LoraStore())


def guided(model: LoadedModel, prompts: list[str], negative: str, scale: float, *, one_pass: bool) -> torch.Tensor:
    """The U-Net's guided answer at the first of four steps, by the code that paints."""
    wanted = settings()
    plans = [ImagePlans(plan_prompt(prompt, 4), plan_prompt(negative, 4, is_negative=True)) for prompt in prompts]
    guidance = Guidance(
        model,
        TextCache(model, wanted, (), SIZE),
        plans,
        Strength(scale),
        without_loras(model, len(prompts)),
        one_pass=one_pass,
    )
    return guidance._guided(*inputs(len(prompts)), 1, guidance._with_negative)[0]


def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    noisy = torch.randn(count, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    return noisy, torch.full((count,), 400.0)


def answer(model: LoadedModel, row: int, count: int, text: str) -> torch.Tensor:
    noisy, timesteps = inputs(count)
    encoded = model.encode_text([parse_attention(text)])
    if model.family.uses_sizes:
        encoded = encoded.with_sizes(torch.tensor([[48.0, 64, 0, 0, 48, 64]]))
    return model.denoise(noisy[row : row + 1], timesteps[:1], encoded)[0]


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_and_is_the_formula(toy_model: Models, family: str, one_pass: bool) -> None:
    """negative + sum of w * scale * (part - negative), for images with different numbers of parts and lengths."""
    model = toy_model(family)
    prompts = ["a cat :0.7 AND a red (dog:1.3) :-0.4", f"{LONG} AND a hill", "a house"]
    weights = [{"a cat": 0.7, " a red (dog:1.3)": -0.4}, {f"{LONG} ": 1.0, " a hill": 1.0}, {"a house": 1.0}]
    found = guided(model, prompts, "bad", 5.0, one_pass=one_pass)
    for row, parts in enumerate(weights):
        bad = answer(model, row, 3, "bad")
        expected = bad + sum(5.0 * weight * (answer(model, row, 3, text) - bad) for text, weight in parts.items())
        torch.testing.assert_close(found[row], expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_no_negative_where_the_weights_add_up_to_one(toy_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("sd1")
    sizes: list[int] = []
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda noisy, *rest: (sizes.append(len(noisy)), denoise(noisy, *rest))[1])
    found = guided(model, ["a cat :0.25 AND a dog :0.75"], "bad", 1.0, one_pass=True)
    assert sizes == [2]
    expected = 0.25 * answer(model, 0, 1, "a cat") + 0.75 * answer(model, 0, 1, " a dog")
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_parts_are_padded_by_the_web_uis_rules(toy_model: Models) -> None:
    model = toy_model("sd1")
    plan = plan_prompt(f"a cat AND {LONG}", 4, compatibility="a1111")
    plans = [ImagePlans(plan, plan_prompt("", 4, is_negative=True))]
    guidance = Guidance(
        model, TextCache(model, settings(), (), SIZE), plans, Strength(5.0), without_loras(model, 1), one_pass=True
    )
    found, _ = guidance._guided(*inputs(1), 1, True)
    noisy, timesteps = inputs(1)
    short = model.encode_text(["a cat"]).context
    missing = model.encode_text([LONG]).context.shape[1] - 77
    padded = Conditioning(torch.cat([short, short[:, -1:].repeat(1, missing, 1)], dim=1))
    bad = answer(model, 0, 1, "")
    expected = bad + 5 * (model.denoise(noisy, timesteps, padded)[0] - bad) + 5 * (answer(model, 0, 1, LONG) - bad)
    torch.testing.assert_close(found[0], expected, atol=5e-4, rtol=1e-3)
    assert not torch.allclose(found, guided(model, [f"a cat AND {LONG}"], "", 5.0, one_pass=True), atol=5e-3)


class Spy:
    """What the U-Net was given: the conditioning of every call."""

    def __init__(self, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contexts: list[torch.Tensor] = []
        self.texts: list[str] = []
        denoise, encode = model.denoise, model.encode_text

        def spied(noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
            self.contexts.append(conditioning.context.clone())
            return denoise(noisy, timesteps, conditioning)

        def encoded(texts, **options) -> Conditioning:
            self.texts += ["".join(segment.text for segment in text) for text in texts]
            return encode(texts, **options)

        monkeypatch.setattr(model, "denoise", spied)
        monkeypatch.setattr(model, "encode_text", encoded)

    def changes(self) -> list[int]:
        """At which calls the conditioning is another than before."""
        pairs = zip(self.contexts, self.contexts[1:], strict=False)
        return [index for index, (before, after) in enumerate(pairs, start=1) if not torch.equal(before, after)]


@pytest.mark.parametrize(
    ("sampler", "rules", "changes", "calls"),
    [
        ("Euler", "none", [3], 6),
        ("Euler", "a1111", [4], 6),  # the web UI is one step late
        ("Heun", "none", [5], 11),  # at the second call of the third step, which is at the fourth noise level
        ("Heun", "a1111", [7], 11),  # calls count there, of twice as many
        ("DPM++ 2M", "none", [3], 6),
    ],
)
def test_a_prompt_changes_at_its_step(
    toy_model: Models, monkeypatch: pytest.MonkeyPatch, sampler: str, rules: str, changes: list[int], calls: int
) -> None:
    model = toy_model("sd1")
    spy = Spy(model, monkeypatch)
    wanted = settings(prompt="a [cat:dog:0.5]", steps=6, sampler=sampler, prompt_compatibility=rules)
    text_to_image(model, wanted)
    assert len(spy.contexts) == calls
    assert spy.changes() == changes
    assert sorted(spy.texts) == ["", "a cat", "a dog"]  # each once


def test_both_prompts_alternate_and_are_encoded_once_for_all_images(
    toy_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("sd1")
    spy = Spy(model, monkeypatch)
    text_to_image(model, settings(prompt="[a|b]", negative_prompt="[c::2]", count=2))
    assert sorted(spy.texts) == ["", "a", "b", "c"]
    assert spy.changes() == [1, 2, 3, 4, 5, 6, 7]


def test_an_image_of_two_prompts_is_between(toy_model: Models) -> None:
    model = toy_model("sd1")
    first, second, both = (
        text_to_image(model, settings(prompt=prompt))[0].latent for prompt in ("a cat", "a dog", "a [cat:dog:2]")
    )
    assert not torch.allclose(first, both, atol=1e-3)
    assert not torch.allclose(second, both, atol=1e-3)
    never = text_to_image(model, settings(prompt="a [cat:dog:1.0]"))[0].latent
    assert torch.equal(never, first)


def test_choices_are_drawn_for_each_image_whatever_its_batch(toy_model: Models) -> None:
    model = toy_model("sd1")
    wanted = {"prompt": "a {cat|dog|horse} AND {red|blue} :0.5", "count": 4}
    together = text_to_image(model, settings(**wanted, batch_size=4))
    assert len({image.prompt.text for image in together}) > 1
    for index, image in enumerate(together):
        (alone,) = text_to_image(model, settings(prompt=image.prompt.prompt, seed=7 + index))
        assert image.infotext == alone.infotext
        torch.testing.assert_close(image.latent, alone.latent, atol=1e-4 * float(alone.latent.std()), rtol=0)


def test_choices_of_loras(toy_model: Models, write_lora: Callable[..., None], tmp_path: Path) -> None:
    model = toy_model("sd1")
    for seed, name in enumerate(("one", "two")):
        write_lora(model, tmp_path / f"{name}.safetensors", seed)
    wanted = {"lora_folders": [tmp_path], "count": 6, "batch_size": 4, "steps": 2}
    images = text_to_image(model, settings(prompt="a cat <lora:{one|two}:1>", **wanted))
    assert {image.prompt.loras[0].name for image in images} == {"one", "two"}
    for index in (0, 5):
        alike = {**wanted, "count": 1, "seed": 7 + index}
        (alone,) = text_to_image(model, settings(prompt=images[index].prompt.prompt, **alike))
        scale = float(alone.latent.std())
        torch.testing.assert_close(images[index].latent, alone.latent, atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("emphasis", ["no_norm", "comfy", "ignore", "none"])
def test_every_emphasis_paints_another_image(toy_model: Models, emphasis: str) -> None:
    model = toy_model("sd1")
    plain = text_to_image(model, settings(prompt="a (cat:1.6) dog"))[0]
    other = text_to_image(model, settings(prompt="a (cat:1.6) dog", emphasis=emphasis))[0]
    assert not torch.allclose(plain.latent, other.latent, atol=1e-4)
    assert "Emphasis: " in other.infotext
    assert "Emphasis" not in plain.infotext


@pytest.mark.parametrize(
    "prompt", ["[[(({{<>|:", "(a AND b:1.2) AND", "[a:b:0.5", "{2$$", "x\\", "]])):1.2)", "AND AND :", "BREAK AND"]
)
def test_unbalanced_prompts_paint(toy_model: Models, prompt: str) -> None:
    for rules in ("none", "a1111"):
        changes = {"prompt": prompt, "negative_prompt": prompt, "steps": 1, "prompt_compatibility": rules}
        (image,) = text_to_image(toy_model("sd1"), settings(**changes))
        assert bool(torch.isfinite(image.latent).all())


def test_steps_by_noise_levels() -> None:
    counter = StepCounter(torch.tensor([10.0, 5.0, 2.0, 0.0]), "none")
    assert [counter.step(sigma) for sigma in (10.0, 7.0, 5.0, 3.0, 2.0, 0.5, 0.0)] == [1, 1, 2, 2, 3, 3, 3]
    counter = StepCounter(torch.tensor([10.0, 0.0]), "a1111")
    assert [counter.step(1.0) for _ in range(3)] == [1, 2, 3]


def test_the_web_ui_counts_calls_of_second_order_samplers() -> None:
    counted = {name: calls_per_step(SamplerPlan(name, "").entry, "a1111") for name in SAMPLERS}
    twice = {"Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "Restart"}
    assert {name for name, calls in counted.items() if calls != 1} == twice
    assert set(counted.values()) == {1, 2}
    assert calls_per_step(SamplerPlan("Heun", "").entry, "none") == 1


@torch.no_grad()
def test_a_call_without_the_negative_prompt_is_the_parts_alone(
    toy_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where guidance is left out (``skip_early_cfg``), parts count by their share of all weights."""
    model = toy_model("sd1")
    sizes: list[int] = []
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda noisy, *rest: (sizes.append(len(noisy)), denoise(noisy, *rest))[1])
    plans = [ImagePlans(plan_prompt("a cat :1 AND a dog :3", 4), plan_prompt("bad", 4, is_negative=True))]
    guidance = Guidance(
        model, TextCache(model, settings(), (), SIZE), plans, Strength(5.0), without_loras(model, 1), one_pass=True
    )
    found, unwanted = guidance._guided(*inputs(1), 1, False)
    assert unwanted is None
    assert sizes == [2]
    expected = 0.25 * answer(model, 0, 1, "a cat") + 0.75 * answer(model, 0, 1, " a dog")
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-3)
    sizes.clear()
    text_to_image(model, settings(prompt="a AND b", skip_early_cfg=0.5))
    assert sizes == [2, 2, 2, 3]  # the web UI leaves it out up to and including that share
    sizes.clear()
    text_to_image(model, settings(prompt="a AND b :-1", skip_early_cfg=0.5))
    assert sizes == [3, 3, 3, 3]  # parts that cancel out are nothing without a negative prompt
