"""The tables of samplers and of their noise levels: names, code, usual choices. Imports no torch: every door shows it.

The samplers are in ``loraloom.diffusion.sampling``, the noise levels in ``loraloom.diffusion.schedules``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraloom.errors import UnknownNameError
from loraloom.registry import Entry, Registry

__all__ = [
    "ALIGNED_SD",
    "ALIGNED_SDXL",
    "KARRAS",
    "SAMPLERS",
    "SIGMA_SCHEDULES",
    "LevelOptions",
    "SamplerEntry",
    "SamplerPlan",
    "SigmaScheduleEntry",
    "resolve_sampler",
    "resolve_sigma_schedule",
]

ALIGNED_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGNED_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""Levels that were optimized for a model with ten steps (Align Your Steps, Sabour et al., 2404.14507)."""


KARRAS = "Karras"
"""The noise levels that some samplers take themselves."""


@dataclass(frozen=True)
class LevelOptions:
    """What shapes noise levels besides their name; None is the usual choice."""

    smallest: float | None = None
    """Last level above zero. None: that of the model."""
    largest: float | None = None
    """First level. None: that of the model."""
    rho: float | None = None
    """Exponent of Karras (7) and Polyexponential (1)."""
    beta: tuple[float, float] = (0.6, 0.6)
    """Alpha and beta of Beta's distribution."""
    aligned: tuple[float, ...] = ALIGNED_SD
    """The table of Align Your Steps for this family of models."""


@dataclass(frozen=True)
class SigmaScheduleEntry(Entry):
    """Noise levels: their code, and which of the LevelOptions it uses (``limits`` are smallest and largest)."""

    takes: frozenset[str] = frozenset()
    old_names: tuple[str, ...] = ()
    is_of_sampler: bool = False
    """Whether it comes with one sampler, and has no name of its own in the web UI."""


@dataclass(frozen=True)
class SamplerEntry(Entry):
    """A sampler: its code, how it starts, what it costs, which options it takes."""

    schedule: str = "Uniform"
    """The noise levels it uses unless others are chosen ("Automatic"), as in the web UI."""
    takes: frozenset[str] = frozenset()
    """Options of its function: eta, s_noise, s_churn, s_tmin, s_tmax, order, variant."""
    order: int = 1
    calls: int = 1
    """Model calls a step."""
    random: bool = False
    """Whether it adds noise in every step unless its options say otherwise."""
    old_names: tuple[str, ...] = ()
    pure_noise: bool = False
    """Start from unit noise in the variance-preserving picture: x = noise * sqrt(1 + sigma²), not noise * sigma."""
    ends_at_first: bool = False
    """With its usual noise levels it ends at that of the first training timestep, not at zero."""
    discards_penultimate: bool = False
    """Leave out the last level above zero, and start with one more."""
    own_levels: bool = False
    """It chooses its levels between the ends of the schedule; the noise levels that are named do nothing."""
    one_at_a_time: bool = False
    """Its steps depend on the image, so a batch would change it."""
    brownian: bool = False
    """All of its noise is increments of the image's Brownian path; none is drawn from the stream of its seed."""
    karras_from: int | None = None
    """From this many steps on it takes Karras levels between the ends of those that are named."""
    needs_unguided: bool = False
    """Its function is given clean latents with guidance and without; the guidance scale is divided by 12.5."""


@dataclass(frozen=True)
class SamplerPlan:
    """A sampler and its noise levels, both by the names used in the tables (and by A1111)."""

    sampler: str
    schedule: str

    @property
    def entry(self) -> SamplerEntry:
        """The sampler's entry in SAMPLERS."""
        entry = SAMPLERS[self.sampler]
        return entry if isinstance(entry, SamplerEntry) else SamplerEntry(entry.target, entry.summary)

    @property
    def levels(self) -> SigmaScheduleEntry:
        """The entry of its noise levels in SIGMA_SCHEDULES."""
        entry = SIGMA_SCHEDULES[self.schedule]
        return entry if isinstance(entry, SigmaScheduleEntry) else SigmaScheduleEntry(entry.target, entry.summary)

    @property
    def is_usual(self) -> bool:
        """Whether the noise levels are those that the sampler uses unless others are chosen."""
        return self.schedule == self.entry.schedule


def _normalized(name: str) -> str:
    """A name without what does not count: case, blanks, signs, ``k_``, ``sample_``, ``_gpu``, ``DiscreteScheduler``."""
    plain = re.sub(r"^(sample_|k_)+", "", name.strip().lower().replace("++", "pp").replace(" ", "_"))
    plain = re.sub(r"[^a-z0-9]", "", plain.replace("ancestral", "a"))
    return re.sub(r"(discrete)?scheduler$|gpu$", "", plain)


def _is_automatic(name: str) -> bool:
    return _normalized(name) in ("", "automatic", "default")


