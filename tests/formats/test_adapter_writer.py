"""The one writer of LoRA files: keys of each dialect, and the file read back before it takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import AdapterError, OutputError
from loraloom.formats import adapter_writer
from loraloom.formats.adapter_file import AdapterFile, AdapterTarget, read_adapter_file
from loraloom.formats.adapter_writer import write_lora
from loraloom.formats.dialects import KOHYA, PEFT, Dialect
from loraloom.formats.lora_factors import factors_of
from loraloom.formats.tensors import open_tensors
from random_loras import targets_of

TARGETS = {target.name: target for target in targets_of("sd1")}
LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
POINTWISE = "lora_unet_down_blocks_0_attentions_0_proj_in"
KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def lora(name: str, rank: int, alpha: float, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    out, *rest = TARGETS[name].shape
    down = torch.randn(rank, *rest, generator=random) * 0.1
    up = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=random) * 0.1
    return {"down": down, "up": up, "alpha": torch.tensor(alpha)}


def delta(roles: Mapping[str, Tensor]) -> Tensor:
    factors = factors_of(roles, "x")
    return factors.scale * factors.up @ factors.down


def in_file(target: AdapterTarget, dialect: Dialect) -> str:
    return target.name if dialect is KOHYA else f"{target.part}.{target.diffusers_name}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dialect", [KOHYA, PEFT], ids=["kohya", "diffusers"])
def test_every_layer_keeps_its_change(dialect: Dialect, dtype: torch.dtype, tmp_path: Path) -> None:
    layers = {
        LINEAR: lora(LINEAR, 3, 0.7, 1),
        POINTWISE: lora(POINTWISE, 2, 5.0, 2),
        KERNEL: lora(KERNEL, 5, 1.0, 3),
        TEXT: lora(TEXT, 4, -0.3, 4),
    }
    path = tmp_path / "x.safetensors"
    written = write_lora(path, layers, metadata={}, dtype=dtype, dialect=dialect, targets=TARGETS)
    found = read_adapter_file(path)
    assert (written.layers, found.dialect, len(found.layers)) == (4, dialect, 4)
    for name, roles in layers.items():
        there = found.layers[in_file(TARGETS[name], dialect)]
        wanted = delta(roles)
        torch.testing.assert_close(delta(there), wanted, rtol=0, atol=3 * torch.finfo(dtype).eps * float(wanted.norm()))


def test_diffusers_gets_one_rank_for_each_part(tmp_path: Path) -> None:
    """Most of its versions take the first layer's rank as the alpha of all."""
    layers = {LINEAR: lora(LINEAR, 3, 0.7), KERNEL: lora(KERNEL, 5, 1.0), TEXT: lora(TEXT, 2, 1.5)}
    path = tmp_path / "x.safetensors"
    written = write_lora(path, layers, metadata={}, dtype=torch.float32, dialect=PEFT, targets=TARGETS)
    stored = open_tensors(path)
    ranks = {key.split(".")[0]: set[int]() for key in stored}
    for key in stored:
        ranks[key.split(".")[0]].add(stored.info(key).shape[0 if "lora_A" in key else 1])
    assert ranks == {"unet": {5}, "text_encoder": {2}} and written.padded == (2, 5)
    assert not any(key.endswith("alpha") for key in stored)


def test_tucker_is_multiplied_out_for_diffusers_and_kept_for_kohya(tmp_path: Path) -> None:
    out, columns, *kernel = TARGETS[KERNEL].shape
    random = torch.Generator().manual_seed(5)
    roles = {
        "down": torch.randn(3, columns, 1, 1, generator=random),
        "mid": torch.randn(3, 3, *kernel, generator=random),
        "up": torch.randn(out, 3, 1, 1, generator=random) * 0.1,
        "alpha": torch.tensor(2.0),
    }
    for dialect in (KOHYA, PEFT):
        path = tmp_path / f"{dialect.name}.safetensors"
        write_lora(path, {KERNEL: roles}, metadata={}, dtype=torch.float32, dialect=dialect, targets=TARGETS)
        there = read_adapter_file(path).layers[in_file(TARGETS[KERNEL], dialect)]
        assert ("mid" in there) == (dialect is KOHYA)
        torch.testing.assert_close(delta(there), delta(roles), rtol=1e-4, atol=1e-5)


