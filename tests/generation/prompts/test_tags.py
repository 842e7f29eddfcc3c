"""LoRA tags."""

from __future__ import annotations

import pytest

from loraloom.adapters.strength import LoraStrength
from loraloom.errors import PromptError
from loraloom.generation.prompts import LoraTag, extract_loras
from loraloom.generation.prompts.tags import WeightCurve


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:ada>", LoraTag("ada", LoraStrength(1.0, 1.0))),
        ("<lora:ada:0.8>", LoraTag("ada", LoraStrength(0.8, 0.8))),
        ("<lora:ada:0.5:0.9>", LoraTag("ada", LoraStrength(0.9, 0.5))),
        ("<lora:ada:te=0.5>", LoraTag("ada", LoraStrength(0.5, 0.5))),
        ("<lora:ada:unet=0.5>", LoraTag("ada", LoraStrength(0.5, 1.0))),
        ("<lora:ada:0.2:unet=.5>", LoraTag("ada", LoraStrength(0.5, 0.2))),
        ("<lora:ada:te=0:unet=-1>", LoraTag("ada", LoraStrength(-1.0, 0.0))),
        ("<lora:ada::0.5>", LoraTag("ada", LoraStrength(0.5, 1.0))),
        ("<lyco:ada:1.5>", LoraTag("ada", LoraStrength(1.5, 1.5))),
        ("<lora:My Style v1.2 (épée) 猫:0.7>", LoraTag("My Style v1.2 (épée) 猫", LoraStrength(0.7, 0.7))),
        ("<lora:folder/ada.safetensors:1>", LoraTag("folder/ada.safetensors", LoraStrength(1.0, 1.0))),
        (r"<lora:C:\loras\ada.safetensors:0.5>", LoraTag(r"C:\loras\ada.safetensors", LoraStrength(0.5, 0.5))),
        ("<lora:/tmp/ada.pt>", LoraTag("/tmp/ada.pt", LoraStrength(1.0, 1.0))),
    ],
)
def test_lora_tags(tag: str, expected: LoraTag) -> None:
    assert extract_loras(f"a{tag}b") == ("ab", (expected,))


def test_several_tags_keep_their_order_and_other_angles_stay() -> None:
    text, tags = extract_loras("a <b> <lora:x:1>, c < d <lora:y:0.5:1> > e")
    assert text == "a <b> , c < d  > e"
    assert [tag.name for tag in tags] == ["x", "y"]


@pytest.mark.parametrize(
    "tag",
    ["<lora:>", "<lora: :1>", "<lora:x:strong>", "<lora:x:1:2:3>", "<lora:x:nan>", "<lora:x:inf>", "<lora:x:dyn=8>"],
)
def test_wrong_tags_are_told(tag: str) -> None:
    with pytest.raises(PromptError) as error:
        extract_loras(f"a cat {tag}")
    assert tag in error.value.problem
    assert error.value.hint


def curve_of(tag: str) -> WeightCurve:
    (found,) = extract_loras(tag)[1]
    assert found.curve is not None
    return found.curve


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0.0, 0.0), (0.19, 0.0), (0.2, 0.8), (0.45, 0.8), (0.7, 0.0), (0.71, 0.0), (1.0, 0.0)],
)
def test_a_curve_jumps_at_its_own_points(progress: float, weight: float) -> None:
    assert curve_of("<lora:ada:0.8@0.2-0.7>").at(progress) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("progress", "weight"), [(0.0, -0.3), (0.1, -0.3), (0.35, -0.75), (0.6, -1.2), (0.8, 0.0), (0.9, 0.6), (1.0, 0.6)]
)
def test_straight_lines_between_points(progress: float, weight: float) -> None:
    assert curve_of("<lora:ada:-0.3@0.1,-1.2@0.6,0.6@0.9>").at(progress) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("tag", "largest"), [("<lora:ada:-0.3@0.1,-1.2@0.6,0.6@0.9>", -1.2), ("<lora:ada:-0.9@0.2-0.7>", -0.9)]
)
def test_texts_have_the_weight_that_is_furthest_from_zero(tag: str, largest: float) -> None:
    (found,) = extract_loras(tag)[1]
    assert (found.strength.text_encoder, found.strength.unet) == (largest, largest)