def resolve_sigma_schedule(name: str) -> str:
    """The name in SIGMA_SCHEDULES that ``name`` means, whatever its spelling; raises UnknownNameError."""
    wanted = _normalized(name)
    for known, entry in SIGMA_SCHEDULES.items():
        old = entry.old_names if isinstance(entry, SigmaScheduleEntry) else ()
        if wanted in map(_normalized, (known, *old)):
            return known
    raise UnknownNameError(SIGMA_SCHEDULES.kind, name, SIGMA_SCHEDULES)


def resolve_sampler(name: str, schedule: str = "automatic") -> SamplerPlan:
    """The sampler that ``name`` means: A1111's names old and new, those of k-diffusion, ComfyUI, diffusers' classes.

    A schedule in the name ("dpmpp_2m_karras") is used unless ``schedule`` names one; raises UnknownNameError.
    """
    wanted = _normalized(name)
    suffixes = {
        "": "",
        **{_normalized(known): known for known in SIGMA_SCHEDULES},
        "ka": "Karras",
        "exp": "Exponential",
    }
    for title in SAMPLERS:
        entry = SamplerPlan(title, "").entry
        stems = {_normalized(known) for known in (title, *entry.old_names)}
        for suffix, named in suffixes.items():
            if wanted.endswith(suffix) and wanted[: len(wanted) - len(suffix)] in stems:
                if not _is_automatic(schedule):
                    named = resolve_sigma_schedule(schedule)
                return SamplerPlan(title, named or entry.schedule)
    raise UnknownNameError(SAMPLERS.kind, name, SAMPLERS)


_SAMPLING = "loraloom.diffusion.sampling"
_SCHEDULES = "loraloom.diffusion.schedules"
_LIMITS = frozenset({"limits"})

SIGMA_SCHEDULES = Registry(
    "sigma schedule",
    {
        "Uniform": SigmaScheduleEntry(f"{_SCHEDULES}:uniform", "evenly spaced timesteps, ending with the first"),
        KARRAS: SigmaScheduleEntry(
            f"{_SCHEDULES}:karras", "more steps at low noise (rho 7)", takes=frozenset({"limits", "rho"})
        ),
        "Exponential": SigmaScheduleEntry(f"{_SCHEDULES}:exponential", "evenly spaced in log sigma", takes=_LIMITS),
        "Polyexponential": SigmaScheduleEntry(
            f"{_SCHEDULES}:polyexponential",
            "a power of even spacing in log sigma; rho 1 is Exponential",
            takes=frozenset({"limits", "rho"}),
        ),
        "SGM Uniform": SigmaScheduleEntry(
            f"{_SCHEDULES}:sgm_uniform", "evenly spaced timesteps, stopping one stride short", takes=_LIMITS
        ),
        "KL Optimal": SigmaScheduleEntry(
            f"{_SCHEDULES}:kl_optimal", "evenly spaced in arctan sigma, ending at the smallest level", takes=_LIMITS
        ),
        "Align Your Steps": SigmaScheduleEntry(
            f"{_SCHEDULES}:align_your_steps",
            "levels optimized for ten steps of SD 1.5 or SDXL",
            takes=frozenset({"aligned"}),
            old_names=("ays", "align_your_steps"),
        ),
        "Simple": SigmaScheduleEntry(f"{_SCHEDULES}:simple", "every n-th training noise level"),
        "Normal": SigmaScheduleEntry(f"{_SCHEDULES}:normal", "Uniform between any two levels", takes=_LIMITS),
        "DDIM": SigmaScheduleEntry(f"{_SCHEDULES}:ddim", "DDIM's whole timesteps", old_names=("ddim_uniform",)),
        "Beta": SigmaScheduleEntry(
            f"{_SCHEDULES}:beta", "more steps at both ends of the noise", takes=frozenset({"limits", "beta"})
        ),
        "Turbo": SigmaScheduleEntry(
            f"{_SCHEDULES}:turbo",
            "whole timesteps counted from the last, for distilled models",
            old_names=("trailing",),
        ),
        "LCM": SigmaScheduleEntry(
            f"{_SCHEDULES}:lcm",
            "evenly spaced among the 50 timesteps of consistency models",
            is_of_sampler=True,
        ),
    },
)

_CHURN = frozenset({"s_churn", "s_tmin", "s_tmax", "s_noise"})
_FRESH = frozenset({"eta", "s_noise"})

