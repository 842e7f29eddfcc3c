"""Settings of image generation. No torch here: the command line reads this file to print help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from loraloom.diffusion.samplers import resolve_sampler, resolve_sigma_schedule
from loraloom.errors import UnknownNameError
from loraloom.settings import Settings

__all__ = ["GenerateSettings", "PromptCompatibility", "PromptEmphasis"]

LARGEST_AREA = 4096 * 4096

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
    """What weights do: original (the web UI's: weigh, then restore the mean), no_norm (weigh only), comfy (ComfyUI's:
    weigh the difference from an empty text), ignore (nothing), none (brackets are text)."""
    comma_backtrack: Annotated[int, Field(ge=0, le=74)] = 20
    """Where a chunk of 75 tokens is full within a phrase, the words after a comma at most so many tokens back move on
    to the next chunk."""
    prompt_compatibility: PromptCompatibility = "none"
    """a1111: read prompts exactly as the web UI does, its known faults included; a1111-1.5: as it did before 1.6."""
    width: Annotated[int | None, Field(ge=8, le=8192, multiple_of=8)] = None
    """Width in pixels, a multiple of 8. Unset: the resolution of the checkpoint's family."""
    height: Annotated[int | None, Field(ge=8, le=8192, multiple_of=8)] = None
    """Height in pixels, a multiple of 8. Unset: the resolution of the checkpoint's family."""
    steps: Annotated[int, Field(ge=1, le=500)] = 20
    """Sampler steps."""
    cfg_scale: Annotated[float, Field(ge=0, le=100)] = 7.0
    """How strongly the prompt is followed (classifier-free guidance). 1 ignores the negative prompt and is faster."""
    sampler: str = "Euler a"
    """Euler, Euler a, Heun, DPM++ 2M, DPM++ 2M SDE, LMS or DDIM; "DPM++ 2M Karras" names the noise levels too."""
    schedule: str = "automatic"
    """Noise levels: automatic (those of the sampler), Uniform, Karras, Exponential, SGM Uniform, Simple or DDIM."""
    eta: Annotated[float | None, Field(ge=0, le=2)] = None
    """Fresh noise at every step. Unset: 1 for Euler a and DPM++ 2M SDE, 0 for DDIM; the other samplers use none."""
    seed: Annotated[int, Field(ge=-1, le=2**62)] = -1
    """Seed of the first image, the next one gets seed + 1. -1: a random one, written into the image."""
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
    output_folder: Path = Path("outputs")
    """Where the images go, numbered."""
    format: Literal["png", "jpg", "webp"] = "png"
    """File format of the images; all of them carry the parameters."""
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

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        try:
            resolve_sampler(value)
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        try:
            if value.strip().lower() != "automatic":
                resolve_sigma_schedule(value)
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _fits(self) -> GenerateSettings:
        if (self.width or 8) * (self.height or 8) > LARGEST_AREA:
            raise ValueError(f"{self.width} x {self.height} pixels are more than {LARGEST_AREA:,} in all")
        return self