@pytest.mark.parametrize(
    ("tag", "text_encoder", "unet"),
    [
        ("<lora:ada:0.3:0.8@0-0.5>", 0.3, 0.8),
        ("<lora:ada:te=-0.4:unet=0.2@0,1.7@0.6,0.9@1>", -0.4, 1.7),
        ("<lora:ada:unet=0.2@0,1.7@0.6:te=0.1>", 0.1, 1.7),
        ("<lora:ada:unet=0.2@0,1.7@0.6>", 1.7, 1.7),
        ("<lora:ada:0.2@0,0.7@1>", 0.7, 0.7),
        ("<lora:ada:0.2@0;0.7@1:te=0.4>", 0.4, 0.7),
    ],
)
def test_a_curve_is_the_unets_and_texts_may_have_a_weight_of_their_own(
    tag: str, text_encoder: float, unet: float
) -> None:
    (found,) = extract_loras(tag)[1]
    assert (found.strength.text_encoder, found.strength.unet) == (text_encoder, unet)
    assert found.curve is not None and max(weight for _, weight in found.curve.points) == unet


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ("<lora:x:0.8@0.5-0.2>", "ends before it begins"),
        ("<lora:x:0.8@0.5-0.5>", "ends before it begins"),
        ("<lora:x:0.8@0.7,0.5@0.3>", "not in order"),
        ("<lora:x:0.8@1.01>", "is not a share"),
        ("<lora:x:0.8@-0.2,1@1>", "is not a share"),
        ("<lora:x:0.8@0.2,0.5>", "names no step"),
        ("<lora:x:0.8@0-1:0.5>", "text encoder's weight cannot change"),
        ("<lora:x:te=0.8@0-1>", "text encoder's weight cannot change"),
        ("<lora:x:te=0@0,1@1:unet=0.7>", "text encoder's weight cannot change"),
        ("<lora:x:unet=0.7:te=0@0,1@1>", "text encoder's weight cannot change"),
        ("<lora:x:0.8@0-0.3,0.5@0.6>", "points and stretches"),
        ("<lora:x:0.8@0,0.5@0.6-1>", "points and stretches"),
        ("<lora:x:0@5,1@6>", "is not a share"),
    ],
)
def test_wrong_curves_are_told(tag: str, problem: str) -> None:
    with pytest.raises(PromptError) as error:
        extract_loras(tag)
    assert problem in error.value.problem


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0.0, 0.8), (0.29, 0.8), (0.3, 0.0), (0.45, 0.0), (0.59, 0.0), (0.6, -0.5), (0.8, -0.5), (0.9, 0.2), (0.99, 0.2)],
)
def test_between_two_stretches_there_is_nothing(progress: float, weight: float) -> None:
    assert curve_of("<lora:x:0.8@0-0.3,-0.5@0.6-0.9,0.2@0.9-1>").at(progress) == pytest.approx(weight)


def test_a_number_that_comes_later_takes_the_place_of_a_curve() -> None:
    (found,) = extract_loras("<lora:x:0.2@0,0.7@1:unet=0.4>")[1]
    assert found.curve is None and (found.strength.text_encoder, found.strength.unet) == (1.0, 0.4)


def test_points_may_lie_on_one_another_and_at_both_ends() -> None:
    """Equal steps are in order: the weight jumps there."""
    curve = curve_of("<lora:ada:0.2@0,0.9@0.4,-0.5@0.4,0.7@1>")
    assert [curve.at(share) for share in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0.2, 0.55, -0.5, 0.1, 0.7])


def test_a_mask_is_taken_out_of_any_place() -> None:
    for tag in ("<lora:ada:mask=left.png:0.3:0.7>", "<lora:ada:0.3:0.7:mask= left.png >"):
        (found,) = extract_loras(tag)[1]
        assert (found.name, found.strength.text_encoder, found.strength.unet, found.mask) == (
            "ada",
            0.3,
            0.7,
            "left.png",
        )
    (windows,) = extract_loras(r"<lora:D:\a.pt:0.6:mask=C:\m\left.png>")[1]
    assert (windows.name, windows.strength.unet, windows.mask) == (r"D:\a.pt", 0.6, r"C:\m\left.png")
