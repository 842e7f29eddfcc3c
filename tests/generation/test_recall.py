"""Infotexts of the web UI's versions and of other programs, read back into settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.formats.image_info import Parameters, parse_parameters
from loraloom.generation.recall import _FIELDS, _READ_TOGETHER, recall
from loraloom.generation.settings import GenerateSettings

WRITTEN = json.loads((Path(__file__).parents[1] / "data_files" / "infotexts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", WRITTEN, ids=[case["what"] for case in WRITTEN])
def test_settings_come_back(case: dict[str, Any]) -> None:
    found = recall(parse_parameters(case["text"]))
    assert {name: found.settings.get(name) for name in case["settings"]} == case["settings"]
    settings = GenerateSettings.parse(found.settings)
    for name, value in case["settings"].items():
        assert getattr(settings, name) == value
    assert len(found.remarks) == len(case["remarks"]), found.remarks
    for remark, expected in zip(found.remarks, case["remarks"], strict=True):
        assert expected in remark


def test_there_are_twenty() -> None:
    assert len(WRITTEN) == 20


def test_what_is_beside_the_settings() -> None:
    found = recall(parse_parameters(WRITTEN[0]["text"]))
    assert (found.model_hash, found.model) == ("6ce0161689", "v1-5-pruned-emaonly")
    assert found.lora_hashes == {"turner": "0123456789ab"}


def test_nonsense_is_told_not_raised() -> None:
    fields = {"Steps": "many", "Sampler": "Euler", "CFG scale": "", "Seed": "0x", "Emphasis": "Loud", "Eta": "nope"}
    found = recall(Parameters("a", "b", {**fields, "RNG": "CPU"}))
    assert found.settings["sampler"] == "Euler"
    assert [remark.split(":")[0] for remark in found.remarks] == ["Steps", "CFG scale", "Seed", "Emphasis", "Eta"]
    GenerateSettings.parse(found.settings)


USUAL = "Steps: 20, Sampler: Euler, Seed: 3, RNG: CPU"


def recalled(pairs: str, *, usual: str = USUAL) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings and remarks of an infotext with some more pairs, the settings found valid."""
    found = recall(parse_parameters(f"a cat\n{usual}, {pairs}"))
    GenerateSettings.parse(found.settings)
    return dict(found.settings), found.remarks


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("Size: 512 x 768", {"width": 512, "height": 768}),
        ("Size: 512×768", {"width": 512, "height": 768}),
        ("CFG scale: 7,5", {"cfg_scale": 7.5}),
        ("CFG Scale: 7.5", {"cfg_scale": 7.5}),
        ("cfg scale: 6", {"cfg_scale": 6}),
        ("Seed: 9007199254740993", {"seed": 9007199254740993}),
        ("Seed: 12.0", {"seed": 12}),
        ("Inpaint area: Whole picture, Masked area padding: 16", {"inpaint_area": None, "inpaint_padding": 16}),
        ("Masked area padding: 16", {"inpaint_area": "mask", "inpaint_padding": 16}),
        ("Inpaint area: Only masked, Mask mode: Inpaint not masked", {"inpaint_area": "mask", "mask_invert": True}),
        ("Mask mode: Inpaint masked", {"mask_invert": None}),
        ("Seed resize from: -1x-1", {"seed_resize_from": None}),
        ("Seed resize from: 512 x 640", {"seed_resize_from": "512x640"}),
        ("Parser: A1111 parser, Operations: txt2img, App: SD.Next, Backend: Diffusers", {}),
        ("Variation seed: 5, Variation strength: 0.3", {"variation_seed": 5, "variation_strength": 0.3}),
        ("Hires resize: 0x0", {"hires_width": None}),
        (
            "Size: 1024x1280, Denoising strength: 0.7, First pass size: 0x0",
            {"width": 512, "height": 576, "hires_width": 1024, "hires_height": 1280, "denoising_strength": 0.7},
        ),
        (
            "Size: 1280x1024, Denoising strength: 0.7, First pass size: 640x512",
            {"width": 640, "height": 512, "hires_width": 1280, "hires_height": 1024},
        ),
        ("Module 1: Built in", {}),
        ('Civitai resources: [{"type":"checkpoint","weight":1}]', {}),
    ],
)
def test_variants_that_are_understood(pairs: str, expected: dict[str, Any]) -> None:
    settings, remarks = recalled(pairs)
    assert {name: settings.get(name) for name in expected} == expected
    assert remarks == ()


