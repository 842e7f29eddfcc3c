"""LoRA files of every kind, on every layer that a file may change: merged and on the fly they do the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.adapters.adapter import Adapter
from loraloom.adapters.attach import AdapterSet, attach, read_adapters
from loraloom.adapters.full import FullAdapter
from loraloom.adapters.settings import AdapterSettings
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.adapter_kinds import ADAPTERS, trained_kinds
from loraloom.formats.tensors import write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.weights.inspect import inspect_file
from loraloom.weights.merge import Change, LoraWeight, merge, merged_tensor
from toys import toy_tensors

MakeFile = Callable[..., Path]
CPU = torch.device("cpu")
KINDS = tuple(kind for kind in trained_kinds() if ADAPTERS.load(kind).stored_as() == kind)


def own_weight(family: str, target: AdapterTarget) -> Tensor:
    weight = toy_tensors(family)[target.tensor]
    return (weight if target.rows is None else weight[slice(*target.rows)]).reshape(target.shape)


def mixed(family: str, checkpoint: Path, kinds: tuple[str, ...] = KINDS, *, size: float = 0.08) -> AdapterSet:
    """Kind after kind on layer after layer, normalizations and embeddings included."""
    source = open_checkpoint(checkpoint)
    adapters: dict[AdapterTarget, Adapter] = {}
    random = torch.Generator().manual_seed(3)
    for index, target in enumerate(source.family.file_targets(source.infos)):
        kind = "norm" if target.kind == "norm" else kinds[index % len(kinds)]
        if kind == "norm" and set(kinds) != set(KINDS):
            continue
        settings = AdapterSettings(kind="lora" if kind == "norm" else kind, dora_axis=("input", "output")[index % 2])
        base = own_weight(family, target)
        adapter = ADAPTERS.load(kind).create(target, settings, 2, 1.5, seed=1, base=base)
        for parameter in adapter.parameters():
            parameter.data += size * torch.randn(parameter.shape, generator=random)
        adapters[target] = adapter
    return AdapterSet(adapters).requires_grad_(False).eval()


def outputs(model: LoadedModel) -> tuple[Tensor, Tensor]:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = model.encode_text(["a cat", "a red dog, sitting"])
        return text.context, model.denoise(noisy, torch.tensor([700, 20]), text)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_on_the_fly_is_merged(family: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    path = checkpoint(family)
    lora = write_lora("mixed.safetensors", mixed(family, path))
    merge(path, [LoraWeight(lora, LoraStrength(0.8, 0.4))], tmp_path / "out.safetensors")
    base = load_model(path, device=CPU, prediction="epsilon")
    plain = outputs(base)
    layers = {target.name: base.layer(target) for target in base.file_targets}
    with attach(read_adapters(lora, base.file_targets), layers, unet=0.8, text_encoder=0.4):
        on_the_fly = outputs(base)
    merged = outputs(load_model(tmp_path / "out.safetensors", device=CPU, prediction="epsilon"))
    for without, beside, inside in zip(plain, on_the_fly, merged, strict=True):
        scale = float(beside.abs().max())
        assert float((beside - inside).abs().max()) < 1e-4 * scale
        assert float((beside - without).abs().max()) > 1e-2 * scale


def test_the_layers_of_a_file_are_all_of_the_checkpoint(checkpoint: MakeFile) -> None:
    """Every weight of the U-Net and the text encoders but the tables of tokens and positions."""
    for family in sorted(FAMILIES):
        source = open_checkpoint(checkpoint(family))
        targets = source.family.file_targets(source.infos)
        assert len({target.name for target in targets}) == len(targets)
        found = {target.tensor for target in targets}
        parts = ("model.diffusion_model.", "cond_stage_model.", "conditioner.")
        expected = {name for name in source if name.startswith(parts) and name.endswith(("weight", "in_proj_weight"))}
        left = {name.rpartition(".")[0].rpartition(".")[2] for name in expected - found}
        assert left <= {"token_embedding", "position_embedding"} | {f"{n}" for n in ("attn", "c_fc", "c_proj")} | {
            "out_proj",
        }, left
        assert found <= set(source)


def test_two_kinds_merge_alike_in_either_order_and_each_from_the_original(
    checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    path = checkpoint("sd1")
    sets = {kind: mixed("sd1", path, (kind,)) for kind in ("dora", "loha")}
    loras = [
        LoraWeight(write_lora(f"{kind}.safetensors", adapters), LoraStrength(0.7, 0.7))
        for kind, adapters in sets.items()
    ]
    merge(path, loras, tmp_path / "a.safetensors")
    merge(path, loras[::-1], tmp_path / "b.safetensors")
    one, other = open_checkpoint(tmp_path / "a.safetensors"), open_checkpoint(tmp_path / "b.safetensors")
    for target, dora in sets["dora"].items():
        assert torch.equal(one[target.tensor], other[target.tensor])
        base = own_weight("sd1", target)
        expected = base + 0.7 * dora.delta(base) + 0.7 * sets["loha"].adapter(target.name).delta(base)
        merged = one[target.tensor] if target.rows is None else one[target.tensor][slice(*target.rows)]
        assert torch.allclose(merged.reshape(base.shape), expected, atol=1e-6)


def test_a_change_of_rows_that_depends_on_them(checkpoint: MakeFile) -> None:
    source = open_checkpoint(checkpoint("sd2"))
    target = next(t for t in source.family.adapter_targets(source.infos) if t.rows is not None and t.rows[0] > 0)
    adapter = ADAPTERS.load("ia3").create(target, AdapterSettings(kind="ia3"), 1, 1.0, seed=0)
    adapter.weight.data.fill_(0.5)
    merged = merged_tensor(source[target.tensor], [Change.of_weight(target, adapter, 1.0)])
    start, stop = target.rows or (0, 0)
    assert torch.allclose(merged[start:stop], source[target.tensor][start:stop] * 1.5)
    assert torch.equal(merged[:start], source[target.tensor][:start])


def test_weights_in_double_precision_are_added_up_in_it(checkpoint: MakeFile) -> None:
    target = next(t for t in open_checkpoint(checkpoint("sd1")).family.all_targets() if t.kind == "linear")
    adapter = FullAdapter(torch.full(target.shape, 0.3))
    weight = torch.full(target.shape, 1 + 3e-12, dtype=torch.float64)
    merged = merged_tensor(weight, [Change.of_weight(target, adapter, 0.7)])
    expected = weight + (torch.full(target.shape, 0.3) * 0.7).double()  # the change itself is of single precision
    assert merged.dtype == torch.float64
    assert torch.equal(merged, expected)
    assert not torch.equal(merged, merged.float().double())


def test_a_bias_that_the_checkpoint_does_not_have(checkpoint: MakeFile, tmp_path: Path) -> None:
    source = open_checkpoint(checkpoint("sd1"))
    target = next(t for t in source.family.adapter_targets(source.infos) if t.name.endswith("attn1_to_q"))
    tensors = {f"{target.name}.diff": torch.ones(target.shape), f"{target.name}.diff_b": torch.ones(target.shape[0])}
    write_tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(AdapterError, match="changes the bias of"):
        merge(checkpoint("sd1"), [LoraWeight(tmp_path / "x.safetensors")], tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("kinds", "title", "rank"),
    [
        (("dora",), "a DoRA for a model that reads text of width 32", "2"),
        (("loha",), "a LoHa for a model that reads text of width 32", "2"),
        (("lokr",), "a LoKr for a model that reads text of width 32", "2"),
        (("ia3",), "a (IA)3 for an unknown model", "none"),
        (("full",), "a full difference for a model that reads text of width 32", "none"),
    ],
)
def test_inspect_tells_the_kind(
    kinds: tuple[str, ...], title: str, rank: str, checkpoint: MakeFile, write_lora: MakeFile
) -> None:
    adapters = mixed("sd1", checkpoint("sd1"), kinds)
    report = inspect_file(write_lora("x.safetensors", adapters))
    assert report.title == title
    assert report.facts["kind"] == title.removeprefix("a ").partition(" for ")[0]
    assert report.facts["rank"].split()[0] == rank
    assert "cannot be used" not in report.facts


def test_inspect_tells_mixed_kinds(checkpoint: MakeFile, write_lora: MakeFile) -> None:
    facts = inspect_file(write_lora("x.safetensors", mixed("sd1", checkpoint("sd1")))).facts
    assert all(word in facts["kind"] for word in ("LoRA (", "DoRA (", "LoKr (", "norm difference ("))
