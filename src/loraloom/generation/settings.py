"""Settings of image generation. No torch here: the command line reads this file to print help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from loraloom.diffusion.samplers import SAMPLERS, SIGMA_SCHEDULES, resolve_sampler
from loraloom.errors import UnknownNameError
from loraloom.setting_marks import Offers
from loraloom.settings import Settings

__all__ = ["GenerateSettings", "PromptCompatibility", "PromptEmphasis"]

LARGEST_AREA = 4096 * 4096
HIRES_UPSCALERS = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
    "Lanczos",
    "Bicubic",
    "Nearest",
)
"""The web UI's names of ways to enlarge that need no model of their own."""
_AUTOMATIC = {"automatic": "the sampler's usual ones"}

PromptCompatibility = Literal["none", "a1111", "a1111-1.5"]
"""The rules that prompts are read by: Loraloom's, or the web UI's since or before its version 1.6, faults included."""
PromptEmphasis = Literal["original", "no_norm", "comfy", "ignore", "none"]
"""What weights in brackets do."""


class GenerateSettings(Settings):
    """What to paint, and how."""

    prompt: str = ""
    """What the image shows. ``(word:1.2)`` weighs, ``[day:night:0.5]`` changes half way, ``AND`` joins two prompts,
    ``{red|blue}`` draws one, ``<lora:name:0.8>`` uses a LoRA; the whole language is in docs/prompts.md."""
    negative_prompt: str = ""
    """What the image should not show."""
    styles: tuple[str, ...] = ()
    """Styles to add to both prompts, by name."""
    style_files: tuple[Path, ...] = (Path("styles.csv"),)
    """Tables of styles with the columns name, prompt and negative_prompt, as the web UI keeps them."""
    dynamic_prompts: bool = True
    """Draw ``{red|blue}`` and ``__name__`` anew for every image. Off: they are text."""
    wildcard_folders: tuple[Path, ...] = (Path("wildcards"),)
    """Folders, searched with their subfolders, for the text file that ``__name__`` draws a line of."""
    embedding_folders: tuple[Path, ...] = (Path("embeddings"),)
    """Folders, searched with their subfolders, for textual-inversion embeddings; a file's name in a prompt uses it."""
    emphasis: PromptEmphasis = "original"
    """What weights do: original (the web UI's: multiply, then restore the mean), no_norm (multiply only), comfy
    (ComfyUI's: multiply the difference from an empty text), ignore (nothing), none (brackets are text)."""
    comma_backtrack: Annotated[int, Field(ge=0, le=74)] = 20
    """If a chunk of 75 tokens ends within a phrase, the words after a comma at most this many tokens back move to the
    next chunk."""
    prompt_compatibility: PromptCompatibility = "none"
    """a1111: read prompts exactly as the web UI does, its known faults included; a1111-1.5: as it did before 1.6."""
    width: Annotated[int | None, Field(ge=8, le=8192, multiple_of=8)] = None
    """Width in pixels, a multiple of 8. Unset: what the checkpoint's file says of its resolution, or its family's."""
    height: Annotated[int | None, Field(ge=8, le=8192, multiple_of=8)] = None
    """Height in pixels, likewise."""
    steps: Annotated[int, Field(ge=1, le=500)] = 20
    """Sampler steps."""
    cfg_scale: Annotated[float, Field(ge=0, le=100)] = 7.0
    """How strongly the prompt is followed (classifier-free guidance). 1 ignores the negative prompt and is faster."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Give the guided prediction the contrast of that for the prompt alone, 0 to 1; 0.7 for zero-terminal-SNR
    checkpoints."""
    s_min_uncond: Annotated[float, Field(ge=0, le=20)] = 0.0
    """Below this noise level every second model call has no negative prompt ("NGMS"): faster, nearly the same."""
    s_min_uncond_all: bool = False
    """Leave the negative prompt out of every call below s_min_uncond, not only of every second one."""
    skip_early_cfg: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the model calls, from the first, that leave the negative prompt out: more varied pictures."""
    sampler: Annotated[str, Offers(SAMPLERS)] = "Euler a"
    """Any of A1111's (docs/generating.md), in any spelling; "DPM++ 2M SDE Karras" names the noise levels too."""
    schedule: Annotated[str, Offers(SIGMA_SCHEDULES, more=_AUTOMATIC)] = "automatic"
    """Noise levels: automatic (the sampler's usual ones), Uniform, Karras, Exponential, Polyexponential, SGM Uniform,
    KL Optimal, Align Your Steps, Simple, Normal, DDIM, Beta, Turbo or LCM."""
    sigma_min: Annotated[float | None, Field(gt=0, le=1000)] = None
    """Last noise level above zero, for noise levels that are free to choose it. Unset: the checkpoint's own."""
    sigma_max: Annotated[float | None, Field(gt=0, le=10000)] = None
    """First noise level, likewise. Unset: the checkpoint's own."""
    rho: Annotated[float | None, Field(gt=0, le=50)] = None
    """Exponent of Karras (unset: 7) and Polyexponential (unset: 1): larger puts more steps at low noise."""
    beta_alpha: Annotated[float, Field(gt=0, le=20)] = 0.6
    """First parameter of the distribution behind the noise levels Beta: smaller puts more steps at low noise."""
    beta_beta: Annotated[float, Field(gt=0, le=20)] = 0.6
    """Its second parameter: smaller puts more steps at high noise."""
    discard_penultimate_sigma: bool | None = None
    """Leave out the last noise level above zero. Unset: for DPM2, DPM2 a and DPM++ 3M SDE."""
    sgm_noise_multiplier: bool = False
    """Start with the amount of noise that SDXL's own code starts with: sqrt(1 + sigma²), not sigma."""
    eta: Annotated[float | None, Field(ge=0, le=2)] = None
    """Fresh noise at every step. Unset: 1 for ancestral and SDE samplers and DPM fast and adaptive, 0 for DDIM and
    DDIM CFG++; the other samplers use none."""
    s_churn: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Noise that Euler, Heun and DPM2 add before each step and remove in it."""
    s_tmin: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Lowest noise level at which s_churn works."""
    s_tmax: Annotated[float | None, Field(gt=0)] = None
    """Highest noise level at which s_churn works. Unset: no limit."""
    s_noise: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Strength of all noise that is added while sampling; a little above 1 gives more detail."""
    unipc_order: Annotated[int, Field(ge=1, le=6)] = 3
    """Order of UniPC."""
    unipc_variant: Literal["bh1", "bh2"] = "bh1"
    """UniPC's B(h). bh1 is the web UI's, bh2 that of diffusers."""
    eta_noise_seed_delta: Annotated[int, Field(ge=-(2**31), le=2**31)] = 0
    """Added to the seed for the noise of later steps ("ENSD"; 31337 repeats NovelAI's images)."""
    seed: Annotated[int, Field(ge=-1, le=2**62)] = -1
    """Seed of the first image, the next one gets seed + 1. -1: a random one, written into the image."""
    variation_seed: Annotated[int, Field(ge=-1, le=2**62)] = -1
    """Seed towards which variation_strength goes; with several images it counts up and the seed stays the same. -1:
    random."""
    variation_strength: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far the first noise is from the seed's (0) to the variation seed's (1)."""
    seed_resize_from: Annotated[str | None, Field(pattern=r"^[1-9]\d{0,3}x[1-9]\d{0,3}$")] = None
    """Width and height, such as 512x512, of an image with this seed whose composition is kept in another size."""
    count: Annotated[int, Field(ge=1, le=10000)] = 1
    """Images to make."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 1
    """Images made at once. It changes speed and memory, not the images."""
    clip_skip: Annotated[int | None, Field(ge=1, le=24)] = None
    """Layer of the text encoder counted from the end. Unset: the family's usual one."""
    model_hash: bool = True
    """Write the checkpoint's hash into the image (reading a large file for the first time takes seconds)."""
    lora_folders: tuple[Path, ...] = (Path("loras"),)
    """Folders, searched with their subfolders, in which LoRAs are found by name."""
    lora_mode: Literal["auto", "side", "merge"] = "auto"
    """How LoRAs act: beside the weights (side; weights may differ by image and step), or merged into them in memory
    (faster steps, a pause before the first). auto: merge in fp32 from 100 model calls on where nothing changes."""
    output_folder: Path = Path("outputs")
    """Where the images go, numbered."""
    format: Literal["png", "jpg", "webp"] = "png"
    """File format of the images; all of them carry the parameters."""
    init_image: Path | None = None
    """Picture to start from, instead of from noise (image-to-image)."""
    denoising_strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    """How much of init_image, or of the smaller picture of a high-resolution pass, is painted anew."""
    all_steps: bool = False
    """Take all steps with init_image. Off, as in the web UI: denoising_strength's share of them."""
    resize_mode: Literal["crop", "stretch", "fill"] = "crop"
    """How init_image gets the size that is painted: crop what sticks out, stretch, or fill what is missing."""
    mask: Path | None = None
    """Picture that is white where init_image is painted anew (inpainting); the rest stays, to the last pixel."""
    mask_blur: Annotated[float, Field(ge=0, le=64)] = 4.0
    """Blur of the mask's edge, in pixels of init_image."""
    mask_invert: bool = False
    """Paint what is black."""
    mask_content: Literal["original", "fill", "noise", "nothing"] = "original"
    """What is under the mask to begin with: the picture, the colours around it, noise, or nothing."""
    inpaint_area: Literal["whole", "mask"] = "whole"
    """Paint the whole picture, or only the mask's surroundings, in full size, and put them back."""
    inpaint_padding: Annotated[int, Field(ge=0, le=1024)] = 32
    """Surroundings, in pixels, that are seen with inpaint_area=mask."""
    hires_scale: Annotated[float | None, Field(gt=1, le=8)] = None
    """High-resolution pass: enlarge the finished latents by this factor and paint them again."""
    hires_width: Annotated[int | None, Field(ge=8, le=8192, multiple_of=8)] = None
    """Its width, instead of hires_scale; with one of the two sizes the other follows."""
    hires_height: Annotated[int | None, Field(ge=8, le=8192, multiple_of=8)] = None
    """Its height, likewise."""
    hires_steps: Annotated[int, Field(ge=0, le=500)] = 0
    """Its steps, all of which are taken. 0: as many as the first pass."""
    hires_upscaler: Annotated[str, Offers(more=dict.fromkeys(HIRES_UPSCALERS, ""))] = "Latent"
    """How it enlarges: Latent, Latent (antialiased), Latent (bicubic), Latent (bicubic antialiased), Latent (nearest),
    Latent (nearest-exact), or between decoding and encoding: Lanczos, Bicubic, Nearest."""
    hires_sampler: Annotated[str | None, Offers(SAMPLERS)] = None
    """Its sampler. Unset: the same."""
    hires_schedule: Annotated[str | None, Offers(SIGMA_SCHEDULES, more=_AUTOMATIC)] = None
    """Its noise levels. Unset: the same."""
    hires_cfg_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    """Its guidance. Unset: the same."""
    hires_prompt: str | None = None
    """Its prompt. Unset: the same."""
    hires_negative_prompt: str | None = None
    """Its negative prompt. Unset: the same."""
    vae: Path | None = None
    """Another autoencoder instead of the checkpoint's: a VAE file, or a checkpoint whose VAE is taken."""
    vae_tiling: bool | None = None
    """Decode and encode in overlapping tiles. Unset: above 2048 x 2048 pixels, or when memory runs out."""
    preview_every: Annotated[int, Field(ge=0, le=500)] = 0
    """Every N steps, write the unfinished picture to preview.png in the output folder. 0: never."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the computation: no is fp32. auto: what the device does best."""
    low_memory: bool = False
    """Keep each part of the model in main memory until it is needed, and guide with two small passes, not one."""
    keep_file_precision: bool = False
    """Keep the checkpoint's weights in the file's precision: half the memory for fp16 files, a little slower."""
    prediction: Literal["auto", "epsilon", "v"] = "auto"
    """What the checkpoint predicts; auto reads it from the file."""
    zero_terminal_snr: bool | None = None
    """Whether the checkpoint was trained with zero terminal SNR. Unset: read from the file."""

    @field_validator("sampler", "hires_sampler")
    @classmethod
    def _known_sampler(cls, value: str | None) -> str | None:
        try:
            resolve_sampler(value or "Euler")
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("schedule", "hires_schedule")
    @classmethod
    def _known_schedule(cls, value: str | None) -> str | None:
        try:
            resolve_sampler("Euler", value or "automatic")
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("hires_upscaler")
    @classmethod
    def _known_upscaler(cls, value: str) -> str:
        for name in HIRES_UPSCALERS:
            if name.casefold() == value.strip().casefold():
                return name
        raise ValueError(str(UnknownNameError("upscaler", value, HIRES_UPSCALERS)))

    @property
    def has_hires(self) -> bool:
        """Whether a high-resolution pass is asked for."""
        return not (self.hires_scale is None and self.hires_width is None and self.hires_height is None)

    @model_validator(mode="after")
    def _fits(self) -> GenerateSettings:
        if self.seed_resize_from and min(map(int, self.seed_resize_from.split("x"))) < 8:
            raise ValueError(f"seed_resize_from {self.seed_resize_from} is smaller than 8 pixels")
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} is not below sigma_max {self.sigma_max:g}")

        # Contradictions are refused here. What merely changes nothing is a warning: see without_effect.
        if self.hires_scale is not None and (self.hires_width or self.hires_height):
            raise ValueError("hires_scale and hires_width or hires_height are two ways to set the same size: set one")
        if self.mask is not None and self.init_image is None:
            raise ValueError("mask needs init_image, the picture that it lies on")
        if self.init_image is not None and self.has_hires:
            raise ValueError("a high-resolution pass starts from text; with init_image set width and height instead")

        if (self.width or 8) * (self.height or 8) > LARGEST_AREA:
            raise ValueError(f"{self.width} x {self.height} pixels are more than {LARGEST_AREA:,} in all")
        return self