@pytest.mark.parametrize(
    ("pairs", "name", "value", "remark"),
    [
        ("Clip skip: -2", "clip_skip", 2, "counts layers as ComfyUI does"),
        ("Clip skip: 0", "clip_skip", None, "clip_skip = 0 is not taken over"),
        ("Seed: -5", "seed", None, "not a seed of a finished picture"),
        ("Variation seed: -1", "variation_seed", None, "not a seed of a finished picture"),
        ("Steps: 20.5", "steps", None, "Steps: 20.5 is not understood"),
        ("Steps: 1e400", "steps", None, "Steps: 1e400 is not understood"),
        ("Steps: 1e300", "steps", None, "is not taken over"),
        ("Steps: 99999", "steps", None, "steps = 99999 is not taken over"),
        ("CFG scale: nan", "cfg_scale", None, "CFG scale: nan is not understood"),
        ("CFG scale: -3", "cfg_scale", None, "cfg_scale = -3.0 is not taken over"),
        ("Size: 0x512", "width", None, "Size: 0x512 is not understood"),
        ("Size: large", "width", None, "Size: large is not understood"),
        ("Size: 99999x8", "width", None, "width = 99992 is not taken over"),
        ("Size: 516x64", "width", 512, "not in steps of 8"),
        ("Module 1: ae.safetensors", "vae", None, "Module 1: ae.safetensors was loaded beside"),
        ("Hires Module 2: t5xxl", "vae", None, "Hires Module 2: t5xxl was loaded beside"),
        ("Parser: Compel parser", "emphasis", None, "Parser: Compel parser is not known here"),
        ("Operations: txt2img; detailer; upscale", "init_image", None, "Operations: detailer, upscale"),
        ("Masked content: stripes", "mask_content", None, "Masked content: stripes is not understood"),
        ("Inpaint area: Half", "inpaint_area", None, "Inpaint area: Half is not understood"),
        ("Mask mode: Odd", "mask_invert", None, "Mask mode: Odd is not understood"),
        ("First pass size: 512x512", "hires_width", None, "First pass size: 512x512 is not understood"),
        ("Hires resize: wide", "hires_width", None, "Hires resize: wide is not known here"),
        ("Sigma churn: 1_0", "s_churn", None, "Sigma churn: 1_0 is not understood"),
        ("Schedule min sigma: 5, Schedule max sigma: 3", "sigma_max", None, "sigma_max = 3.0 is not taken over"),
        ("Hires upscale: 99, Denoising strength: 0.3", "hires_scale", None, "hires_scale = 99.0 is not taken over"),
    ],
)
def test_what_is_not_understood_is_said_and_ends_nothing(pairs: str, name: str, value: Any, remark: str) -> None:
    usual = ", ".join(part for part in USUAL.split(", ") if part.partition(":")[0] not in pairs.partition(":")[0])
    settings, remarks = recalled(pairs, usual=usual if "Steps" in usual else f"{usual}, Model: toy")
    assert settings.get(name) == value
    assert any(remark in text for text in remarks), remarks


def test_text_behind_the_settings_is_said() -> None:
    found = recall(parse_parameters(f"a cat\n{USUAL}\nTemplate: {{a|b}} cat\nNegative Template:"))
    assert found.remarks == ()
    found = recall(parse_parameters(f"a cat\n{USUAL}\nand words"))
    assert found.remarks == ("the text after the settings is not understood: 'and words'",)
    assert found.settings["negative_prompt"] == ""


def test_broken_lora_tags_are_left_out_and_said() -> None:
    found = recall(parse_parameters(f"a <lora:x:0.3><lora:y:strong><lora:z:1:1:8> cat\n{USUAL}"))
    assert found.settings["prompt"] == "a <lora:x:0.3> cat"
    assert ["strong" in found.remarks[0], "3 weights" in found.remarks[1]] == [True, True]


def test_hashes_of_the_additional_networks_extension() -> None:
    pairs = "AddNet Enabled: True, AddNet Module 1: LoRA, AddNet Model 1: ink(0123456789ab), AddNet Weight A 1: 0.7"
    found = recall(parse_parameters(f"a\n{USUAL}, {pairs}"))
    assert found.lora_hashes == {"ink": "0123456789ab"}


def test_other_programs_prompts_have_no_choices() -> None:
    found = recall(Parameters("a {b|c}", fields={"Steps": "20", "Emphasis": "Comfy", "RNG": "CPU"}, program="ComfyUI"))
    assert (found.settings["dynamic_prompts"], found.settings["emphasis"]) == (False, "comfy")
    assert "prompt_compatibility" not in found.settings
    assert "comment" in recall(Parameters("cat #1", fields={"RNG": "CPU"}, program="ComfyUI")).remarks[0]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted({*_FIELDS, *_READ_TOGETHER})), st.text(max_size=12) | st.from_regex(
    r"\A-?[0-9]{1,9}([.,x][0-9]{0,9})?\Z")))  # fmt: skip
def test_any_fields_make_valid_settings(fields: dict[str, str]) -> None:
    found = recall(Parameters("a cat", "dog", fields))
    GenerateSettings.parse(found.settings)
