"""Samplers against exact flows, k-diffusion's own figures, diffusers step by step; and their names."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from known_flows import (
    MEAN,
    SPREAD,
    CountedNoise,
    NoNoise,
    RandomNoise,
    gaussian_denoiser,
    gaussian_flow,
    mixture_denoiser,
    mixture_flow,
)
from loraloom.diffusion.objectives import Prediction, denoised
from loraloom.diffusion.samplers import SAMPLERS, SIGMA_SCHEDULES, LevelOptions, SamplerPlan, resolve_sampler
from loraloom.diffusion.sampling.brownian import BrownianPath
from loraloom.diffusion.schedules import NoiseSchedule, sampler_sigmas, sampling_sigmas
from loraloom.errors import UnknownNameError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FIGURES = json.loads((Path(__file__).parents[1] / "data_files" / "k_diffusion.json").read_text(encoding="utf-8"))
STOCHASTIC = [name for name in SAMPLERS if resolve_sampler(name).entry.random]


def without_noise(name: str) -> dict[str, float]:
    return {"eta": 0.0} if "eta" in resolve_sampler(name).entry.takes else {}


def mixture_error(name: str, steps: int, **options: float | str) -> float:
    """How far from the exact flow a sampler without noise ends, from level 3 to 0.3.

    Steps are short at both ends, where samplers that look back are of a lower order.
    """
    shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    sigmas = 3.0 - 2.7 * shares**2 * (3 - 2 * shares)
    x = torch.linspace(-5, 5, 11, dtype=torch.float64).view(1, 11)
    result = SAMPLERS.load(name)(mixture_denoiser, x, sigmas, noise=NoNoise(), **without_noise(name), **options)
    return float((result - mixture_flow(x, 3.0, 0.3)).abs().max())


# --- convergence


@pytest.mark.parametrize(
    "name", [name for name in SAMPLERS if name not in ("LCM", "DDIM CFG++", "Restart", "DPM adaptive")]
)
def test_errors_fall_with_the_order(name: str) -> None:
    coarse, middle, fine = (mixture_error(name, steps) for steps in (50, 98, 194))  # DPM fast: all end in order 2
    observed = math.log(middle / fine) / math.log(194 / 98)
    order = resolve_sampler(name).entry.order
    assert coarse > middle > fine
    assert observed > order - 0.35
    if order <= 2:
        assert observed < order + 0.6


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_has_the_order_it_is_told(variant: str, order: int) -> None:
    coarse, fine = (mixture_error("UniPC", steps, order=order, variant=variant) for steps in (100, 200))
    assert math.log2(coarse / fine) > order + 0.5  # the corrector adds one


def test_restart_without_noise_to_add_is_heun_on_its_levels() -> None:
    """Below 20 steps it is Heun; above, it still reaches the data: a restart goes up the exact way and down again."""
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).view(1, 7) * 14.6
    sigmas = sampling_sigmas(NoiseSchedule.scaled_linear(), "Karras", 19).double()
    heun = SAMPLERS.load("Heun")(gaussian_denoiser, x, sigmas, noise=NoNoise())
    assert torch.equal(SAMPLERS.load("Restart")(gaussian_denoiser, x, sigmas, noise=NoNoise()), heun)


@pytest.mark.parametrize(("steps", "ups"), [(20, 1), (35, 1), (36, 2), (50, 2)])
def test_restart_keeps_its_number_of_steps_and_goes_up_as_planned(steps: int, ups: int) -> None:
    visited: list[float] = []

    x = torch.ones(1, 3, dtype=torch.float64)
    sigmas = sampling_sigmas(NoiseSchedule.scaled_linear(), "Karras", steps).double()
    noise = CountedNoise(x)
    seen: list[int] = []

    def callback(step: int, noisy: torch.Tensor, clean: torch.Tensor) -> None:
        seen.append(step)
        # x0 = (S² x + v M) / (S² + v): the level follows from what the exact denoiser made of x
        ratio = ((noisy - clean) / (clean - MEAN)).mean().item()
        visited.append((ratio * SPREAD**2) ** 0.5)

    SAMPLERS.load("Restart")(gaussian_denoiser, x, sigmas, noise=noise, callback=callback)
    assert seen == list(range(steps))
    assert noise.drawn == ups
    rises = [(low, high) for low, high in pairwise(visited) if high > low]
    assert len(rises) == ups
    for _, high in rises:
        assert 1.4 < high < 2.7
    length = steps // 4 if steps >= 36 else 9
    jumps = [index for index, (low, high) in enumerate(pairwise(visited)) if high > low]
    assert ups == 1 or jumps[1] - jumps[0] == length


@pytest.mark.parametrize("name", [*STOCHASTIC, "DDIM"])
def test_stochastic_samplers_reach_the_right_distribution(name: str) -> None:
    entry = resolve_sampler(name).entry
    options = {"eta": 1.0} if "eta" in entry.takes else {}
    denoise, mean, spread = gaussian_denoiser, MEAN, SPREAD
    if name == "LCM":  # a consistency model's answer is the end of the flow, not the mean

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return gaussian_flow(x, float(sigma[0]), 0.0)

    sigmas = sampler_sigmas(NoiseSchedule.scaled_linear(), resolve_sampler(name, "Karras"), 400).double()
    count = 2000 if name == "DPM adaptive" else 20000
    x = torch.randn(1, count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = x * (sigmas[0] ** 2 + SPREAD**2).sqrt() + MEAN
    noise = BrownianNoise(count) if name == "DPM++ SDE" else RandomNoise(x, 6)
    result = SAMPLERS.load(name)(denoise, x, sigmas, noise=noise, **options)
    few = 4 if name == "DPM adaptive" else 1
    assert result.mean().item() == pytest.approx(mean, abs=0.02 * few)
    assert result.std().item() == pytest.approx(spread, rel=0.025 * few)


class BrownianNoise:
    """The Brownian path that images get."""

    def __init__(self, count: int) -> None:
        self._path = BrownianPath((1, count), 6)

    def brownian(self, sigma: float, following: float) -> torch.Tensor:
        return self._path.increment(sigma, following).double()


# --- k-diffusion's own results (tools/sampler_figures.py)


@pytest.mark.parametrize("name", list(dict.fromkeys(row["sampler"] for row in FIGURES)))
def test_results_are_those_of_k_diffusion(name: str) -> None:
    start = torch.linspace(-1.5, 1.5, 4, dtype=torch.float64).view(1, 4)
    rows = [row for row in FIGURES if row["sampler"] == name]
    assert len(rows) >= 3
    for row in rows:
        steps = row["steps"]
        limits = LevelOptions(smallest=0.03, largest=14.6)
        if resolve_sampler(name).entry.own_levels:
            sigmas = torch.logspace(math.log10(14.6), math.log10(0.03), steps + 1, dtype=torch.float64)
        else:
            sigmas = sampling_sigmas(NoiseSchedule.scaled_linear(), "Karras", steps, limits).double()
        result = SAMPLERS.load(name)(
            mixture_denoiser, start * sigmas[0], sigmas, noise=CountedNoise(start), **row["options"]
        )
        expected = torch.tensor([row["result"]], dtype=torch.float64)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


# --- what every sampler does


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_zero_terminal_snr_ends_finite_and_small(name: str) -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    plan = resolve_sampler(name)

    def denoise(x: torch.Tensor, sigma: torch.Tensor):
        clean = gaussian_denoiser(x, sigma)
        return (clean, clean) if plan.entry.needs_unguided else clean

    def callback(step: int, noisy: torch.Tensor, clean: torch.Tensor) -> None:
        told.append(step)

    told: list[int] = []
    for steps in (1, 2, 30):
        sigmas = sampler_sigmas(schedule, plan, steps)
        told.clear()
        x = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)) * sigmas[0]

        result = SAMPLERS.load(name)(denoise, x, sigmas, noise=RandomNoise(x, 1), callback=callback)
        assert bool(torch.isfinite(result).all())
        assert result.mean().item() == pytest.approx(MEAN, abs=0.3)
        assert result.std().item() < 2.5 * SPREAD
        if steps == 30 and name != "LCM":  # whose model would answer with the end of the flow
            assert result.std().item() == pytest.approx(SPREAD, rel=0.25)
        if not plan.entry.own_levels:
            assert told == list(range(steps))
        assert told == sorted(told)
        assert told[-1] <= steps - 1


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_table_says_which_options_a_function_has(name: str) -> None:
    entry = resolve_sampler(name).entry
    parameters = inspect.signature(SAMPLERS.load(name)).parameters
    assert set(parameters) - {"denoise", "x", "sigmas", "noise", "callback"} == set(entry.takes)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("DPM fast", "DPM adaptive")])
def test_the_table_says_how_often_the_model_is_called(name: str) -> None:
    plan = resolve_sampler(name)
    calls = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor):
        calls.append(float(sigma[0]))
        clean = gaussian_denoiser(x, sigma)
        return (clean, clean) if plan.entry.needs_unguided else clean

    x = torch.ones(1, 2)
    sigmas = sampler_sigmas(NoiseSchedule.scaled_linear(), plan, 12)
    SAMPLERS.load(name)(denoise, x, sigmas, noise=CountedNoise(x))
    assert 12 * plan.entry.calls - 1 <= len(calls) <= 12 * plan.entry.calls + (name == "PLMS")


def test_dpm_fast_calls_the_model_once_a_step() -> None:
    for steps in range(1, 10):
        calls = []

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            calls.append(sigma)  # noqa: B023
            return gaussian_denoiser(x, sigma)

        x = torch.ones(1, 2)
        sigmas = sampler_sigmas(NoiseSchedule.scaled_linear(), resolve_sampler("DPM fast"), steps)
        SAMPLERS.load("DPM fast")(denoise, x, sigmas, noise=CountedNoise(x))
        assert len(calls) == steps


def test_dpm_adaptive_is_as_exact_as_its_tolerance_and_ends_on_nan() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 9) * 14.6
    sigmas = torch.tensor([14.6, 0.03], dtype=torch.float64)
    result = SAMPLERS.load("DPM adaptive")(mixture_denoiser, x, sigmas, noise=NoNoise(), eta=0.0)
    torch.testing.assert_close(result, mixture_flow(x, 14.6, 0.03), atol=0.1, rtol=0)
    broken = SAMPLERS.load("DPM adaptive")(lambda x, sigma: x * float("nan"), x, sigmas, noise=NoNoise(), eta=0.0)
    assert bool(broken.isnan().all())


def test_ddim_cfg_pp_takes_its_noise_from_the_unguided_answer() -> None:
    x, guided, unguided = (torch.full((1, 1), value) for value in (3.0, 1.0, 0.5))
    sigmas = torch.tensor([2.0, 0.5])
    step = SAMPLERS.load("DDIM CFG++")
    result = step(lambda x, sigma: (guided, unguided), x, sigmas, noise=NoNoise())
    assert result.item() == pytest.approx(1.0 + 0.5 * (3.0 - 0.5) / 2.0)
    same = step(lambda x, sigma: (gaussian_denoiser(x, sigma),) * 2, x, sigmas, noise=NoNoise())
    assert torch.equal(same, SAMPLERS.load("DDIM")(gaussian_denoiser, x, sigmas, noise=NoNoise()))


# --- the same toy network, epsilon or v, sampled by diffusers and by us


class Toy(torch.nn.Module):
    """A small nonlinear network of (x, t) with fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        self.weight = torch.randn(4, 4, 3, 3, generator=generator) * 0.25

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        phase = (timesteps.float() / 300).view(-1, 1, 1, 1)
        return torch.nn.functional.conv2d(x, self.weight, padding=1).add(phase).sin() + 0.5 * x