SAMPLERS = Registry(
    "sampler",
    {
        "DPM++ 2M": SamplerEntry(
            f"{_SAMPLING}.multistep:dpmpp_2m",
            "second order, one call a step",
            schedule="Karras",
            order=2,
            old_names=("dpmsolver++", "dpmsolver", "DPMSolverMultistepScheduler"),
        ),
        "DPM++ SDE": SamplerEntry(
            f"{_SAMPLING}.two_calls:dpmpp_sde",
            "stochastic, noise in the middle of a step too; good with few steps",
            schedule="Karras",
            takes=_FRESH,
            order=2,
            calls=2,
            random=True,
            brownian=True,
            old_names=("DPMSolverSDEScheduler",),
        ),
        "DPM++ 2M SDE": SamplerEntry(
            f"{_SAMPLING}.multistep:dpmpp_2m_sde",
            "DPM++ 2M with fresh noise in every step",
            schedule="Exponential",
            takes=_FRESH,
            order=2,
            random=True,
            brownian=True,
        ),
        "DPM++ 2M SDE Heun": SamplerEntry(
            f"{_SAMPLING}.multistep:dpmpp_2m_sde_heun",
            "DPM++ 2M SDE with its correction integrated exactly",
            schedule="Exponential",
            takes=_FRESH,
            order=2,
            random=True,
            brownian=True,
        ),
        "DPM++ 2S a": SamplerEntry(
            f"{_SAMPLING}.two_calls:dpmpp_2s_ancestral",
            "a second call in the middle of an ancestral step",
            schedule="Karras",
            takes=_FRESH,
            order=2,
            calls=2,
            random=True,
        ),
        "DPM++ 3M SDE": SamplerEntry(
            f"{_SAMPLING}.multistep:dpmpp_3m_sde",
            "stochastic, uses the last three predictions; for many steps",
            schedule="Exponential",
            takes=_FRESH,
            order=2,
            random=True,
            brownian=True,
            discards_penultimate=True,
        ),
        "Euler a": SamplerEntry(
            f"{_SAMPLING}.one_step:euler_ancestral",
            "first order with fresh noise in every step; soft images that keep changing with the steps",
            takes=_FRESH,
            random=True,
            old_names=("ddpm",),
        ),
        "Euler": SamplerEntry(f"{_SAMPLING}.one_step:euler", "the simplest: first order, deterministic", takes=_CHURN),
        "LMS": SamplerEntry(f"{_SAMPLING}.multistep:lms", "fourth order from past predictions", order=4),
        "Heun": SamplerEntry(
            f"{_SAMPLING}.two_calls:heun", "Euler corrected at the end of a step", takes=_CHURN, order=2, calls=2
        ),
        "DPM2": SamplerEntry(
            f"{_SAMPLING}.two_calls:dpm_2",
            "Euler with a second call in the middle of a step",
            schedule="Karras",
            takes=_CHURN,
            order=2,
            calls=2,
            old_names=("KDPM2DiscreteScheduler",),
            discards_penultimate=True,
        ),
        "DPM2 a": SamplerEntry(
            f"{_SAMPLING}.two_calls:dpm_2_ancestral",
            "DPM2 with fresh noise in every step",
            schedule="Karras",
            takes=_FRESH,
            order=2,
            calls=2,
            random=True,
            old_names=("KDPM2AncestralDiscreteScheduler",),
            discards_penultimate=True,
        ),
        "DPM fast": SamplerEntry(
            f"{_SAMPLING}.dpm_solver:dpm_fast",
            "third-order steps on levels of its own; as many calls as steps",
            takes=_FRESH,
            order=3,
            random=True,
            own_levels=True,
        ),
        "DPM adaptive": SamplerEntry(
            f"{_SAMPLING}.dpm_solver:dpm_adaptive",
            "steps as long as the error allows, whatever the number of steps",
            takes=_FRESH,
            order=3,
            calls=3,
            random=True,
            old_names=("dpm_ad",),
            own_levels=True,
            one_at_a_time=True,
        ),
        "Restart": SamplerEntry(
            f"{_SAMPLING}.two_calls:restart",
            "Heun that goes back to a higher noise once or twice (from 20 steps on)",
            schedule="Karras",
            takes=frozenset({"s_noise"}),
            order=2,
            calls=2,
            random=True,
            karras_from=20,
        ),
        "DDIM": SamplerEntry(
            f"{_SAMPLING}.one_step:ddim",
            "Stable Diffusion's first sampler",
            schedule="DDIM",
            takes=_FRESH,
            pure_noise=True,
            ends_at_first=True,
        ),
        "DDIM CFG++": SamplerEntry(
            f"{_SAMPLING}.one_step:ddim_cfg_pp",
            "DDIM with guidance that stays on the path of the model",
            schedule="DDIM",
            takes=_FRESH,
            pure_noise=True,
            ends_at_first=True,
            needs_unguided=True,
        ),
        "PLMS": SamplerEntry(
            f"{_SAMPLING}.multistep:plms",
            "DDIM's levels, fourth order from past predictions",
            schedule="DDIM",
            order=2,
            old_names=("pndm",),
            pure_noise=True,
            ends_at_first=True,
        ),
        "UniPC": SamplerEntry(
            f"{_SAMPLING}.unipc:unipc",
            "predictor and corrector of third order; good with few steps",
            schedule="SGM Uniform",
            takes=frozenset({"order", "variant"}),
            order=3,
            old_names=("UniPCMultistepScheduler",),
            pure_noise=True,
            ends_at_first=True,
        ),
        "LCM": SamplerEntry(
            f"{_SAMPLING}.one_step:lcm",
            "for consistency models and LCM LoRAs: 4 to 8 steps, cfg_scale 1 to 2",
            schedule="LCM",
            takes=frozenset({"s_noise"}),
            random=True,
        ),
    },
)
