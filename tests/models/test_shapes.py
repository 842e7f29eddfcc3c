"""The tree of shapes: going down, numbers in order, layers that fit, errors that name the tensor."""

from __future__ import annotations

import pytest

from loraloom.errors import CheckpointError
from loraloom.models.layers import Conv2d, Linear
from loraloom.models.shapes import ShapeTree

SHAPES = {
    "down.10.weight": (64,),
    "down.2.weight": (32,),
    "down.2.bias": (32,),
    "down.x.weight": (1,),
    "down.99999999999999999999.weight": (1,),
    "down_other.weight": (1,),
    "proj.weight": (6, 4),
    "conv.weight": (6, 4, 3, 3),
    "conv.bias": (6,),
    "point.weight": (6, 4, 1, 1),
}


def tree() -> ShapeTree:
    return ShapeTree(SHAPES, path="part")


def test_numbers_come_in_numeric_order() -> None:
    assert [number for number, _ in tree()["down"].numbered()] == [2, 10]
    assert [below.shape("weight") for _, below in tree()["down"].numbered()] == [(32,), (64,)]


def test_whole_names_only() -> None:
    assert "down.2" in tree()
    assert "down.2.bias" in tree()
    assert "dow" not in tree()
    assert "other" not in tree()["down"]


def test_layers_have_the_sizes_of_the_file() -> None:
    proj = tree()["proj"].linear()
    assert (proj.in_features, proj.out_features, proj.bias) == (4, 6, None)
    conv = tree()["conv"].convolution(stride=2)
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 1))
    assert tree()["conv"].convolution(padding=0).padding == (0, 0)
    assert isinstance(tree()["proj"].projection(), Linear)
    point = tree()["point"].projection()
    assert isinstance(point, Conv2d)
    assert point.padding == (0, 0)
    assert tree()["down.2"].group_norm(eps=1e-6).num_groups == 32
    assert tree()["down.10"].layer_norm().normalized_shape == (64,)


def test_errors_name_the_tensor() -> None:
    with pytest.raises(CheckpointError, match=r"part\.down\.3 is missing"):
        tree()["down"]["3"]
    with pytest.raises(CheckpointError, match=r"part\.proj\.bias is missing"):
        tree()["proj"].shape("bias")
    with pytest.raises(CheckpointError, match=r"part\.proj\.weight has 2 axes instead of 4"):
        tree()["proj"].convolution()
    odd = ShapeTree({"norm.weight": (33,)}, path="part")
    with pytest.raises(CheckpointError, match=r"part\.norm has 33 channels"):
        odd["norm"].group_norm(eps=1e-5)


def test_fit_is_required_in_name_and_shape() -> None:
    conv = Conv2d(4, 6, 3)
    tree()["conv"].require_fit(conv)
    with pytest.raises(CheckpointError, match=r"part\.point\.bias is missing"):
        tree()["point"].require_fit(Conv2d(4, 6, 1))
    with pytest.raises(CheckpointError, match=r"part\.conv\.weight is \(6, 4, 3, 3\) where \(6, 5, 3, 3\)"):
        tree()["conv"].require_fit(Conv2d(5, 6, 3))
