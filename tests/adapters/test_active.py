"""Several LoRAs on one layer: the side branch is the sum of their merged weights, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loraloom.adapters.active import ActiveLoras
from loraloom.adapters.attach import AdapterSet
from loraloom.errors import AdapterError

from .layers import INPUTS, LAYERS, made, randomise, spot

# Weights of four LoRAs for three rows: none is another's mirror image, some are zero.
ROWS = ((0.3, -1.2, 0.7, 0.4), (0.0, 0.9, 2.1, 0.0), (-0.6, 0.9, 0.0, 1.7))


def four_loras(layer: nn.Module, part: str = "unet") -> list[AdapterSet]:
    """Ranks and alphas of their own, one weighed by its block, and one that is not of low rank."""
    place = spot(layer, part=part)
    given = [("lora", 1, 0.7), ("lora", 3, 1.5), ("loha", 2, 1.1), ("lora", 2, 5.0)]
    sets = [
        AdapterSet({place: randomise(made(layer, {"kind": kind, "rank": rank}, alpha=alpha), seed)})
        for seed, (kind, rank, alpha) in enumerate(given)
    ]
    sets[1].layer_weights = {place.name: 0.35}
    sets[2].layer_weights = {place.name: 1.6}
    return [one.eval() for one in sets]


def merged(layer: nn.Module, sets: list[AdapterSet], x: Tensor, weights: tuple[float, ...]) -> Tensor:
    """What the layer says of ``x`` with the changes in its weight."""
    assert isinstance(layer.weight, Tensor)
    before = layer.weight.detach().clone()
    for one, weight in zip(sets, weights, strict=True):
        ((target, adapter),) = one.items()
        layer.weight.data += weight * one.layer_weights.get(target.name, 1.0) * adapter.delta()
    output: Tensor = layer(x)
    layer.weight.data.copy_(before)
    return output


@pytest.mark.parametrize("name", sorted(LAYERS))
@torch.no_grad()
def test_each_row_is_as_with_merged_weights(name: str) -> None:
    layer = LAYERS[name]()
    x = torch.randn(3, *INPUTS[name][1:])
    sets = four_loras(layer)
    plain = layer(x)
    expected = {weights: merged(layer, sets, x, weights) for weights in ROWS}
    active = ActiveLoras(sets, {"lora_unet_a_b": layer})
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
    sets = four_loras(layer, "text_encoder")
    expected = merged(layer, sets, x, ROWS[0])
    active = ActiveLoras(sets, {"lora_unet_a_b": layer})
    active.weigh_unet([ROWS[2]])
    active.weigh_text(ROWS[0])
    with active.on():
        torch.testing.assert_close(layer(x), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_factors_follow_the_precision_of_the_layer() -> None:
    layer = LAYERS["linear"]()
    x = torch.randn(INPUTS["linear"])
    sets = [one for index, one in enumerate(four_loras(layer)) if index != 2]
    active = ActiveLoras(sets, {"lora_unet_a_b": layer})
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
        ActiveLoras([adapters], {"lora_unet_a": layer})
