"""Stable Diffusion XL: CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, both read at the last layer but one, heads of 64.

Beside the text the U-Net gets a vector: the second encoder's pooled text and six picture sizes as sinusoids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loraloom.diffusion.samplers import ALIGNED_SDXL
from loraloom.models.family import SIZE_CHANNELS, SIZE_COUNT, Family, Infos, TextPart, has_axes
from loraloom.models.layouts import (
    FULL_VAE,
    UNetSizes,
    VaeSizes,
    clip_layout,
    named_shapes,
    open_clip_layout,
    random_tensors,
    unet_layout,
    vae_layout,
)
from loraloom.models.tokenizer import EOS
from loraloom.models.unet import heads_of_64

__all__ = ["SDXL"]


class SDXL(Family):
    """Stable Diffusion XL base 1.0 and everything fine-tuned from it (not the refiner)."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    base_model_version = "sdxl_base_v1-0"
    modelspec_architecture = "stable-diffusion-xl-v1-base"
    latent_scale = 0.13025
    default_resolution = 1024
    lora_sai_names = True
    preset_blocks = 12
    modelspec_implementation = "https://github.com/Stability-AI/generative-models"
    web_ui_version = "SDXL"
    uses_sizes = True
    aligned_sigmas = ALIGNED_SDXL
    text_parts = (
        TextPart(
            part="text_encoder",
            prefixes=("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.0.transformer."),
            encoder="clip",
            pad_id=EOS,
            skip=2,
            normalize=False,
            lora_prefix="lora_te1",
        ),
        TextPart(
            part="text_encoder_2",
            prefixes=("conditioner.embedders.1.model.",),
            encoder="open_clip",
            pad_id=0,
            skip=2,
            normalize=False,
            lora_prefix="lora_te2",
        ),
    )

    def recognise(self, infos: Infos) -> bool:
        has_unet = has_axes(infos, f"{self.unet_prefix}input_blocks.0.0.weight", 4)
        has_label = has_axes(infos, f"{self.unet_prefix}label_emb.0.0.weight", 2)
        return has_unet and has_label and all(part.is_in(infos) for part in self.text_parts)

    def attention_heads(self, channels: int) -> int:
        return heads_of_64(channels)

    def full_size(self) -> dict[str, tuple[int, ...]]:
        unet = UNetSizes(
            320, (1, 2, 4), (0, 2, 10), middle_depth=10, context=2048, linear_projections=True, vector=2816
        )
        return named_shapes(
            {
                self.unet_prefix: unet_layout(unet),
                self.text_parts[0].prefixes[0]: clip_layout(768, 12),
                self.text_parts[1].prefixes[0]: open_clip_layout(1280, 32),
                self.vae_prefix: vae_layout(FULL_VAE),
            }
        )

    def toy(
        self,
        seed: int = 0,
        *,
        channels: int = 32,
        text_width: int = 32,
        text_layers: int = 3,
        text_width_2: int = 64,
        text_layers_2: int = 3,
        vae_channels: int = 32,
    ) -> dict[str, Tensor]:
        """About 8 million weights by default, in fp16 as the real file is."""
        unet = UNetSizes(
            channels,
            (1, 2, 4),
            (0, 1, 2),
            middle_depth=2,
            context=text_width + text_width_2,
            linear_projections=True,
            vector=text_width_2 + SIZE_COUNT * SIZE_CHANNELS,
        )
        layouts = {
            self.unet_prefix: unet_layout(unet),
            self.text_parts[0].prefixes[0]: clip_layout(text_width, text_layers),
            self.text_parts[1].prefixes[0]: open_clip_layout(text_width_2, text_layers_2),
            self.vae_prefix: vae_layout(VaeSizes(vae_channels, (1, 2, 2, 2))),
        }
        return random_tensors(layouts, "toy", seed, self.name, dtype=torch.float16)