def our_latents(
    prediction: Prediction, schedule: NoiseSchedule, name: str, steps: int, unit: torch.Tensor, *, pure_noise=False
):
    toy, plan, trail = Toy(), resolve_sampler(name), []
    pure_noise = pure_noise or plan.entry.pure_noise

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scale = (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        return denoised(prediction, toy(x / scale, schedule.sigma_to_timestep(sigma)), x, sigma)

    sigmas = sampler_sigmas(schedule, plan, steps)
    x = unit * ((1 + sigmas[0] ** 2).sqrt() if pure_noise else sigmas[0])
    result = SAMPLERS.load(plan.sampler)(
        denoise, x, sigmas, noise=NoNoise(), callback=lambda step, noisy, clean: trail.append(noisy)
    )
    return [*trail, result], sigmas


def their_latents(oracle, steps: int, unit: torch.Tensor):
    toy = Toy()
    oracle.set_timesteps(steps)
    x, trail = unit * oracle.init_noise_sigma, []
    for timestep in oracle.timesteps:
        trail.append(x)
        answer = toy(oracle.scale_model_input(x, timestep), timestep.expand(len(x)))
        x = oracle.step(answer, timestep, x).prev_sample
    return [*trail, x]


PREDICTIONS = [("epsilon", "epsilon"), ("v", "v_prediction")]


@pytest.mark.parametrize(("ours", "theirs"), PREDICTIONS)
@pytest.mark.parametrize("steps", [10, 28])
def test_euler_agrees_with_diffusers_at_every_step(ours: Prediction, theirs: str, steps: int) -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    mine, _ = our_latents(ours, NoiseSchedule.scaled_linear(), "Euler", steps, unit)
    oracle = EulerDiscreteScheduler(**STABLE_DIFFUSION, prediction_type=theirs)
    for own, other in zip(mine, their_latents(oracle, steps, unit), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "zero"),
    [("epsilon", "epsilon", False), ("v", "v_prediction", False), ("v", "v_prediction", True)],
)
def test_ddim_agrees_with_diffusers_at_every_step(ours: Prediction, theirs: str, zero: bool) -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=zero)
    mine, sigmas = our_latents(ours, schedule, "DDIM", 20, unit)
    oracle = DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type=theirs,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing" if zero else "leading",
        rescale_betas_zero_snr=zero,
    )
    for own, other, sigma in zip(mine, their_latents(oracle, 20, unit), sigmas, strict=True):
        torch.testing.assert_close(own / (1 + sigma**2).sqrt(), other, atol=1e-4, rtol=0)


