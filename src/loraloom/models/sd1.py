"""Stable Diffusion 1.x: CLIP ViT-L/14, eight attention heads at every width, epsilon prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from loraloom.models.family import Family, Infos, TextPart, has_axes
from loraloom.models.layouts import (
    FULL_VAE,
    UNetSizes,
    VaeSizes,
    clip_layout,
    named_shapes,
    noise_schedule_layout,
    random_tensors,
    unet_layout,
    vae_layout,
)
from loraloom.models.tokenizer import EOS
from loraloom.models.unet import eight_heads

__all__ = ["SD1"]


class SD1(Family):
    """Stable Diffusion 1.1 to 1.5 and everything fine-tuned from them."""

    name = "sd1"
    title = "Stable Diffusion 1"
    base_model_version = "sd_v1"
    modelspec_architecture = "stable-diffusion-v1"
    latent_scale = 0.18215
    default_resolution = 512
    web_ui_version = "SD1"
    text_parts = (
        TextPart(
            part="text_encoder",
            prefixes=("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
            encoder="clip",
            pad_id=EOS,
            skip=1,
            normalize=True,
            lora_prefix="lora_te",
        ),
    )

    def recognise(self, infos: Infos) -> bool:
        has_unet = has_axes(infos, f"{self.unet_prefix}input_blocks.0.0.weight", 4)
        return has_unet and self.text_parts[0].is_in(infos)

    def attention_heads(self, channels: int) -> int:
        return eight_heads(channels)

    def full_size(self) -> dict[str, tuple[int, ...]]:
        return named_shapes(
            {
                self.unet_prefix: unet_layout(UNetSizes(320, (1, 2, 4, 4), (1, 1, 1, 0), middle_depth=1, context=768)),
                self.vae_prefix: vae_layout(FULL_VAE),
                self.text_parts[0].prefixes[0]: clip_layout(768, 12),
            }
        )

    def toy(
        self, seed: int = 0, *, channels: int = 32, text_width: int = 32, text_layers: int = 3, vae_channels: int = 32
    ) -> dict[str, Tensor]:
        """About 5 million weights by default, a third of them token embeddings."""
        unet = UNetSizes(channels, (1, 2, 2, 2), (1, 1, 1, 0), middle_depth=1, context=text_width)
        layouts = {
            self.unet_prefix: unet_layout(unet),
            self.vae_prefix: vae_layout(VaeSizes(vae_channels, (1, 2, 2, 2))),
            self.text_parts[0].prefixes[0]: clip_layout(text_width, text_layers),
        }
        return noise_schedule_layout() | random_tensors(layouts, "toy", seed, self.name, dtype=torch.float32)
