"""Stable Diffusion 2.x: OpenCLIP ViT-H/14 read at its last layer but one, heads of 64, epsilon (512) or v (768)."""

from __future__ import annotations

import torch
from torch import Tensor

from loraloom.models.family import Family, Infos, Prediction, TextPart, has_axes
from loraloom.models.layouts import (
    FULL_VAE,
    UNetSizes,
    VaeSizes,
    named_shapes,
    noise_schedule_layout,
    open_clip_layout,
    random_tensors,
    unet_layout,
    vae_layout,
)
from loraloom.models.unet import heads_of_64

__all__ = ["SD2"]


class SD2(Family):
    """Stable Diffusion 2.0 and 2.1, base (512) and 768."""

    name = "sd2"
    title = "Stable Diffusion 2"
    base_model_version = "sd_v2"
    modelspec_architecture = "stable-diffusion-v2-512"
    latent_scale = 0.18215
    default_resolution = 512
    kohya_v2 = True
    web_ui_version = "SD2"
    probes_prediction = True
    text_parts = (
        TextPart(
            part="text_encoder",
            prefixes=("cond_stage_model.model.",),
            encoder="open_clip",
            pad_id=0,
            skip=2,
            normalize=True,
            lora_prefix="lora_te",
            trimmed_layers=23,
        ),
    )

    def modelspec_architecture_for(self, prediction: Prediction) -> str:
        return "stable-diffusion-v2-768-v" if prediction == "v" else self.modelspec_architecture

    def default_resolution_for(self, prediction: Prediction) -> int:
        return 768 if prediction == "v" else self.default_resolution

    def recognise(self, infos: Infos) -> bool:
        has_unet = has_axes(infos, f"{self.unet_prefix}input_blocks.0.0.weight", 4)
        return has_unet and self.text_parts[0].is_in(infos)

    def attention_heads(self, channels: int) -> int:
        return heads_of_64(channels)

    def full_size(self) -> dict[str, tuple[int, ...]]:
        unet = UNetSizes(320, (1, 2, 4, 4), (1, 1, 1, 0), middle_depth=1, context=1024, linear_projections=True)
        return named_shapes(
            {
                self.unet_prefix: unet_layout(unet),
                self.vae_prefix: vae_layout(FULL_VAE),
                self.text_parts[0].prefixes[0]: open_clip_layout(1024, 24),
            }
        )

    def toy(
        self, seed: int = 0, *, channels: int = 32, text_width: int = 32, text_layers: int = 3, vae_channels: int = 32
    ) -> dict[str, Tensor]:
        """About 5 million weights by default; the last text layer is there but never read, as in the real files."""
        unet = UNetSizes(
            channels, (1, 2, 2, 2), (1, 1, 1, 0), middle_depth=1, context=text_width, linear_projections=True
        )
        layouts = {
            self.unet_prefix: unet_layout(unet),
            self.vae_prefix: vae_layout(VaeSizes(vae_channels, (1, 2, 2, 2))),
            self.text_parts[0].prefixes[0]: open_clip_layout(text_width, text_layers),
        }
        return noise_schedule_layout() | random_tensors(layouts, "toy", seed, self.name, dtype=torch.float32)