def test_dpmpp_2m_karras_agrees_with_diffusers() -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4))
    schedule = NoiseSchedule.scaled_linear()
    mine, _ = our_latents("epsilon", schedule, "DPM++ 2M Karras", 12, unit, pure_noise=True)
    oracle = DPMSolverMultistepScheduler(**STABLE_DIFFUSION, use_karras_sigmas=True)
    oracle.set_timesteps(12)
    oracle.timesteps = schedule.sigma_to_timestep(oracle.sigmas[:-1])  # diffusers rounds them to whole ones
    toy, x = Toy(), unit
    for index, timestep in enumerate(oracle.timesteps):
        oracle._step_index = index
        x = oracle.step(toy(x, timestep.expand(2)), timestep, x).prev_sample
    torch.testing.assert_close(mine[-1], x, atol=1e-4, rtol=0)


def test_euler_from_zero_terminal_snr_agrees_with_diffusers() -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(9))
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    mine, _ = our_latents("v", schedule, "Euler", 10, unit)
    oracle = EulerDiscreteScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    theirs = their_latents(oracle, 10, unit)
    for own, other in zip(mine[1:], theirs[1:], strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-4)  # diffusers loses digits at sigma 4096


def test_heun_agrees_with_diffusers() -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4))
    mine, _ = our_latents("epsilon", NoiseSchedule.scaled_linear(), "Heun", 10, unit)
    oracle = HeunDiscreteScheduler(**STABLE_DIFFUSION)
    theirs = their_latents(oracle, 10, unit)
    torch.testing.assert_close(mine[-1], theirs[-1], atol=1e-4, rtol=0)


