"""How strongly classifier-free guidance (Ho and Salimans, 2207.12598) follows the prompt, and in which model calls."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from loraloom.diffusion.samplers import SamplerPlan
from loraloom.generation.settings import GenerateSettings

__all__ = ["Strength", "strength_of"]

_CFG_PP_UNIT = 12.5
"""CFG++ weighs from 0 to 1; the web UI's scale of 12.5 is its 1."""


@dataclass(frozen=True)
class Strength:
    """The strength of the prompt, and the model calls that do without the negative prompt."""

    scale: float
    rescale: float = 0.0
    """How far the guided answer is given back the standard deviation of the one with the prompt (2305.08891, 3.4)."""
    smallest_sigma: float = 0.0
    """Below this noise level every second call (``all_calls``: each) is made with the prompt alone."""
    all_calls: bool = False
    skip_early: float = 0.0
    """Share of the calls, from the first, made with the prompt alone."""

    def needs_negative(self, call: int, calls: int, sigma: float) -> bool:
        """Whether the ``call``-th of all calls (from 0) asks about the negative prompt too."""
        if self.skip_early > 0 and call / calls <= self.skip_early:
            return False
        return not (sigma < self.smallest_sigma and (call % 2 == 1 or self.all_calls))

    def combine(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The guided answer (B, C, h, w) of the model, in whatever it predicts.

        ``positive`` is its answer at scale 1: that of the prompt, or of all its parts together.
        """
        guided = negative + self.scale * (positive - negative)
        if self.rescale == 0:
            return guided
        dimensions = tuple(range(1, positive.ndim))
        matched = guided * (positive.std(dimensions, keepdim=True) / guided.std(dimensions, keepdim=True))
        return guided + self.rescale * (matched - guided)


def strength_of(settings: GenerateSettings, plan: SamplerPlan) -> Strength:
    """The guidance that the settings ask of a sampler."""
    scale = settings.cfg_scale / _CFG_PP_UNIT if plan.entry.needs_unguided else settings.cfg_scale
    return Strength(
        scale,
        rescale=settings.guidance_rescale,
        smallest_sigma=settings.s_min_uncond,
        all_calls=settings.s_min_uncond_all,
        skip_early=settings.skip_early_cfg,
    )
