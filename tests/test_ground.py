from __future__ import annotations

import json
import math
import platform
import sys

import pytest
import torch

from loraloom import events, randomness
from loraloom.errors import HardwareError, LoraloomError, SettingsError, UnknownNameError
from loraloom.hardware import choose_device, choose_precision, explained_memory_errors, keep_freed_memory
from loraloom.registry import Entry, Registry


def test_errors_carry_problem_and_hint() -> None:
    error = LoraloomError("x is missing", "make x")
    assert (error.problem, error.hint, str(error)) == ("x is missing", "make x", "x is missing (make x)")
    assert "did you mean 'euler'" in UnknownNameError("sampler", "eular", ["euler", "heun"]).hint


def test_an_error_steers_no_terminal() -> None:
    """Names in strangers' files are quoted in errors: what is not text becomes an escape, ends of lines too."""
    error = LoraloomError("layer \x1b[31mred\x00\n\u202egnp is käthe\u3000雨", "a\x9b\tb")
    assert error.problem == r"layer \x1b[31mred\x00\n\u202egnp is käthe" + "\u3000雨"
    assert error.hint == r"a\x9b" + "\tb"
    listed = SettingsError(["a\nb", "c\rd"], "e")
    assert str(listed) == r"a\nb" + "\n" + r"c\rd (e)"
    assert listed.problems == (r"a\nb", r"c\rd")


def test_registry_loads_on_use_and_suggests() -> None:
    registry = Registry("thing", {"pi": Entry("math:pi", "a number")}, aliases={"PI": "pi"})
    assert registry.load("PI") == math.pi
    assert "PI" in registry
    with pytest.raises(UnknownNameError, match="unknown thing 'p'"):
        registry.load("p")


@pytest.mark.parametrize(
    "event",
    [
        events.Notice("ä", "warning"),
        events.StepFinished(3, 1, 0.5, 0.6, {"unet": 1e-4}, 0.1),
        events.WeightsSaved("a.safetensors", 3, 1, True),
    ],
)
def test_events_survive_json(event: events.Event) -> None:
    assert events.from_record(json.loads(json.dumps(events.to_record(event)))) == event


def test_random_numbers_depend_on_the_whole_key_only() -> None:
    assert randomness.seed_of(1, "noise", 2) == randomness.seed_of(1, "noise", 2)
    keys = [(1, 2), (2, 1), (12,), ("1", "2"), ("12",), (1, "2"), (1, 2, 0)]
    assert len({randomness.seed_of(*key) for key in keys}) == len(keys)
    assert torch.equal(randomness.normal((4, 3), 7, "a"), randomness.normal((4, 3), 7, "a"))
    values = [randomness.uniform("u", i) for i in range(4000)]
    assert min(values) >= 0 and max(values) < 1
    assert abs(sum(values) / 4000 - 0.5) < 0.02
    noise = randomness.normal((40000,), "n")
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02


def test_shuffling_reaches_every_order_about_equally() -> None:
    counts: dict[tuple[str, ...], int] = {}
    for i in range(1200):
        order = tuple(randomness.shuffled("abc", "s", i))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6 and min(counts.values()) > 140


def test_device_and_precision() -> None:
    cpu = choose_device("cpu")
    assert choose_precision(cpu).compute is torch.float32
    assert choose_precision(cpu, "bf16").compute is torch.bfloat16
    with pytest.raises(HardwareError, match="fp16"):
        choose_precision(cpu, "fp16")
    with pytest.raises(HardwareError, match="cuda:99"):
        choose_device("cuda:99")
    with pytest.raises(HardwareError, match="not a device"):
        choose_device("toaster")


def test_running_out_of_memory_is_explained() -> None:
    with (
        pytest.raises(HardwareError, match="out of memory while testing") as caught,
        explained_memory_errors("testing"),
    ):
        torch.empty(2**55)
    assert "batch_size" in caught.value.hint
    with pytest.raises(RuntimeError, match="something else"), explained_memory_errors("testing"):
        raise RuntimeError("something else")


def test_glibc_can_be_told_to_keep_freed_memory() -> None:
    assert keep_freed_memory() == (sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc")
