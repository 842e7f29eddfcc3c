"""Write tests/data_files/k_diffusion.json: what k-diffusion's own samplers make of a known denoiser and known noise.

    python tools/sampler_figures.py

Needs k-diffusion (0.1.1 was used), which is no dependency of the project: run it in an environment of its own.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from k_diffusion import sampling  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from known_flows import CountedNoise, mixture_denoiser

PAGE = ROOT / "tests" / "data_files" / "k_diffusion.json"
CHURN = {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.01}
FRESH: list[dict[str, float]] = [{"eta": 1.0}, {"eta": 0.6, "s_noise": 1.02}]
SAMPLERS: dict[str, tuple[str, list[dict[str, float]], dict[str, Any]]] = {
    "DPM++ 2M": ("dpmpp_2m", [{}], {}),
    "DPM++ SDE": ("dpmpp_sde", FRESH, {}),
    "DPM++ 2M SDE": ("dpmpp_2m_sde", FRESH, {}),
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde", FRESH, {"solver_type": "heun"}),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", FRESH, {}),
    "DPM++ 3M SDE": ("dpmpp_3m_sde", FRESH, {}),
    "Euler a": ("euler_ancestral", FRESH, {}),
    "Euler": ("euler", [{}, CHURN], {}),
    "LMS": ("lms", [{}], {}),
    "Heun": ("heun", [{}, CHURN], {}),
    "DPM2": ("dpm_2", [{}, CHURN], {}),
    "DPM2 a": ("dpm_2_ancestral", FRESH, {}),
    "DPM fast": ("dpm_fast", [{"eta": 0.0}, *FRESH], {}),
    "DPM adaptive": ("dpm_adaptive", [{"eta": 0.0}, *FRESH], {}),
}


def levels(steps: int) -> torch.Tensor:
    """Karras levels over Stable Diffusion's range, then 0."""
    return sampling.get_sigmas_karras(steps, 0.03, 14.6).double()


def start() -> torch.Tensor:
    return torch.linspace(-1.5, 1.5, 4, dtype=torch.float64).view(1, 4)


def run(name: str, steps: int, options: dict[str, float]) -> list[float]:
    function, _, fixed = SAMPLERS[name]
    sample = getattr(sampling, f"sample_{function}")
    sigmas, noise = levels(steps), CountedNoise(start())
    # What the samplers draw without a noise_sampler: the same counted numbers.
    sampling.torch = SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch)})
    sampling.torch.randn_like = lambda x: noise.fresh()
    arguments: dict[str, Any] = {**options, **fixed, "disable": True}
    if "noise_sampler" in inspect.signature(sample).parameters:
        brownian: Callable[..., torch.Tensor] = lambda *pair: noise.brownian(*map(float, pair))  # noqa: E731
        arguments["noise_sampler"] = brownian if "SDE" in name else lambda *pair: noise.fresh()
    x = start() * sigmas[0]
    if function == "dpm_fast":
        result = sample(mixture_denoiser, x, 0.03, 14.6, steps, **arguments)
    elif function == "dpm_adaptive":
        result = sample(mixture_denoiser, x, 0.03, 14.6, **arguments)
    else:
        result = sample(mixture_denoiser, x, sigmas, **arguments)
    return [round(value, 12) for value in result.flatten().tolist()]


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    rows = [
        {"sampler": name, "steps": steps, "options": options, "result": run(name, steps, options)}
        for name, (_, choices, _) in SAMPLERS.items()
        for options in choices
        for steps in (6, 7, 20)
    ]
    PAGE.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(f"{len(rows)} figures in {PAGE}")
