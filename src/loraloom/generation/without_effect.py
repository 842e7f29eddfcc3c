"""Settings of a picture that were set and change nothing, or not as asked: a table, so that none is passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loraloom.diffusion.samplers import KARRAS, SamplerEntry, SamplerPlan
from loraloom.generation.sampling import LEVELS, OPTIONS, plan_of
from loraloom.generation.settings import GenerateSettings
from loraloom.idle import is_set

__all__ = ["ROWS", "Picture", "PictureRow", "without_effect"]


@dataclass(frozen=True)
class Picture:
    """What the table is judged by."""

    settings: GenerateSettings

    @property
    def plan(self) -> SamplerPlan:
        """The sampler and its noise levels."""
        return plan_of(self.settings)

    @property
    def entry(self) -> SamplerEntry:
        """What the sampler can do."""
        return self.plan.entry


@dataclass(frozen=True)
class PictureRow:
    """When ``holds``, one sentence names all of the ``names`` that are set; without names it is given in any case."""

    names: tuple[str, ...] | Callable[[Picture], Iterator[str]]
    """Settings, or which of them it is with the sampler at hand."""
    holds: Callable[[Picture], bool]
    sentence: Callable[[Picture, str], str]
    """From what is judged, and the names that are set, joined."""


def without_effect(settings: GenerateSettings) -> list[str]:
    """What was set and has no effect, one sentence each."""
    picture = Picture(settings)
    return [sentence for row in ROWS if (sentence := _sentence(row, picture))]


def _sentence(row: PictureRow, picture: Picture) -> str:
    names = row.names if isinstance(row.names, tuple) else tuple(row.names(picture))
    changed = [name for name in names if is_set(picture.settings, name)]

    # A row without names is about the combination: nothing need be set for it to hold.
    if (row.names and not changed) or not row.holds(picture):
        return ""
    return row.sentence(picture, _listed(changed))


def _listed(names: Sequence[str]) -> str:
    *first, last = names or [""]
    return " and ".join(filter(None, [", ".join(first), last]))


# -- what the sampler has no use for ---------------------------------------------------------------------------------


def _always(picture: Picture) -> bool:
    return True


def _unused_options(picture: Picture) -> Iterator[str]:
    return (name for name, option in OPTIONS.items() if option not in picture.entry.takes)


def _unused_levels(picture: Picture) -> Iterator[str]:
    # A sampler that chooses its own levels keeps the schedule's two ends, and no more of it.
    takes = {"limits"} if picture.entry.own_levels else picture.plan.levels.takes
    return (name for name, option in LEVELS.items() if option not in takes)


def _no_churn(picture: Picture) -> bool:
    return "s_churn" in picture.entry.takes and not picture.settings.s_churn


def _own_levels(picture: Picture) -> bool:
    return picture.entry.own_levels


def _turns_to_karras(picture: Picture) -> bool:
    begin = picture.entry.karras_from
    return begin is not None and picture.settings.steps >= begin and picture.plan.schedule != KARRAS


def _karras_words(picture: Picture, _: str) -> str:
    plan, begin = picture.plan, picture.entry.karras_from
    return f"{plan.sampler} takes {KARRAS} levels from {begin} steps on, between the ends of {plan.schedule}"


def _draws_nothing_fresh(picture: Picture) -> bool:
    """Whether the sampler leaves the image's stream alone: its noise is of a Brownian path, or it adds none."""
    settings, entry = picture.settings, picture.entry
    if entry.brownian:
        return True

    # Ancestral and SDE samplers add noise unless eta is 0; the others only when asked to.
    asked = settings.eta != 0 if entry.random else bool(settings.eta or settings.s_churn)
    return not asked


SAMPLER_ROWS: tuple[PictureRow, ...] = (
    PictureRow(_unused_options, _always, lambda p, names: f"{p.plan.sampler} has no use for {names}"),
    PictureRow(
        ("s_tmin", "s_tmax", "s_noise"),
        _no_churn,
        lambda p, names: f"without s_churn, {p.plan.sampler} has no use for {names}",
    ),
    PictureRow(_unused_levels, _always, lambda p, names: f"the noise levels {p.plan.schedule} have no use for {names}"),
    PictureRow(
        (),
        lambda p: _own_levels(p) and not p.plan.is_usual,
        lambda p, _: f"{p.plan.sampler} chooses its own noise levels, so {p.plan.schedule} does nothing",
    ),
    PictureRow(
        ("discard_penultimate_sigma",),
        lambda p: _own_levels(p) and bool(p.settings.discard_penultimate_sigma),
        lambda p, name: f"{p.plan.sampler} chooses its own noise levels, so {name} does nothing",
    ),
    PictureRow((), _turns_to_karras, _karras_words),
    PictureRow(
        ("sgm_noise_multiplier",),
        lambda p: p.entry.pure_noise,
        lambda p, name: f"{p.plan.sampler} starts from pure noise anyway, so {name} does nothing",
    ),
    PictureRow(
        ("variation_seed",),
        lambda p: p.settings.variation_strength == 0,
        lambda _, name: f"{name} does nothing without variation_strength",
    ),
    PictureRow(
        ("eta_noise_seed_delta",),
        _draws_nothing_fresh,
        lambda p, name: f"{name} does nothing: {p.plan.sampler} draws no fresh noise from the seed",
    ),
    PictureRow(
        ("batch_size",),
        lambda p: p.entry.one_at_a_time,
        lambda p, _: f"{p.plan.sampler} fits its steps to each image, so images are made one at a time",
    ),
    PictureRow(
        (),
        lambda p: p.entry.needs_unguided and p.settings.cfg_scale > 12.5,
        lambda p, _: f"{p.plan.sampler} is meant for a cfg_scale between 0 and 12.5",
    ),
    PictureRow(
        ("guidance_rescale", "s_min_uncond", "s_min_uncond_all", "skip_early_cfg"),
        lambda p: p.settings.cfg_scale == 1 and not p.entry.needs_unguided,
        lambda _, names: f"cfg_scale=1 turns guidance off, so {names} has no effect",
    ),
)


# -- what belongs to a picture, a mask or a second pass that is not there --------------------------------------------


def _of_a_picture(picture: Picture) -> Iterator[str]:
    yield from ("resize_mode", "all_steps")

    # The second pass paints its enlarged picture anew by the same share.
    if not picture.settings.has_hires:
        yield "denoising_strength"


PICTURE_ROWS: tuple[PictureRow, ...] = (
    PictureRow(
        _of_a_picture,
        lambda p: p.settings.init_image is None,
        lambda _, names: f"without init_image, {names} has no effect",
    ),
    PictureRow(
        ("mask_blur", "mask_invert", "mask_content", "inpaint_area", "inpaint_padding"),
        lambda p: p.settings.mask is None,
        lambda _, names: f"without mask, {names} has no effect",
    ),
    PictureRow(
        tuple(name for name in GenerateSettings.model_fields if name.startswith("hires_")),
        lambda p: not p.settings.has_hires,
        lambda _, names: f"without hires_scale or hires_width and hires_height, {names} has no effect",
    ),
    PictureRow(
        ("inpaint_padding",),
        lambda p: p.settings.mask is not None and p.settings.inpaint_area == "whole",
        lambda _, name: f"{name} is for inpaint_area=mask",
    ),
)

ROWS = SAMPLER_ROWS + PICTURE_ROWS