def test_plms_agrees_with_diffusers() -> None:
    # For v-prediction diffusers averages v, Stable Diffusion's own code and Loraloom the noise.
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(6))
    mine, sigmas = our_latents("epsilon", NoiseSchedule.scaled_linear(), "PLMS", 20, unit)
    oracle = PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    result = their_latents(oracle, 20, unit)[-1]
    torch.testing.assert_close(mine[-1] / (1 + sigmas[-1] ** 2).sqrt(), result, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("ours", "theirs"), PREDICTIONS)
def test_unipc_agrees_with_diffusers(variant: str, order: int, ours: Prediction, theirs: str) -> None:
    unit = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(7))
    schedule = NoiseSchedule.scaled_linear()
    oracle = UniPCMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=theirs,
        solver_type=variant,
        solver_order=order,
        final_sigmas_type="sigma_min",
    )
    theirs_end = their_latents(oracle, 14, unit)[-1]
    oracle.set_timesteps(14)
    toy = Toy()

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scale = (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        return denoised(ours, toy(x / scale, schedule.sigma_to_timestep(sigma, quantized=True)), x, sigma)

    sigmas = oracle.sigmas  # whole timesteps, where ours are fractions
    x = unit * (1 + sigmas[0] ** 2).sqrt()
    mine = SAMPLERS.load("UniPC")(denoise, x, sigmas, noise=NoNoise(), order=order, variant=variant)
    torch.testing.assert_close(mine / (1 + sigmas[-1] ** 2).sqrt(), theirs_end, atol=1e-4, rtol=0)
    ours_sigmas = sampler_sigmas(schedule, resolve_sampler("UniPC"), 14)
    assert float((schedule.sigma_to_timestep(ours_sigmas) - schedule.sigma_to_timestep(sigmas)).abs().max()) <= 1.0


def test_lcm_agrees_with_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(8))
    schedule = NoiseSchedule.scaled_linear()
    theirs_noise, ours_noise = CountedNoise(unit), CountedNoise(unit)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *rest, **more: theirs_noise.fresh())
    oracle = LCMScheduler(**STABLE_DIFFUSION, clip_sample=False)
    result = their_latents(oracle, 4, unit)[-1]
    toy = Toy()

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scale = (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        return denoised("epsilon", toy(x / scale, schedule.sigma_to_timestep(sigma)), x, sigma)

    sigmas = torch.cat([schedule.sigmas[oracle.timesteps], torch.zeros(1)])
    mine = SAMPLERS.load("LCM")(denoise, unit * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=ours_noise)
    torch.testing.assert_close(mine, result, atol=2e-4, rtol=0)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_dpmpp_2m_sde_agrees_with_diffusers(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    schedule = NoiseSchedule.scaled_linear()
    theirs_noise, ours_noise = CountedNoise(unit), CountedNoise(unit)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_dpmsolver_multistep.randn_tensor", lambda *rest, **more: theirs_noise.fresh()
    )
    oracle = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++", solver_type=solver
    )
    oracle.set_timesteps(10)
    oracle.timesteps = schedule.sigma_to_timestep(oracle.sigmas[:-1])
    toy, x = Toy(), unit
    for index, timestep in enumerate(oracle.timesteps):
        oracle._step_index = index
        x = oracle.step(toy(x, timestep.expand(1)), timestep, x).prev_sample

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scale = (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        return denoised("epsilon", toy(x / scale, schedule.sigma_to_timestep(sigma)), x, sigma)

    ours_noise.brownian = lambda sigma, following: ours_noise.fresh()
    sigmas = sampling_sigmas(schedule, "Karras", 10)
    name = "DPM++ 2M SDE Heun" if solver == "heun" else "DPM++ 2M SDE"
    mine = SAMPLERS.load(name)(denoise, unit * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=ours_noise)
    torch.testing.assert_close(mine, x, atol=3e-4, rtol=0)  # diffusers' coefficients have 32 bits


# --- names


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("Euler a", "Euler a", "Uniform"),
        ("euler_a", "Euler a", "Uniform"),
        ("k_euler_a", "Euler a", "Uniform"),
        ("k_euler_ancestral", "Euler a", "Uniform"),
        ("sample_euler_ancestral", "Euler a", "Uniform"),
        ("EULER", "Euler", "Uniform"),
        ("Heun", "Heun", "Uniform"),
        ("DPM++ 2M", "DPM++ 2M", "Karras"),
        ("DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("dpmpp_2m_karras", "DPM++ 2M", "Karras"),
        ("k_dpmpp_2m_ka", "DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE", "Karras"),
        ("dpmpp_2m_sde", "DPM++ 2M SDE", "Exponential"),
        ("LMS Karras", "LMS", "Karras"),
        ("euler sgm uniform", "Euler", "SGM Uniform"),
        ("ddim", "DDIM", "DDIM"),
        ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "Exponential"),
        ("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun", "Karras"),
        ("k_dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun", "Exponential"),
        ("dpmpp_2s_ancestral", "DPM++ 2S a", "Karras"),
        ("k_dpmpp_2s_a_ka", "DPM++ 2S a", "Karras"),
        ("DPM++ 2S a Karras", "DPM++ 2S a", "Karras"),
        ("dpmpp_sde_gpu", "DPM++ SDE", "Karras"),
        ("dpmpp_3m_sde", "DPM++ 3M SDE", "Exponential"),
        ("DPM++ 3M SDE Exponential", "DPM++ 3M SDE", "Exponential"),
        ("dpm_2", "DPM2", "Karras"),
        ("k_dpm_2_a", "DPM2 a", "Karras"),
        ("dpm_2_ancestral", "DPM2 a", "Karras"),
        ("dpm_fast", "DPM fast", "Uniform"),
        ("k_dpm_ad", "DPM adaptive", "Uniform"),
        ("restart", "Restart", "Karras"),
        ("plms", "PLMS", "DDIM"),
        ("PNDMScheduler", "PLMS", "DDIM"),
        ("uni_pc", "UniPC", "SGM Uniform"),
        ("UniPCMultistepScheduler", "UniPC", "SGM Uniform"),
        ("DDIM CFG++", "DDIM CFG++", "DDIM"),
        ("ddim_cfgpp", "DDIM CFG++", "DDIM"),
        ("k_lcm", "LCM", "LCM"),
        ("LCMScheduler", "LCM", "LCM"),
        ("EulerDiscreteScheduler", "Euler", "Uniform"),
        ("EulerAncestralDiscreteScheduler", "Euler a", "Uniform"),
        ("KDPM2AncestralDiscreteScheduler", "DPM2 a", "Karras"),
        ("DPMSolverMultistepScheduler", "DPM++ 2M", "Karras"),
        ("ddpm", "Euler a", "Uniform"),
    ],
)
def test_names_old_and_new(name: str, sampler: str, schedule: str) -> None:
    assert resolve_sampler(name) == SamplerPlan(sampler, schedule)


def test_an_explicit_schedule_wins_over_the_name() -> None:
    assert resolve_sampler("DPM++ 2M Karras", "exponential").schedule == "Exponential"
    assert resolve_sampler("DPM++ 2M", "Automatic").schedule == "Karras"
    assert resolve_sampler("Euler", "normal").schedule == "Normal"
    for name in ("sgm_uniform", "SGMUniform", "SGM Uniform"):
        assert resolve_sampler("Euler", name).schedule == "SGM Uniform"
    assert resolve_sampler("Euler", "align_your_steps").schedule == "Align Your Steps"
    assert resolve_sampler("Euler", "ddim_uniform").schedule == "DDIM"


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'Euler a'"):
        resolve_sampler("Eular a")
    with pytest.raises(UnknownNameError, match="sigma schedule"):
        resolve_sampler("Euler", "quadratic")


def test_every_entry_resolves_and_has_a_summary() -> None:
    for registry in (SAMPLERS, SIGMA_SCHEDULES):
        for name, entry in registry.items():
            assert callable(entry.load())
            assert entry.summary
            assert name


def test_the_tables_import_no_torch() -> None:
    code = "import sys, loraloom.diffusion.samplers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
