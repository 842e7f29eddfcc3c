"""The running average: its closed form, and that training never notices it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from loraloom.errors import ResumeError
from loraloom.events import ignore
from loraloom.training.ema import Ema
from loraloom.training.settings import EmaSettings, TrainSettings
from loraloom.training.trainer import train

MakeSettings = Callable[..., TrainSettings]


def module(value: float) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize(("warmup", "every"), [(False, 1), (True, 1), (False, 3)])
def test_the_closed_form(warmup: bool, every: int) -> None:
    layer = module(1.0)
    ema = Ema(layer.named_parameters(), EmaSettings(enabled=True, decay=0.9, warmup=warmup, every=every))
    expected, updates = 1.0, 0
    for step in range(1, 8):
        nn.init.constant_(layer.weight, float(step))
        ema.update(step)
        if step % every == 0:
            decay = (min(0.9, (1 + updates) / (10 + updates)) if warmup else 0.9) ** every
            expected, updates = decay * expected + (1 - decay) * step, updates + 1
    with ema.applied():
        assert layer.weight.flatten().tolist() == pytest.approx([expected, expected], rel=1e-6)
    assert layer.weight.flatten().tolist() == [7.0, 7.0]


def test_applied_gives_back_the_very_bits_also_after_an_error() -> None:
    layer = nn.Linear(3, 3)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    ema = Ema(layer.named_parameters(), EmaSettings(enabled=True))
    nn.init.zeros_(layer.bias)
    before[1].zero_()
    with ema.applied():
        assert layer.bias.detach().abs().sum() > 0
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert all(torch.equal(one, other) for one, other in zip(layer.parameters(), before, strict=True))


def test_its_state_goes_through() -> None:
    layer = module(1.0)
    ema = Ema(layer.named_parameters(), EmaSettings(enabled=True, decay=0.5))
    nn.init.constant_(layer.weight, 3.0)
    ema.update(1)
    other = Ema(module(9.0).named_parameters(), EmaSettings(enabled=True, decay=0.5))
    other.load_state_dict(ema.state_dict())
    assert other.decay() == ema.decay()
    assert torch.equal(other.state_dict()["averages"]["weight"], ema.state_dict()["averages"]["weight"])
    with pytest.raises(ResumeError, match="other layers"):
        other.load_state_dict({"updates": 1, "averages": {"bias": torch.zeros(1)}})


def test_files_hold_the_average_and_training_goes_on_without_it(make_settings: MakeSettings, tmp_path: Path) -> None:
    found = {}
    for name, *overrides in (
        ("off",),
        ("both", "ema.enabled=true", "ema.save=both", "ema.decay=0.5", "ema.warmup=false"),
    ):
        for part in ("weights", "previews"):
            (tmp_path / name / part).mkdir(parents=True)
        settings = make_settings(
            "steps=2", "saving.every_steps=1", "saving.precision=float", "optimizer.lr=1e-2", *overrides
        )
        train(settings, tmp_path / name, listener=ignore)
        found[name] = {path.stem: load_file(path) for path in (tmp_path / name / "weights").iterdir()}
    off, both = found["off"], found["both"]
    assert set(both) == {"lora", "lora-raw", "lora-step00000001", "lora-step00000001-raw"}
    for one, other in (("lora", "lora-raw"), ("lora-step00000001", "lora-step00000001-raw")):
        assert all(torch.equal(off[one][key], both[other][key]) for key in off[one])
    for key, end in off["lora"].items():
        if key.endswith("lora_up.weight"):  # begins at zero
            first = off["lora-step00000001"][key]
            torch.testing.assert_close(both["lora"][key], 0.5 * end + 0.25 * first, rtol=1e-5, atol=1e-8)
