"""Strength of guidance: its formula, rescaling as diffusers does it, calls without the negative prompt."""

from __future__ import annotations

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from loraloom.generation.sampling import plan_of
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.strength import Strength, strength_of


def of(**changes: object) -> Strength:
    settings = GenerateSettings.parse(changes)
    return strength_of(settings, plan_of(settings))


def test_rescaling_is_the_papers() -> None:
    positive, negative = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    plain = Strength(7.0).combine(positive, negative)
    torch.testing.assert_close(plain, negative + 7 * (positive - negative))
    expected = rescale_noise_cfg(plain, positive, guidance_rescale=0.6)
    torch.testing.assert_close(Strength(7.0, rescale=0.6).combine(positive, negative), expected)


def test_calls_without_the_negative_prompt() -> None:
    early = Strength(7.0, skip_early=0.25)
    assert [early.needs_negative(call, 20, 5.0) for call in range(8)] == [False] * 6 + [True] * 2
    late = Strength(7.0, smallest_sigma=1.0)
    assert [late.needs_negative(call, 20, 0.5) for call in range(4)] == [True, False, True, False]
    assert all(late.needs_negative(call, 20, 1.5) for call in range(4))
    assert not any(Strength(7.0, smallest_sigma=1.0, all_calls=True).needs_negative(call, 20, 0.5) for call in range(4))
    assert all(Strength(7.0).needs_negative(call, 20, 0.01) for call in range(4))


def test_settings_decide_and_cfg_pp_counts_from_zero_to_one() -> None:
    assert of(cfg_scale=5, guidance_rescale=0.5) == Strength(5.0, rescale=0.5)
    assert of(cfg_scale=5, sampler="DDIM CFG++") == Strength(0.4)
    assert of(cfg_scale=1, sampler="DDIM CFG++") == Strength(0.08)
