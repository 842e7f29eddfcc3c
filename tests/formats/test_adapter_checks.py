"""Types and shapes of a LoRA's tensors: refused where they are read, in one sentence, by everybody alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapter_corpus import drafts
from loraloom.adapters.attach import read_adapters
from loraloom.errors import AdapterError
from loraloom.formats.adapter_checks import EIGHT_BIT_FLOATS, widened
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.dialects import KOHYA
from loraloom.formats.tensors import write_tensors
from loraloom.weights.inspect import inspect_file
from random_loras import random_lora, targets_of

NAME = "lora_unet_a"
LORA = {"down": torch.ones(2, 5), "up": torch.ones(3, 2), "alpha": torch.tensor(1.5)}
LOHA = {f"hada_w{n}_{side}": torch.ones(3, 2) if side == "a" else torch.ones(2, 5) for n in "12" for side in "ab"}
LOKR = {"lokr_w1": torch.ones(3, 5), "lokr_w2_a": torch.ones(4, 2), "lokr_w2_b": torch.ones(2, 7)}
IA3 = {"weight": torch.ones(3), "on_input": torch.tensor(0)}

REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "int8 factors": ({**LORA, "down": torch.ones(2, 5, dtype=torch.int8)}, "lora_down.weight' holds int8 values"),
    "bool factors": ({**LORA, "up": torch.ones(3, 2, dtype=torch.bool)}, "lora_up.weight' holds bool values"),
    "complex factors": ({**LORA, "up": torch.ones(3, 2, dtype=torch.complex64)}, "holds complex64 values"),
    "int64 core": ({**LORA, "mid": torch.ones(2, 2, 3, 3, dtype=torch.int64)}, "lora_mid.weight' holds int64 values"),
    "complex alpha": ({**LORA, "alpha": torch.tensor(1 + 2j)}, "alpha' is complex64, where a number belongs"),
    "bool alpha": ({**LORA, "alpha": torch.tensor(True)}, "alpha' is bool, where a number belongs"),
    "alpha of two": ({**LORA, "alpha": torch.ones(2)}, "alpha' has shape .2,., where one number belongs"),
    "alpha of none": ({**LORA, "alpha": torch.ones(0)}, "alpha' has shape .0,., where one number belongs"),
    "vector as factor": ({**LORA, "down": torch.ones(2)}, "has shape .2,., 2 or 4 axes were expected"),
    "five axes": ({**LORA, "down": torch.ones(2, 5, 1, 1, 1)}, "2 or 4 axes were expected"),
    "number as factor": ({**LORA, "up": torch.tensor(1.0)}, "has shape .., 2 or 4 axes were expected"),
    "rank 0": ({**LORA, "down": torch.ones(0, 5), "up": torch.ones(3, 0)}, "is empty, shape"),
    "ranks differ": (
        {**LORA, "up": torch.ones(3, 4)},
        "factors of layer lora_unet_a do not fit one another: up .3, 4.",
    ),
    "a kernel on the wrong side": ({**LORA, "up": torch.ones(3, 2, 3, 3)}, "up .3, 2, 3, 3., down .2, 5."),
    "two kernels": (
        {**LORA, "mid": torch.ones(2, 2, 3, 3), "down": torch.ones(2, 5, 1, 3)},
        "mid .2, 2, 3, 3., down .2, 5, 1, 3.",
    ),
    "a kernel in LoHa's left factor": ({**LOHA, "hada_w1_a": torch.ones(3, 2, 1, 2)}, "hada_w1_a .3, 2, 1, 2."),
    "core differs": ({**LORA, "mid": torch.ones(3, 2, 3, 3)}, "do not fit one another: up .3, 2., mid .3, 2, 3, 3."),
    "no up": ({"down": LORA["down"]}, "has no up tensor"),
    "vector in LoHa": ({**LOHA, "hada_w2_b": torch.ones(5)}, "hada_w2_b' has shape .5,., 2 or 4 axes"),
    "LoHa's ranks": ({**LOHA, "hada_w2_b": torch.ones(4, 5)}, "hada_w2_a .3, 2., hada_w2_b .4, 5."),
    "half a LoHa": ({role: t for role, t in LOHA.items() if "w1" in role}, "has no hada_w2_a tensor"),
    "flat core in LoHa": ({**LOHA, "hada_t1": torch.ones(2, 2)}, "hada_t1' has shape .2, 2., 4 axes were expected"),
    "bool in LoHa": ({**LOHA, "hada_w1_b": torch.ones(2, 5, dtype=torch.bool)}, "hada_w1_b' holds bool values"),
    "four axes in LoKr": ({**LOKR, "lokr_w1": torch.ones(3, 5, 1, 1)}, "lokr_w1' has shape .3, 5, 1, 1., 2 axes"),
    "LoKr's ranks": ({**LOKR, "lokr_w2_b": torch.ones(3, 7)}, "lokr_w2_a .4, 2., lokr_w2_b .3, 7."),
    "LoKr without a side": ({"lokr_w1": LOKR["lokr_w1"]}, "has no lokr_w2 tensor"),
    "LoKr, one factor": ({"lokr_w1_b": torch.ones(2, 5), "lokr_w2": torch.ones(4, 7)}, "has no lokr_w1_a tensor"),
    "int8 (IA)3": ({**IA3, "weight": torch.ones(3, dtype=torch.int8)}, "weight' holds int8 values"),
    "(IA)3 without its side": ({"weight": IA3["weight"]}, "do not make an adapter"),
    "difference of 3 axes": ({"diff": torch.ones(2, 3, 4)}, "diff' has shape .2, 3, 4., 1 or 2 or 4 axes"),
    "int32 difference": ({"diff": torch.ones(2, 3, dtype=torch.int32)}, "diff' holds int32 values"),
    "DoRA's lengths, complex": ({**LORA, "dora_scale": torch.ones(1, 5, dtype=torch.complex64)}, "holds complex64"),
    "lengths alone": ({"dora_scale": torch.ones(1, 5)}, "do not make an adapter"),
    "an infinite alpha": ({**LORA, "alpha": torch.tensor(float("-inf"))}, "the alpha of layer lora_unet_a is -inf"),
    "an alpha that is NaN": ({**LOHA, "alpha": torch.tensor(float("nan"))}, "the alpha of layer lora_unet_a is nan"),
}


def saved(folder: Path, roles: dict[str, Tensor]) -> Path:
    path = folder / "x.safetensors"
    write_tensors(path, {NAME + KOHYA.suffix(role): tensor for role, tensor in roles.items()})
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_reader_and_by_inspect_in_the_same_words(name: str, tmp_path: Path) -> None:
    roles, words = REFUSED[name]
    path = saved(tmp_path, roles)
    with pytest.raises(AdapterError, match=words) as caught:
        read_adapter_file(path)
    report = inspect_file(path, layers=True)
    assert report.kind == "LoRA"
    assert report.anatomy is None
    assert caught.value.problem == f"{path}: {report.facts['cannot be used']}"


@pytest.mark.parametrize("roles", [LORA, LOHA, LOKR, IA3], ids=["lora", "loha", "lokr", "ia3"])
def test_what_the_refused_ones_were_made_from_is_read(roles: dict[str, Tensor], tmp_path: Path) -> None:
    assert "cannot be used" not in inspect_file(saved(tmp_path, roles)).facts
    assert set(read_adapter_file(tmp_path / "x.safetensors").layers[NAME]) == set(roles)


@pytest.mark.parametrize("dtype", EIGHT_BIT_FLOATS, ids=str)
def test_every_value_of_an_8_bit_float_is_kept(dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    wide = widened(values)
    assert wide.dtype in (torch.float16, torch.float32)
    exact = values.to(torch.float64)
    assert torch.equal(wide.double(), exact) or torch.equal(wide.double().nan_to_num(7.0), exact.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_an_fp8_lora_is_the_lora_of_its_values(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = random_lora("sd1", 3, size=0.3).file_tensors()
    small = {key: t if key.endswith("alpha") else t.to(dtype) for key, t in tensors.items()}
    write_tensors(tmp_path / "fp8.safetensors", small)
    write_tensors(tmp_path / "same.safetensors", {key: t.float() for key, t in small.items()})
    ours, same = (read_adapters(tmp_path / name, targets_of("sd1")) for name in ("fp8.safetensors", "same.safetensors"))
    assert len(ours) == len(same) > 30
    for target, adapter in ours.items():
        assert torch.equal(adapter.delta(), same.adapter(target.name).delta())
    report = inspect_file(tmp_path / "fp8.safetensors", layers=True)
    assert report.anatomy is not None
    assert report.anatomy.layers[0].norm == pytest.approx(
        float(same.adapter(report.anatomy.layers[0].name).delta().norm()), rel=1e-4
    )


def test_odd_alphas_and_ranks_are_said(tmp_path: Path) -> None:
    sound = {key: t for key, t in random_lora("sd1", 3, conv=False).file_tensors().items() if "unet" in key}
    names = sorted({key.partition(".")[0] for key in sound})
    odd = dict(sound)
    for name in names[:3]:
        odd[f"{name}.alpha"] = torch.tensor(0.0)
    odd[f"{names[5]}.alpha"] = torch.tensor(-2.5)
    down, up = (odd[f"{names[7]}.lora_{side}.weight"] for side in ("down", "up"))
    odd[f"{names[7]}.lora_down.weight"] = torch.ones(4096, *down.shape[1:])
    odd[f"{names[7]}.lora_up.weight"] = torch.ones(len(up), 4096, *up.shape[2:])
    write_tensors(tmp_path / "odd.safetensors", odd)
    facts = inspect_file(tmp_path / "odd.safetensors").facts
    assert facts["alpha 0"].startswith(f"3 of {len(names)} layers have alpha 0, which changes nothing")
    assert facts["negative alpha"].startswith(f"1 of {len(names)} layers")
    assert names[7] in facts["rank above size"]
    write_tensors(tmp_path / "sound.safetensors", sound)
    assert not {"alpha 0", "negative alpha", "rank above size"} & set(
        inspect_file(tmp_path / "sound.safetensors").facts
    )


VECTORS = {
    "int8": (torch.ones(2, 5, dtype=torch.int8), "holds int8 values; the vectors of a word"),
    "complex": (torch.ones(5, dtype=torch.complex64), "holds complex64 values"),
    "of three axes": (torch.ones(2, 5, 1), "has shape .2, 5, 1., where the vectors of a word belong"),
    "none": (torch.ones(0, 5), "has shape .0, 5.,"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_words_are_looked_at_too(name: str, tmp_path: Path) -> None:
    vectors, words = VECTORS[name]
    path = tmp_path / "x.safetensors"
    layer = {NAME + KOHYA.suffix(role): tensor for role, tensor in LORA.items()}
    write_tensors(path, {**layer, "bundle_emb.tok.string_to_param.*": vectors})
    with pytest.raises(AdapterError, match=words) as caught:
        read_adapter_file(path)
    assert caught.value.problem == f"{path}: {inspect_file(path).facts['cannot be used']}"


def test_a_file_that_is_read_with_another_is_refused_by_inspect_as_by_the_reader(tmp_path: Path) -> None:
    """cloneofsimo's U-Net, text encoder and word lie in three files."""
    path, text, word = (tmp_path / f"a{end}" for end in (".pt", ".text_encoder.pt", ".ti.pt"))
    torch.save([torch.ones(3, 2), torch.ones(2, 3)] * 4, path)
    torch.save([torch.ones(5, 2), torch.ones(2, 5)] * 4, text)
    torch.save({"<tok>": torch.ones(7).to(torch.float8_e5m2)}, word)
    # This one is a text encoder itself, so nothing is read with it.
    assert "cannot be used" not in inspect_file(path).facts
    unet = drafts()["cloneofsimo, unet keys"].tensors
    torch.save([tensor for key, tensor in unet.items() if key != "<tok>"], path)
    file = read_adapter_file(path)
    assert len(file.layers) == 144 + 4
    assert file.embeddings["<tok>"]["any"].dtype == torch.float16
    for other, damaged in (
        (text, [torch.ones(3, 2), torch.ones(2, 3).bool()] * 4),
        (word, {"<tok>": torch.tensor(1j)}),
    ):
        sound = other.read_bytes()
        torch.save(damaged, other)
        with pytest.raises(AdapterError, match=re.escape(str(other))) as caught:
            read_adapter_file(path)
        assert inspect_file(path).facts["cannot be used"] == caught.value.problem
        other.write_bytes(sound)
    assert "cannot be used" not in inspect_file(path).facts
