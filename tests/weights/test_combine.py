"""LoRAs added up: the exact sum of the changes, or its best approximation of a rank."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.adapters.attach import create_adapters, read_adapters
from loraloom.adapters.block_weights import block_name, parse_block_weights
from loraloom.adapters.settings import AdapterSettings
from loraloom.adapters.strength import LoraStrength
from loraloom.cli.words import worded
from loraloom.errors import AdapterError, OutputError
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.tensors import open_tensors
from loraloom.weights.anatomy import dissect
from loraloom.weights.combine import COMBINED_KEY, combine_loras
from loraloom.weights.convert import convert_lora
from loraloom.weights.low_rank import Criterion
from loraloom.weights.merge import LoraWeight, merge
from loraloom.weights.resize import resize_lora
from random_loras import random_lora, targets_of

Write = Callable[..., Path]


def deltas(path: Path, family: str = "sd1") -> dict[str, Tensor]:
    return {target.name: adapter.delta() for target, adapter in read_adapters(path, targets_of(family)).items()}


def test_the_sum_is_exact(write_lora: Write, tmp_path: Path) -> None:
    first = write_lora("a.safetensors", random_lora("sd1", 1))
    second = write_lora("b.safetensors", random_lora("sd1", 2, parts=["unet"], conv=False))
    output = tmp_path / "sum.safetensors"
    report = combine_loras([LoraWeight(first, LoraStrength(0.7, 0.3)), LoraWeight(second, LoraStrength(-0.5))], output)
    a, b, found = deltas(first), deltas(second), deltas(output)
    assert found.keys() == a.keys() | b.keys()
    for name, delta in found.items():
        wanted = a[name] * (0.7 if name.startswith("lora_unet") else 0.3)
        wanted = wanted - 0.5 * b[name] if name in b else wanted
        torch.testing.assert_close(delta, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
        assert report.ranks[name] == (4 if name in b else 2)


def test_cut_to_a_rank_it_is_the_truncated_svd_of_the_dense_sum(write_lora: Write, tmp_path: Path) -> None:
    files = [write_lora(f"{seed}.safetensors", random_lora("sd1", seed)) for seed in (1, 2, 3)]
    output = tmp_path / "sum.safetensors"
    report = combine_loras([LoraWeight(file, LoraStrength(0.5, 0.5)) for file in files], output, rank=3, conv_rank=2)
    dense, found = [deltas(file) for file in files], deltas(output)
    lost = whole = 0.0
    for name, delta in found.items():
        total = (sum(each[name] for each in dense) * 0.5).flatten(1).double()
        u, values, v = torch.linalg.svd(total, full_matrices=False)
        rank = 2 if delta.ndim == 4 and delta.shape[-1] > 1 else 3
        best = u[:, :rank] * values[:rank] @ v[:rank]
        torch.testing.assert_close(delta.flatten(1).double(), best, rtol=1e-3, atol=1e-5 * float(values[0]))
        lost, whole = lost + float((values[rank:] ** 2).sum()), whole + float((values**2).sum())
    assert report.residual == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert report.limit == 3, "what was asked for of layers that are no kernels"


def test_block_weights_multiply(write_lora: Write, tmp_path: Path, checkpoint: Write) -> None:
    file, output = write_lora("a.safetensors", random_lora("sd1", 1)), tmp_path / "out.safetensors"
    blocks = parse_block_weights("MID=0.5,OUT03=0")
    combine_loras([LoraWeight(file, LoraStrength(0.8, 0.8, blocks))], output)
    before, after = deltas(file), deltas(output)
    expected = {"MID": 0.4, "OUT03": 0.0}
    for name, delta in before.items():
        wanted = expected.get(block_name(name), 0.8)
        assert (name in after) == bool(wanted)
        if wanted:
            torch.testing.assert_close(after[name], delta * wanted, rtol=1e-5, atol=1e-7)
    base, plain, blocked = checkpoint("sd1"), tmp_path / "plain.safetensors", tmp_path / "blocked.safetensors"
    merge(base, [LoraWeight(output)], plain)
    merge(base, [LoraWeight(file, LoraStrength(0.8, 0.8, blocks))], blocked)
    one, two = open_tensors(plain), open_tensors(blocked)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    assert json.loads(two.metadata["loraloom.merged"])[0]["blocks"] == "MID=0.5,OUT03=0"


@pytest.mark.parametrize(("family", "count"), [("sd1", 17), ("sdxl", 12)])
def test_a_preset_of_block_weights_is_that_of_the_family(
    family: str, count: int, write_lora: Write, tmp_path: Path, checkpoint: Write
) -> None:
    """In a sum and in a merge alike: the layers of blocks at 0 are left out, the others have their weight."""
    file, output = write_lora("a.safetensors", random_lora(family, 5, parts=["unet"])), tmp_path / "out.safetensors"
    strength = LoraStrength(0.6, blocks=parse_block_weights("OUTS"))
    combine_loras([LoraWeight(file, strength)], output)
    before, after = deltas(file, family), deltas(output, family)
    wanted = {name: strength.listed(count).of(name) for name in before}
    assert after.keys() == {name for name, weight in wanted.items() if weight}
    assert 0 < len(after) < len(before)
    for name, delta in after.items():
        torch.testing.assert_close(delta, wanted[name] * before[name], rtol=1e-5, atol=1e-7)
    merge(checkpoint(family), [LoraWeight(file, strength)], tmp_path / "blocked.safetensors")
    merge(checkpoint(family), [LoraWeight(output)], tmp_path / "plain.safetensors")
    one, two = (open_tensors(tmp_path / f"{name}.safetensors") for name in ("blocked", "plain"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)


def test_the_recipe_is_written_and_no_training_is_claimed(write_lora: Write, tmp_path: Path) -> None:
    said = {"ss_base_model_version": "sd_v1", "ss_steps": "100", "modelspec.trigger_phrase": "abc"}
    files = [write_lora(f"{seed}.safetensors", random_lora("sd1", seed), said) for seed in (1, 2)]
    output = tmp_path / "out.safetensors"
    combine_loras([LoraWeight(file) for file in files], output, precision="fp16")
    from loraloom.formats.adapter_file import content_hash

    metadata = open_tensors(output).metadata
    assert "ss_steps" not in metadata
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.trigger_phrase"] == "abc"
    assert [each["file"] for each in json.loads(metadata[COMBINED_KEY])] == ["1.safetensors", "2.safetensors"]
    assert metadata["sshs_model_hash"] == content_hash(output)


def test_what_three_files_say_of_themselves(write_lora: Write, tmp_path: Path) -> None:
    """The first one's model, everybody's trigger words once, each file with its own weights, and the widest type."""
    said = [
        {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "abc"},
        {"ss_base_model_version": "sd_v1-5", "modelspec.trigger_phrase": "  "},
        {"modelspec.trigger_phrase": " def, ghi "},
        {"modelspec.trigger_phrase": "abc"},
    ]
    types = (torch.float16, torch.float16, torch.bfloat16, torch.float16)
    weights = [(0.7, 0.2), (-0.4, 1.3), (0.0, 0.9), (1.0, 1.0)]
    blocks = parse_block_weights("MID=0.5")
    loras = []
    for index, (texts, dtype, weight) in enumerate(zip(said, types, weights, strict=True)):
        tensors = {key: tensor.to(dtype) for key, tensor in random_lora("sd1", index).file_tensors().items()}
        path = write_lora(f"{index}.safetensors", tensors, texts)
        loras.append(LoraWeight(path, LoraStrength(*weight, blocks if index == 1 else None)))
    output = tmp_path / "out.safetensors"

    def written(*chosen: int) -> tuple[torch.dtype, dict[str, str]]:
        combine_loras([loras[index] for index in chosen], output)
        file = open_tensors(output)
        (dtype,) = {file.info(name).dtype for name in file if "lora_" in name.split(".")[1]}
        return dtype, dict(file.metadata)

    dtype, metadata = written(0, 1, 2, 3)
    assert dtype == torch.float32, "half precisions of two kinds have float32 in common"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.trigger_phrase"] == "abc, def, ghi"
    assert metadata["modelspec.merged_from"] == "0.safetensors, 1.safetensors, 2.safetensors, 3.safetensors"
    recipe = json.loads(metadata[COMBINED_KEY])
    assert [(part["unet"], part["text_encoder"], part.get("blocks")) for part in recipe] == [
        (0.7, 0.2, None),
        (-0.4, 1.3, "MID=0.5"),
        (0.0, 0.9, None),
        (1.0, 1.0, None),
    ]
    assert written(0, 1)[0] == torch.float16
    assert "modelspec.trigger_phrase" not in written(1)[1]


def test_what_cannot_be_added_up_is_said(write_lora: Write, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    good = write_lora("good.safetensors", random_lora("sd1", 1))
    tensors = random_lora("sd1", 2).file_tensors()
    name = next(key for key in tensors if key.endswith("attn1_to_q.lora_down.weight"))
    layer = name.removesuffix(".lora_down.weight")
    broken = {
        "families": write_lora("xl.safetensors", random_lora("sdxl", 1)),
        "NaN": write_lora("nan.safetensors", tensors | {name: tensors[name] * float("nan")}),
        "DoRA": write_lora("dora.safetensors", tensors | {f"{layer}.dora_scale": torch.ones(32, 1)}),
        "different models": write_lora("shape.safetensors", tensors | {name: torch.ones(2, 7)}),
    }
    for file in broken.values():
        with pytest.raises(AdapterError) as caught:
            combine_loras([LoraWeight(good), LoraWeight(file)], output)
        assert caught.value.problem
    with pytest.raises(AdapterError, match="nothing would be left"):
        combine_loras([LoraWeight(good, LoraStrength(0.0, 0.0))], output)
    with pytest.raises(OutputError, match="one of the inputs"):
        combine_loras([LoraWeight(good)], good)
    assert not output.exists()


def test_a_word_goes_along_once_and_may_not_mean_two_things(write_lora: Write, tmp_path: Path) -> None:
    """Three files: the first two agree about the first word, the last two do not about the second."""
    one, two, other = torch.randn(2, 32), torch.randn(3, 32), torch.randn(3, 32)
    words = [{"s1": one}, {"s1": one, "s2": two}, {"s2": other}]
    files = [
        write_lora(
            f"{seed}.safetensors",
            {f"bundle_emb.{word}.string_to_param.*": vectors for word, vectors in of_file.items()}
            | random_lora("sd1", seed).file_tensors(),
        )
        for seed, of_file in enumerate(words)
    ]
    output = tmp_path / "out.safetensors"
    report = combine_loras([LoraWeight(file) for file in files[:2]], output, precision="float")
    assert report.words == ("s1", "s2")
    found = read_adapter_file(output).embeddings
    assert [torch.equal(*found[word].values(), vectors) for word, vectors in words[1].items()] == [True, True]
    with pytest.raises(AdapterError, match=r"1\.safetensors and \S+2\.safetensors both contain the embedding 's2'"):
        combine_loras([LoraWeight(file) for file in files], output)


def test_alpha_zero_means_the_rank(write_lora: Write, tmp_path: Path) -> None:
    tensors = random_lora("sd1", 1).file_tensors()
    zero = {key: torch.tensor(0) if key.endswith(".alpha") else value for key, value in tensors.items()}
    file, output = write_lora("zero.safetensors", zero), tmp_path / "out.safetensors"
    combine_loras([LoraWeight(file)], output)
    before, after = deltas(file), deltas(output)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------ resize


@pytest.mark.parametrize("way", [None, ("sv_ratio", 1.5), ("sv_fro", 0.9), ("sv_cumulative", 0.7)])
def test_resize_against_the_dense_svd(way: tuple[str, float] | None, write_lora: Write, tmp_path: Path) -> None:
    pair = [write_lora(f"{seed}.safetensors", random_lora("sd1", seed)) for seed in (1, 2)]
    whole, output = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    combine_loras([LoraWeight(file) for file in pair], whole)
    report = resize_lora(whole, output, rank=3, conv_rank=2, criterion=Criterion(*way) if way else None)
    before, after, told = deltas(whole), deltas(output), {layer.name: layer for layer in report.layers}
    for name, delta in before.items():
        matrix = delta.flatten(1).double()
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        limit = 2 if delta.ndim == 4 and delta.shape[-1] > 1 else 3
        match way:
            case ("sv_ratio", number):
                wanted = int((values > values[0] / number).sum())
            case ("sv_fro", number):
                wanted = int(((values**2).cumsum(0) / (values**2).sum() < number**2).sum()) + 1
            case ("sv_cumulative", number):
                wanted = int((values.cumsum(0) / values.sum() < number).sum()) + 1
            case _:
                wanted = limit
        rank = max(1, min(wanted, limit))
        assert told[name].rank == rank, name
        best = u[:, :rank] * values[:rank] @ v[:rank]
        torch.testing.assert_close(after[name].flatten(1).double(), best, rtol=1e-3, atol=1e-5 * float(values[0]))
        kept = float((values[:rank] ** 2).sum() / (values**2).sum())
        assert told[name].kept == pytest.approx(kept, abs=1e-4)


def test_resize_to_a_higher_rank_changes_nothing(write_lora: Write, tmp_path: Path) -> None:
    file, output = write_lora("a.safetensors", random_lora("sd1", 1)), tmp_path / "out.safetensors"
    report = resize_lora(file, output, rank=64)
    assert report.residual < 1e-6
    assert {layer.rank for layer in report.layers} == {2}
    before, after = deltas(file), deltas(output)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-6)


def test_factors_beyond_the_range_of_their_product_are_named(write_lora: Write, tmp_path: Path) -> None:
    """All values are finite, and no product of them is."""
    down, up = torch.full((3, 5), 2e37), torch.full((7, 3), -4e37)
    tensors = {"lora_unet_a.lora_down.weight": down, "lora_unet_a.lora_up.weight": up}
    path = write_lora("huge.safetensors", tensors)
    with pytest.raises(AdapterError, match=r"huge\.safetensors: layer lora_unet_a has factors too large for resizing"):
        resize_lora(path, tmp_path / "out.safetensors", rank=1)
    with pytest.raises(AdapterError, match="too large for combining"):
        combine_loras([LoraWeight(path), LoraWeight(path)], tmp_path / "out.safetensors", rank=2)
    layer = dissect(read_adapter_file(path)).layers[0]
    assert (layer.state, layer.norm) == ("not finite", math.inf)
    # As far as float32 reaches the sum is made.
    sound = write_lora("large.safetensors", {key: tensor * 1e-24 for key, tensor in tensors.items()})
    assert resize_lora(sound, tmp_path / "out.safetensors", rank=1, precision="float").residual < 1e-3


def test_layers_without_a_rank_stay_as_they_are(write_lora: Write, tmp_path: Path) -> None:
    """LyCORIS trains normalizations beside a LoRA: they have no rank that could be cut."""
    norm, whole = "lora_te_text_model_encoder_layers_0_layer_norm1", "lora_unet_mid_block_attentions_0_proj_out"
    shape = next(target.shape for target in targets_of("sd1") if target.name == whole)
    tensors = {key: value for key, value in random_lora("sd1", 1).file_tensors().items() if not key.startswith(whole)}
    extra = {
        f"{norm}.w_norm": torch.randn(32), f"{norm}.b_norm": torch.randn(32),
        f"{whole}.diff": torch.randn(shape), f"{whole}.diff_b": torch.randn(shape[0]),
    }  # fmt: skip
    file, output = write_lora("a.safetensors", tensors | extra), tmp_path / "out.safetensors"
    report = resize_lora(file, output, rank=1)
    stored = open_tensors(output)
    assert report.whole == 2 and all(torch.equal(stored[key], value) for key, value in extra.items())
    with pytest.raises(AdapterError, match="is norm difference; diffusers reads LoRA and DoRA only"):
        resize_lora(file, tmp_path / "d.safetensors", rank=1, to="diffusers")
    alone = write_lora("b.safetensors", extra)
    with pytest.raises(AdapterError, match="no layer with a rank"):
        resize_lora(alone, output, rank=1)
    with pytest.raises(AdapterError, match=r"is LoRA, but full difference in"):
        combine_loras([LoraWeight(alone), LoraWeight(write_lora("c.safetensors", random_lora("sd1", 2)))], output)


def test_differences_of_whole_weights_and_norms_add_up(write_lora: Write, tmp_path: Path) -> None:
    """Three files with weights of their own for each part; one layer is in two of them only."""
    norm, whole = "lora_te_text_model_encoder_layers_0_layer_norm1", "lora_unet_mid_block_attentions_0_proj_out"
    shape = next(target.shape for target in targets_of("sd1") if target.name == whole)
    files = [
        {
            f"{norm}.w_norm": torch.randn(32), f"{norm}.b_norm": torch.randn(32),
            f"{whole}.diff": torch.randn(shape), f"{whole}.diff_b": torch.randn(shape[0]),
        }
        for _ in range(3)
    ]  # fmt: skip
    del files[1][f"{norm}.w_norm"], files[1][f"{norm}.b_norm"]
    weights = [(0.7, 0.3), (-0.4, 5.0), (1.3, -0.9)]
    loras = [
        LoraWeight(write_lora(f"{index}.safetensors", tensors), LoraStrength(*weight))
        for index, (tensors, weight) in enumerate(zip(files, weights, strict=True))
    ]
    report = combine_loras(loras, tmp_path / "sum.safetensors", rank=1)
    assert (report.ranks, report.residuals, report.residual) == ({}, {}, 0.0), "nothing in it has a rank"
    stored = open_tensors(tmp_path / "sum.safetensors")
    assert set(stored) == set(files[0])
    for key in files[0]:
        part = 0 if key.startswith("lora_unet") else 1
        wanted = sum(
            tensors[key] * weight[part] for tensors, weight in zip(files, weights, strict=True) if key in tensors
        )
        torch.testing.assert_close(stored[key], wanted)
    other = {**files[2], f"{whole}.diff": torch.randn(shape[0], 7)}
    odd = LoraWeight(write_lora("odd.safetensors", other))
    with pytest.raises(AdapterError, match=r"odd\.safetensors: layer \S+proj_out: diff has another shape"):
        combine_loras([loras[0], odd], tmp_path / "no.safetensors")


def test_only_layers_above_the_rank_are_cut_and_the_rest_lost_is_of_the_whole(
    write_lora: Write, tmp_path: Path
) -> None:
    """One file has ranks 2 everywhere, another only the U-Net: of the text encoder nothing is lost at rank 3."""
    loras = [
        LoraWeight(write_lora("a.safetensors", random_lora("sd1", 1)), LoraStrength(0.6, 1.7)),
        LoraWeight(write_lora("b.safetensors", random_lora("sd1", 2, parts=["unet"])), LoraStrength(-1.1)),
    ]
    report = combine_loras(loras, tmp_path / "out.safetensors", rank=3)
    dense = [deltas(lora.path) for lora in loras]
    lost = whole = 0.0
    for name, first in dense[0].items():
        second = dense[1].get(name)
        total = first * (1.7 if second is None else 0.6) - (0 if second is None else 1.1 * second)
        values = torch.linalg.svdvals(total.flatten(1).double())
        cut, size = float((values[3:] ** 2).sum()), float((values**2).sum())
        assert report.residuals[name] == pytest.approx((cut / size) ** 0.5, rel=1e-3, abs=1e-6)
        assert report.ranks[name] == (2 if second is None else 3)
        lost, whole = lost + cut, whole + size
    assert report.residual == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    least = combine_loras(loras, tmp_path / "least.safetensors", rank=1, conv_rank=1)
    assert set(least.ranks.values()) == {1} and least.ranks.keys() == report.ranks.keys()
    with pytest.raises(AdapterError, match="conv rank 0 is below 1"):
        combine_loras(loras, tmp_path / "no.safetensors", rank=3, conv_rank=0)
    with pytest.raises(AdapterError, match=r"^rank 0 is below 1"):
        combine_loras(loras, tmp_path / "no.safetensors", rank=0, conv_rank=3)


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "ia3"])
def test_kinds_without_a_pair_of_factors_are_refused(kind: str, write_lora: Write, tmp_path: Path) -> None:
    targets = [target for target in targets_of("sd1") if target.kind == "linear"][:2]
    made = create_adapters(
        AdapterSettings(kind=kind, rank=2), targets, seed=1, weight=lambda target: torch.ones(target.shape)
    )
    file, output = write_lora("a.safetensors", made.requires_grad_(False)), tmp_path / "out.safetensors"
    for doing in (
        lambda: resize_lora(file, output, rank=1),
        lambda: combine_loras([LoraWeight(file), LoraWeight(file)], output),
    ):
        with pytest.raises(AdapterError, match="exact for LoRA and LoCon only") as caught:
            doing()
        assert str(file) in caught.value.problem and "loraloom extract" in worded(caught.value.hint)
    assert not output.exists()


def test_sdxl_in_either_naming_and_blocks_of_files_of_diffusers(write_lora: Write, tmp_path: Path) -> None:
    """SDXL's layers have the checkpoint's names or diffusers'; weights by block count in every dialect."""
    lora = random_lora("sdxl", 4, parts=["unet"], conv=False)
    said = {"ss_base_model_version": "sdxl_base_v1-0"}
    aliases = {target.name: target.aliases[0] for target, _ in lora.items()}
    renamed = {aliases[key.split(".")[0]] + key[key.index(".") :]: value for key, value in lora.file_tensors().items()}
    own = write_lora("own.safetensors", lora, said)
    other, theirs = write_lora("other.safetensors", renamed, said), tmp_path / "d.safetensors"
    convert_lora(own, theirs, to="diffusers")
    output, before = tmp_path / "out.safetensors", deltas(own, "sdxl")
    blocks = parse_block_weights("MID=0.3")
    combine_loras(
        [
            LoraWeight(own, LoraStrength(0.5)),
            LoraWeight(other, LoraStrength(-0.2)),
            LoraWeight(theirs, LoraStrength(1.0, blocks=blocks)),
        ],
        output,
    )
    for name, delta in deltas(output, "sdxl").items():
        wanted = delta.new_tensor(0.3 + (0.3 if block_name(name) == "MID" else 1.0)) * before[name]
        torch.testing.assert_close(delta, wanted, rtol=1e-4, atol=1e-6)


def test_a_lora_of_another_program_in_kohyas_names_can_be_resized(write_lora: Write, tmp_path: Path) -> None:
    """Its layers belong to no family that is known here: they keep their names."""
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{name}.lora_down.weight": torch.randn(4, 9), f"{name}.lora_up.weight": torch.randn(7, 4)}
    file, output = write_lora("flux.safetensors", tensors), tmp_path / "out.safetensors"
    assert resize_lora(file, output, rank=2).layers[0].rank == 2
    assert f"{name}.lora_up.weight" in open_tensors(output)
    known = [LoraWeight(write_lora(f"{seed}.safetensors", random_lora("sd1", seed))) for seed in (2, 3)]
    for place in (0, 1, 2):  # whichever comes first, the one that is not known is named
        with pytest.raises(AdapterError, match=r"the layers of \S*flux\.safetensors belong to no known family"):
            combine_loras([*known[:place], LoraWeight(file), *known[place:]], output)
    with pytest.raises(AdapterError, match="belong to no model that is known here"):
        resize_lora(file, output, rank=2, to="diffusers")
