"""The same noise, text and checkpoint through diffusers' pipelines: the latents agree at the end of the whole way."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler

from loraloom.diffusion.objectives import Prediction
from loraloom.formats.tensors import write_tensors
from loraloom.generation.noise import initial_noise
from loraloom.generation.prompts import parse_attention
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import text_to_image
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.saving import save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning", "ignore::FutureWarning")
SIZE = {"width": 64, "height": 48}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[LoadedModel, DiffusionPipeline]]:
    """A toy in our hands and, saved as a Diffusers folder, in theirs; made once for each kind."""

    @lru_cache
    def load(family: str, prediction: Prediction, *, zero: bool) -> tuple[LoadedModel, DiffusionPipeline]:
        folder = tmp_path_factory.mktemp(family)
        path = folder / "toy.safetensors"
        tensors = FAMILIES.load(family)().toy(seed=3)
        # An untrained U-Net answers with large numbers, which high noise levels multiply: a smaller last layer.
        for name in ("model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.bias"):
            tensors[name] = tensors[name] * 0.05
        write_tensors(path, tensors)
        model = load_model(path, device=torch.device("cpu"), prediction=prediction, zero_terminal_snr=zero)
        save_checkpoint(model, folder / "saved")
        pipeline = DiffusionPipeline.from_pretrained(folder / "saved", torch_dtype=torch.float32, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return model, pipeline

    return load


CASES = [
    ("sd1", "epsilon", "Euler", False),
    ("sd1", "epsilon", "DDIM", False),
    ("sd2", "v", "Euler", False),
    ("sd2", "v", "DDIM", False),
    ("sd2", "v", "DDIM", True),
    ("sdxl", "epsilon", "Euler", False),
    ("sdxl", "epsilon", "DDIM", False),
]


@pytest.mark.parametrize(("family", "prediction", "sampler", "zero"), CASES)
def test_images_agree(
    both: Callable[..., tuple[LoadedModel, DiffusionPipeline]],
    family: str,
    prediction: Prediction,
    sampler: str,
    zero: bool,
) -> None:
    model, pipeline = both(family, prediction, zero=zero)
    kind = "v_prediction" if prediction == "v" else "epsilon"
    if sampler == "Euler":
        pipeline.scheduler = EulerDiscreteScheduler(**STABLE_DIFFUSION, prediction_type=kind)
    else:
        pipeline.scheduler = DDIMScheduler(
            **STABLE_DIFFUSION,
            prediction_type=kind,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="trailing" if zero else "leading",
            rescale_betas_zero_snr=zero,
        )
    wanted = {"prompt": "a red cat on a wall", "steps": 10, "cfg_scale": 5.0, "seed": 21, "sampler": sampler}
    negative = "" if family == "sdxl" else "dog"  # both make the empty one zeros
    (ours,) = text_to_image(model, GenerateSettings.parse({**wanted, **SIZE, "negative_prompt": negative}))
    common = {
        "prompt": wanted["prompt"],
        "negative_prompt": negative or None,
        "num_inference_steps": 10,
        "guidance_scale": 5.0,
        **SIZE,
    }
    noise = initial_noise(21, **SIZE)[None]
    theirs = pipeline(**common, latents=noise.clone(), output_type="latent").images[0]
    torch.testing.assert_close(ours.latent, theirs, atol=1e-4, rtol=0)

    pixels = pipeline(**common, latents=noise.clone(), output_type="np").images[0]
    own = torch.tensor(list(ours.image.tobytes())).reshape(48, 64, 3)
    assert float((own - torch.from_numpy(pixels) * 255).abs().max()) < 0.6  # rounding to bytes


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_images_agree_for_the_same_embeddings(
    both: Callable[..., tuple[LoadedModel, DiffusionPipeline]], sampler: str
) -> None:
    model, pipeline = both("sd1", "epsilon", zero=False)
    pipeline.scheduler = (
        EulerDiscreteScheduler(**STABLE_DIFFUSION)
        if sampler == "Euler"
        else DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    )
    long = ", ".join(f"word{index}" for index in range(60))  # two chunks of 75, beyond the pipeline's own 77
    settings = GenerateSettings(
        prompt=f"(a:1.3) cat, {long}", negative_prompt=long, steps=10, seed=4, sampler=sampler, clip_skip=2, **SIZE
    )
    (ours,) = text_to_image(model, settings)
    positive, negative = (
        model.encode_text([parse_attention(text)], clip_skip=2).context
        for text in (settings.prompt, settings.negative_prompt)
    )
    theirs = pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_inference_steps=10,
        guidance_scale=7.0,
        latents=initial_noise(4, **SIZE)[None],
        output_type="latent",
        **SIZE,
    ).images[0]
    torch.testing.assert_close(ours.latent, theirs, atol=1e-4, rtol=0)
