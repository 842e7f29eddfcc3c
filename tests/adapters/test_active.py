"""Several LoRAs on one layer: the side branch is the sum of their merged weights, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loraloom.adapters.active import ActiveLoras
from loraloom.adapters.attach import AdapterSet
from loraloom.adapters.block_weights import parse_block_weights
from loraloom.adapters.strength import FULL, LoraStrength
from loraloom.errors import AdapterError

from .layers import INPUTS, LAYERS, made, randomise, spot

NAME = "lora_unet_mid_block_attentions_0_proj_in"
# Weights of four LoRAs for three rows: none is another's mirror image, some are zero.
ROWS = ((0.3, -1.2, 0.7, 0.4), (0.0, 0.9, 2.1, 0.0), (-0.6, 0.9, 0.0, 1.7))


def four_loras(layer: nn.Module, part: str = "unet") -> list[tuple[AdapterSet, LoraStrength]]:
    """Ranks and alphas of their own, two weighed by their block, and one that is not of low rank."""
    place = spot(layer, NAME, part=part)
    given = [("lora", 1, 0.7, ""), ("lora", 3, 1.5, "MID=0.35"), ("loha", 2, 1.1, "MID=1.6"), ("lora", 2, 5.0, "")]
    return [
        (
            AdapterSet({place: randomise(made(layer, {"kind": kind, "rank": rank}, alpha=alpha), seed)}).eval(),
            LoraStrength(blocks=parse_block_weights(blocks) if blocks else None),
        )
        for seed, (kind, rank, alpha, blocks) in enumerate(given)
    ]


def merged(
    layer: nn.Module, loras: list[tuple[AdapterSet, LoraStrength]], x: Tensor, weights: tuple[float, ...]
) -> Tensor:
    """What the layer says of ``x`` with the changes in its weight."""
    assert isinstance(layer.weight, Tensor)
    before = layer.weight.detach().clone()
    of_block = (1.0, 0.35, 1.6, 1.0)
    for (adapters, _), weight, more in zip(loras, weights, of_block, strict=True):
        layer.weight.data += weight * more * adapters.adapter(NAME).delta()
    output: Tensor = layer(x)
    layer.weight.data.copy_(before)
    return output


@pytest.mark.parametrize("name", sorted(LAYERS))
@torch.no_grad()
def test_each_row_is_as_with_merged_weights(name: str) -> None:
    layer = LAYERS[name]()
    x = torch.randn(3, *INPUTS[name][1:])
    loras = four_loras(layer)
    plain = layer(x)
    expected = {weights: merged(layer, loras, x, weights) for weights in ROWS}
    active = ActiveLoras(loras, {NAME: layer})
    with active.on():
        # More than once: what was kept for the weights before must not be taken for the ones now.
        for rows in (ROWS, ROWS[::-1], (ROWS[0],) * 3, (ROWS[1],)):
            active.weigh_unet(rows)
            found = layer(x)
            for index in range(3):
                wanted = expected[rows[index % len(rows)]][index]
                torch.testing.assert_close(found[index], wanted, atol=2e-5, rtol=1e-4)
        active.weigh_unet([[0.0] * 4])
        assert torch.equal(layer(x), plain)
    assert torch.equal(layer(x), plain)


@torch.no_grad()
def test_text_encoders_and_the_unet_have_weights_of_their_own() -> None:
    layer = LAYERS["linear"]()
    x = torch.randn(INPUTS["linear"])
    loras = four_loras(layer, "text_encoder")
    expected = merged(layer, loras, x, ROWS[0])
    active = ActiveLoras(loras, {NAME: layer})
    active.weigh_unet([ROWS[2]])
    active.weigh_text(ROWS[0])
    with active.on():
        torch.testing.assert_close(layer(x), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_factors_follow_the_precision_of_the_layer() -> None:
    layer = LAYERS["linear"]()
    x = torch.randn(INPUTS["linear"])
    loras = [one for index, one in enumerate(four_loras(layer)) if index != 2]  # without the one that is no pair
    active = ActiveLoras(loras, {NAME: layer})
    active.weigh_unet([(0.3, -1.2, 0.4)])
    with active.on():
        single = layer(x)
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-6), (torch.bfloat16, 0.1)):
            layer.to(dtype)
            found = layer(x.to(dtype))
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), single, atol=tolerance, rtol=tolerance)


def test_layers_that_are_missing_are_counted() -> None:
    layer = LAYERS["linear"]()
    first, second = spot(layer, "lora_unet_a"), spot(layer, "lora_unet_b")
    adapters = AdapterSet({first: made(layer, {}), second: made(layer, {})})
    with pytest.raises(AdapterError, match=r"no layer lora_unet_b \(1 of 2 are missing\)"):
        ActiveLoras([(adapters, FULL)], {"lora_unet_a": layer})
