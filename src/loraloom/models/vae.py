"""The autoencoder of Stable Diffusion. Module names are the checkpoint's keys after ``first_stage_model.``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.models.layers import TensorModule, attention, group_norm_silu, linear
from loraloom.models.shapes import ShapeTree

__all__ = ["VAE"]

_EPS = 1e-6


class VAE(TensorModule):
    """Images to a distribution over latents, an eighth as high and wide, and latents to images.

    Latents are unscaled here: a family's latent scale is applied by who calls.
    """

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.encoder = _Encoder(tree["encoder"])
        self.decoder = _Decoder(tree["decoder"])
        self.quant_conv = tree["quant_conv"].convolution()
        self.post_quant_conv = tree["post_quant_conv"].convolution()

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> VAE:
        """A VAE that fits the tensors of these names and shapes; CheckpointError when they do not make one."""
        tree = ShapeTree(shapes, path="first_stage_model")
        vae = cls(tree)
        tree.require_fit(vae)
        return vae

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and standard deviation of the latents, each (B, 4, H/8, W/8)."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8h, 8w), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))


class _Encoder(TensorModule):
    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.conv_in = tree["conv_in"].convolution()
        self.down = nn.ModuleList(_Level(level) for _, level in tree["down"].numbered())
        self.mid = _Middle(tree["mid"])
        self.norm_out = tree["norm_out"].group_norm(eps=_EPS)
        self.conv_out = tree["conv_out"].convolution()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(group_norm_silu(self.norm_out, self.mid(x)))


class _Decoder(TensorModule):
    """Levels are numbered from the finest, so they run from the last to the first."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.conv_in = tree["conv_in"].convolution()
        self.mid = _Middle(tree["mid"])
        self.up = nn.ModuleList(_Level(level) for _, level in tree["up"].numbered())
        self.norm_out = tree["norm_out"].group_norm(eps=_EPS)
        self.conv_out = tree["conv_out"].convolution()

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(group_norm_silu(self.norm_out, x))


class _Level(TensorModule):
    """The residual blocks of one resolution, then a change of resolution where the file has one."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(block) for _, block in tree["block"].numbered())
        if "downsample" in tree:
            self.downsample = _Downsample(tree["downsample"])
        if "upsample" in tree:
            self.upsample = _Upsample(tree["upsample"])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            for block in layer if isinstance(layer, nn.ModuleList) else (layer,):
                x = block(x)
        return x


class _Middle(TensorModule):
    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.block_1 = _ResBlock(tree["block_1"])
        self.attn_1 = _Attention(tree["attn_1"])
        self.block_2 = _ResBlock(tree["block_2"])

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _ResBlock(TensorModule):
    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.norm1, self.norm2 = (tree[name].group_norm(eps=_EPS) for name in ("norm1", "norm2"))
        self.conv1, self.conv2 = (tree[name].convolution() for name in ("conv1", "conv2"))
        self.nin_shortcut = tree["nin_shortcut"].convolution() if "nin_shortcut" in tree else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(group_norm_silu(self.norm1, x))
        h = self.conv2(group_norm_silu(self.norm2, h))
        return self.nin_shortcut(x) + h


class _Downsample(TensorModule):
    """Halves height and width; the file's models were trained with padding on the right and bottom only."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.conv = tree["conv"].convolution(stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(TensorModule):
    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.conv = tree["conv"].convolution()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Attention(TensorModule):
    """Attention of one head over all pixels. Files hold its projections as 1x1 convolutions or as linear layers."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.norm = tree["norm"].group_norm(eps=_EPS)
        self.q, self.k, self.v, self.proj_out = (tree[name].projection() for name in ("q", "k", "v", "proj_out"))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()
        q, k, v = (linear(tokens, layer.weight.flatten(1), layer.bias)[:, None] for layer in (self.q, self.k, self.v))
        h = attention(q, k, v)[:, 0]
        h = linear(h, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + h.transpose(1, 2).reshape(x.shape).contiguous()