def test_a_two_dimensional_pair_of_a_1x1_convolution_gets_four(tmp_path: Path) -> None:
    roles = {role: t.flatten(1) if t.ndim == 4 else t for role, t in lora(POINTWISE, 2, 0.3).items()}
    for dialect in (KOHYA, PEFT):
        path = tmp_path / f"{dialect.name}.safetensors"
        write_lora(path, {POINTWISE: roles}, metadata={}, dtype=torch.float32, dialect=dialect, targets=TARGETS)
        assert {open_tensors(path).info(key).shape[2:] for key in open_tensors(path)} <= {(1, 1), ()}
        assert any(len(open_tensors(path).info(key).shape) == 4 for key in open_tensors(path))


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ({"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 4)}, "is LoHa; diffusers"),
        ({"diff": (4, 4)}, "is full difference; diffusers"),
        ({"weight": (4,), "on_input": ()}, r"is \(IA\)3; diffusers"),
        ({"down": (2, 4), "up": (4, 2), "dora_scale": (1, 4)}, "a magnitude for each input channel"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused(roles: dict[str, tuple[int, ...]], problem: str, tmp_path: Path) -> None:
    layers = {LINEAR: {role: torch.ones(shape) for role, shape in roles.items()}}
    with pytest.raises(AdapterError, match=problem):
        write_lora(tmp_path / "x.safetensors", layers, metadata={}, dtype=torch.float32, dialect=PEFT, targets=TARGETS)
    assert not list(tmp_path.iterdir())


def test_nan_is_blamed_on_the_source_and_range_on_the_type(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    layers = {LINEAR: lora(LINEAR, 2, 1.0)}
    layers[LINEAR]["up"][3, 1] = float("nan")
    with pytest.raises(AdapterError, match=f"a.pt: layer {LINEAR} holds NaN"):
        write_lora(path, layers, metadata={}, dtype=torch.float16, source="a.pt")
    diff = {LINEAR: {"diff": torch.full((2, 2), float("inf"))}}
    with pytest.raises(AdapterError, match=r"a.pt: .*\.diff holds NaN"):
        write_lora(path, diff, metadata={}, dtype=torch.float16, source="a.pt")
    layers[LINEAR]["up"][3, 1] = 70000.0
    with pytest.raises(AdapterError, match=r"lora_up\.weight is not finite as torch\.float16"):
        write_lora(path, layers, metadata={}, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["strength", "another layer", "a value of a difference", "lengths"])
def test_a_file_that_reads_back_as_something_else_never_takes_its_place(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a wrong table of names or a forgotten alpha would make it; the file that was there stays."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there")
    lengths = torch.ones(1, TARGETS[LINEAR].shape[1])
    layers = {LINEAR: lora(LINEAR, 3, 1.0) | {"dora_scale": lengths}, TEXT: {"diff": torch.ones(4, 4)}}
    read = read_adapter_file

    def reading(there: Path) -> AdapterFile:
        file = read(there)
        found = {name: dict(roles) for name, roles in file.layers.items()}
        if fault == "strength":
            found[LINEAR]["alpha"] = torch.tensor(1.02)
        elif fault == "another layer":
            found[POINTWISE] = found.pop(LINEAR)
        elif fault == "lengths":
            found[LINEAR]["dora_scale"] = found[LINEAR]["dora_scale"] * 1.01
        else:
            found[TEXT]["diff"] = found[TEXT]["diff"] * 1.01
        return AdapterFile(there, file.dialect, found, file.metadata)

    monkeypatch.setattr(adapter_writer, "read_adapter_file", reading)
    with pytest.raises(OutputError, match=r"was not written: read back, layer .* is not what it was"):
        write_lora(path, layers, metadata={}, dtype=torch.float16)
    assert path.read_bytes() == b"what was there"
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_foreign_configuration_beside_it_would_change_the_strength(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 7}', encoding="utf-8")
    layers, path = {LINEAR: lora(LINEAR, 2, 1.0)}, tmp_path / "adapter_model.safetensors"
    with pytest.raises(OutputError, match=r"would be read with the adapter_config\.json beside it"):
        write_lora(path, layers, metadata={}, dtype=torch.float32, dialect=PEFT, targets=TARGETS)
    write_lora(path, layers, metadata={}, dtype=torch.float32, targets=TARGETS)


def test_a_layer_without_a_name_in_diffusers_is_refused(tmp_path: Path) -> None:
    layers = {"lora_unet_no_such_layer": {"down": torch.ones(2, 5), "up": torch.ones(3, 2)}}
    path = tmp_path / "x.safetensors"
    words = r"s\.pt: its layers belong to no model that is known .*lora_unet_no_such_layer"
    with pytest.raises(AdapterError, match=words):
        write_lora(path, layers, metadata={}, dtype=torch.float16, dialect=PEFT, source="s.pt")
    assert not path.exists()
