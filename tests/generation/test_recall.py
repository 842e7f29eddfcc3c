"""Infotexts of the web UI's versions and of other programs, read back into settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraloom.formats.image_info import Parameters, parse_parameters
from loraloom.generation.recall import recall
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
