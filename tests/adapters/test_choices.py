"""Which layers are trained with which rank, what is told about settings, and where adapters start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from loraloom.adapters.adapter import Adapter
from loraloom.adapters.attach import AdapterSet, choose_targets, create_adapters, read_adapters
from loraloom.adapters.blocks import block_index
from loraloom.adapters.lora import LoraAdapter
from loraloom.adapters.metadata import network_args, network_metadata
from loraloom.adapters.settings import AdapterSettings, adapter_notices, parse_base_lora
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import AdapterError, SettingsError
from loraloom.events import Event, Notice
from loraloom.formats.adapter_file import write_adapter_file
from random_loras import targets_of

SD1 = targets_of("sd1")


def create(listener: Any = lambda event: None, **settings: Any) -> AdapterSet:
    random = torch.Generator().manual_seed(0)
    return create_adapters(
        AdapterSettings(**{"rank": 2, **settings}),
        SD1,
        seed=1,
        family="sd1",
        weight=lambda target: torch.randn(target.shape, generator=random),
        listener=listener,
    )


def test_text_encoders_rest_until_the_adapters_are_trained_again() -> None:
    adapters = create(dropout=0.3).train()
    adapters.rest_text_encoders()
    assert {(target.part, adapter.training) for target, adapter in adapters.items()} == {
        ("unet", True),
        ("text_encoder", False),
    }
    assert all(adapter.training for _, adapter in adapters.train().items())


def ranks(adapters: AdapterSet) -> dict[str, tuple[int, float]]:
    found = {}
    for target, adapter in adapters.items():
        assert isinstance(adapter, LoraAdapter)
        found[target.name] = adapter.rank, adapter.alpha
    return found


def changed(adapter: Adapter) -> None:
    random = torch.Generator().manual_seed(9)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)


# ------------------------------------------------------------------------------------------------ layers and ranks


def test_patterns_choose_layers_by_name() -> None:
    everything = {target.name for target in choose_targets(AdapterSettings(), SD1)}
    settings = AdapterSettings(include=("attn2", "mlp_fc1$"), exclude=("to_out",))
    chosen = {target.name for target in choose_targets(settings, SD1)}
    wanted = {n for n in everything if ("attn2" in n or n.endswith("mlp_fc1")) and "to_out" not in n}
    assert chosen == wanted and 0 < len(wanted) < len(everything)
    with pytest.raises(SettingsError, match="'atn2' matches no layer"):
        choose_targets(AdapterSettings(include=("attn2", "atn2")), SD1)
    with pytest.raises(SettingsError, match="'_9_' matches no layer"):
        choose_targets(AdapterSettings(exclude=("_9_",)), SD1)
    with pytest.raises(SettingsError, match="nothing is trained"):
        choose_targets(AdapterSettings(exclude=("lora",)), SD1)
    with pytest.raises(ValueError, match="not a regular expression"):
        AdapterSettings(include=("(",))


def test_ranks_and_alphas_by_block() -> None:
    blocks = tuple(index % 4 for index in range(25))
    alphas = tuple(0.5 * (index % 3) for index in range(25))
    found = ranks(create(rank=7, alpha=3.0, block_ranks=blocks, block_alphas=alphas))
    convs = tuple(index % 2 for index in range(25))
    more = ranks(create(block_ranks=blocks, conv_block_ranks=convs, conv_block_alphas=(0.25,) * 25))
    for target in SD1:
        block = block_index(target, "sd1")
        if block is None:
            assert found[target.name] == (7, 3.0)
        elif not target.extended:
            assert found.get(target.name) == (
                (blocks[block], alphas[block] or blocks[block]) if blocks[block] else None
            )
        else:
            assert target.name not in found
        if target.kind == "conv3x3" and block is not None:
            assert more.get(target.name) == ((1, 0.25) if convs[block] else None)
        elif target.extended and block is not None:
            assert (target.name in more) == (blocks[block] > 0)
    assert ranks(create(block_alphas=(0.5,) * 25, text_encoder=False)) == dict.fromkeys(
        ranks(create(text_encoder=False)), (2, 0.5)
    )


def test_a_list_for_blocks_has_the_length_of_the_family() -> None:
    with pytest.raises(SettingsError) as caught:
        create(block_ranks=(4,) * 23, conv_block_alphas=(1.0,) * 3)
    assert "adapter.block_ranks has 23 values; the U-Net of sd1 has 25 blocks" in str(caught.value)
    assert "adapter.conv_block_alphas has 3 values" in str(caught.value)


def test_a_rank_stabilized_file_gives_other_programs_the_same_scale() -> None:
    adapters = create(rank=9, alpha=2.0, rank_stabilized=True)
    for _, adapter in adapters.items():
        assert isinstance(adapter, LoraAdapter)
        assert adapter.scale == pytest.approx(2.0 / 9**0.5)
        assert float(adapter.tensors()["alpha"]) / 9 == pytest.approx(2.0 / 9**0.5)


def test_orthogonal_rows_have_the_usual_length() -> None:
    plain, straight = create(rank=8, unet=False), create(rank=8, unet=False, init="orthogonal")
    for (_, one), (_, other) in zip(plain.items(), straight.items(), strict=True):
        assert isinstance(one, LoraAdapter) and isinstance(other, LoraAdapter)
        gram = other.down @ other.down.T
        assert torch.allclose(gram, torch.eye(8) / 3, atol=1e-6)
        assert float(other.down.detach().norm()) == pytest.approx(float(one.down.detach().norm()), rel=0.2)


def test_frozen_down_is_no_trained_parameter() -> None:
    adapters = create(kind="lora_fa")
    assert {parameter.shape[0] for parameter in adapters.part_parameters("unet")} == {
        target.shape[0] for target in adapters.targets.values() if target.part == "unet"
    }


def test_principal_factors_survive_an_fp16_file(tmp_path: Path) -> None:
    """What is written are the small steps since the start, so rounding costs them alone a part in two thousand."""
    adapters = create(init="pissa")
    for _, adapter in adapters.items():
        assert isinstance(adapter, LoraAdapter)
        for parameter in adapter.parameters():
            parameter.data += 1e-3 * torch.randn(parameter.shape)
    path = tmp_path / "x.safetensors"
    write_adapter_file(path, adapters.file_tensors(), metadata={}, dtype=torch.float16)
    read = read_adapters(path, SD1)
    assert read.ranks() == {4: len(adapters)}
    for target, adapter in adapters.items():
        whole = adapter.delta()
        assert float((read.adapter(target.name).delta() - whole).norm() / whole.norm()) < 1e-3


def test_lengths_of_dora_are_not_rounded(tmp_path: Path) -> None:
    adapters = create(kind="dora", unet=False)
    path = tmp_path / "x.safetensors"
    write_adapter_file(path, adapters.file_tensors(), metadata={}, dtype=torch.float16)
    read = read_adapters(path, SD1)
    for target, adapter in adapters.items():
        assert torch.equal(read.adapter(target.name).tensors()["dora_scale"], adapter.tensors()["dora_scale"])


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "loha", "init": "pissa"}, "adapter.init=pissa is for"),
        ({"init": "pissa", "start_from": "x.safetensors"}, "set one of them"),
        ({"rank_from_file": True}, "needs adapter.start_from"),
        ({"base_loras": (":0.5",)}, "names no file"),
        ({"base_loras": ("a:nan",)}, "weight that is not a number"),
        ({"lokr_factor": 0}, "1 or more"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"kind": "loha", "dropout": 0.1, "rank_dropout": 0.1}, ["dropout"]),
        ({"kind": "ia3", "rank": 4, "alpha": 2.0}, ["rank", "alpha"]),
        ({"lokr_factor": 4, "dora_axis": "output"}, ["lokr_factor", "dora_axis"]),
        ({"kind": "lokr", "lokr_full_matrix": True, "rank": 4}, ["rank"]),
        ({"conv_alpha": 2.0}, ["conv_alpha"]),
        ({"conv_rank": 4, "unet": False}, ["conv_rank"]),
        ({"start_from": "x", "rank_from_file": True, "rank": 4, "dropout": 0.1}, ["rank"]),
    ],
)
def test_what_has_no_effect_is_told(settings: dict[str, Any], names: list[str]) -> None:
    told = adapter_notices(AdapterSettings(**settings))
    assert [text.split()[0] for text in told] == [f"adapter.{name}" for name in names]


def test_base_loras_are_written_as_file_and_weight() -> None:
    assert parse_base_lora("a.safetensors") == (Path("a.safetensors"), LoraStrength())
    assert parse_base_lora("x/a b.pt:0.5") == (Path("x/a b.pt"), LoraStrength(0.5, 0.5))
    assert parse_base_lora(r"C:\a.safetensors:0.25:-1") == (Path(r"C:\a.safetensors"), LoraStrength(-1.0, 0.25))
    assert parse_base_lora(r"C:\a.safetensors") == (Path(r"C:\a.safetensors"), LoraStrength())


def test_metadata_in_the_words_of_the_others() -> None:
    def told(**settings: Any) -> tuple[object, object, object, dict[str, object]]:
        made = AdapterSettings(**settings)
        said = network_metadata(made)
        return said["network_module"], said["network_dim"], said["network_alpha"], network_args(made)

    assert told(rank=8) == ("networks.lora", 8, 8.0, {})
    assert told(rank=4, alpha=2.0, rank_stabilized=True)[1:3] == (4, 4.0)
    assert told(rank=4, alpha=2.0, init="pissa")[1:3] == (8, 4.0)
    assert told(kind="lora_fa", conv_rank=4)[0] == "networks.lora_fa"
    assert told(kind="dora")[3] == {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}
    assert told(kind="loha", rank_dropout=0.1)[::3] == ("lycoris.kohya", {"algo": "loha", "rank_dropout": 0.1})
    assert told(kind="lokr", lokr_factor=8, lokr_full_matrix=True)[3] == {
        "algo": "lokr",
        "factor": 8,
        "full_matrix": "True",
    }
    assert told(block_ranks=(4,) * 25)[1:] == ("Dynamic", "Dynamic", {"block_dims": ",".join("4" * 25)})


# ------------------------------------------------------------------------------------------------ a file to start from


def stored(tmp_path: Path, **settings: Any) -> tuple[Path, AdapterSet]:
    adapters = create(**settings)
    for _, adapter in adapters.items():
        changed(adapter)
    path = tmp_path / "start.safetensors"
    write_adapter_file(path, adapters.file_tensors(), metadata={}, dtype=torch.float32)
    return path, adapters


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "ia3"])
def test_going_on_from_a_file(kind: str, tmp_path: Path) -> None:
    path, source = stored(tmp_path, kind=kind, alpha=1.0)
    for more in ({}, {"rank": 16, "rank_from_file": True}):
        adapters = create(kind=kind, start_from=path, dropout=0.25, **more)
        assert adapters.targets.keys() == source.targets.keys()
        for target, adapter in source.items():
            ours = adapters.adapter(target.name)
            assert {role: t.tolist() for role, t in ours.tensors().items()} == {
                role: t.tolist() for role, t in adapter.tensors().items()
            }
            assert ours.dropout == 0.25 and all(parameter.requires_grad for parameter in ours.parameters())


def test_a_lora_goes_on_with_its_down_frozen(tmp_path: Path) -> None:
    path, _ = stored(tmp_path)
    for more in ({}, {"rank_from_file": True}):
        adapters = create(kind="lora_fa", start_from=path, **more)
        assert all(not a.down.requires_grad for _, a in adapters.items() if isinstance(a, LoraAdapter))


def test_ranks_of_a_file_are_kept_layer_by_layer(tmp_path: Path) -> None:
    path, source = stored(tmp_path, block_ranks=(0, 3, 1, *(2,) * 22), conv_rank=1)
    assert ranks(create(start_from=path, rank_from_file=True)) == ranks(source)
    with pytest.raises(AdapterError, match=r"rank 3 .*rank 2"):
        create(start_from=path, conv_rank=1)
    with pytest.raises(AdapterError, match="leave out"):
        create(start_from=path, rank_from_file=True, text_encoder=False)


def test_layers_that_only_one_has_are_told(tmp_path: Path) -> None:
    path, _ = stored(tmp_path, include=("attn2", "mlp"))
    heard: list[Event] = []
    adapters = create(heard.append, start_from=path, unet=False)
    texts = [event.text for event in heard if isinstance(event, Notice)]
    assert len(texts) == 2 and "are not trained" in texts[0] and "start from scratch" in texts[1]
    assert all(target.part == "text_encoder" for target in adapters.targets.values())
    with pytest.raises(AdapterError, match="none of the"):
        create(start_from=path, include=("attn1",))


def test_how_many_layers_only_one_has_is_told(tmp_path: Path) -> None:
    """Of the file's layers those of attention to the text are trained, of the settings' those of the text encoder."""
    path, source = stored(tmp_path, include=("attn2", "mlp"))
    heard: list[Event] = []
    adapters = create(heard.append, start_from=path, include=("attn2", "self_attn"))
    both = len(source.targets.keys() & adapters.targets.keys())
    lost, new = len(source) - both, len(adapters) - both
    assert len({both, lost, new, len(source), len(adapters)}) == 5
    assert [(event.text, event.level) for event in heard if isinstance(event, Notice)] == [
        (
            f"adapter.start_from: {lost} of the {len(source)} layers of {path} are not trained: "
            "the new LoRA will not have them",
            "warning",
        ),
        (f"adapter.start_from: {new} trained layers are not in {path}: they start from scratch", "warning"),
    ]


def test_patterns_choose_among_the_layers_of_a_file_too(tmp_path: Path) -> None:
    path, source = stored(tmp_path, include=("attn2", "mlp"))
    assert ranks(create(start_from=path, rank_from_file=True, include=("attn2", "mlp"), rank=7)) == ranks(source)
    assert ranks(create(start_from=path, rank_from_file=True, exclude=("attn1",), rank=7)) == ranks(source)
    left = sum("mlp" in name for name in source.targets)
    for more in ({"include": ("attn2",)}, {"exclude": ("mlp",)}):
        with pytest.raises(AdapterError, match=f"leave out {left} of the {len(source)} layers"):
            create(start_from=path, rank_from_file=True, **more)


def test_a_layer_that_could_learn_nothing_is_no_start(tmp_path: Path) -> None:
    path, source = stored(tmp_path, alpha=0.7)
    name = sorted(source.targets)[3]
    tensors = source.file_tensors() | {f"{name}.alpha": torch.tensor(0.0)}
    write_adapter_file(path, tensors, metadata={}, dtype=torch.float32)
    for more in ({}, {"rank_from_file": True}):
        with pytest.raises(AdapterError, match=f"{name} of .* has alpha 0"):
            create(start_from=path, **more)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_each_dropout_reaches_its_place(kind: str, tmp_path: Path) -> None:
    path, _ = stored(tmp_path, kind=kind)
    rates = {"dropout": 0.1, "rank_dropout": 0.2, "module_dropout": 0.3}
    for more in ({}, {"start_from": path}, {"start_from": path, "rank_from_file": True}):
        for _, adapter in create(kind=kind, **rates, **more).items():
            assert (adapter.dropout, adapter.rank_dropout, adapter.module_dropout) == (0.1, 0.2, 0.3)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path, _ = stored(tmp_path, kind="loha")
    for more in ({}, {"rank_from_file": True}):
        with pytest.raises(AdapterError, match="holds loha"):
            create(start_from=path, **more)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(to_q|to_k)*x", ".*.*.*.*x", "(?:a|aa){20}b"])
def test_expressions_that_could_take_for_ever_are_refused(pattern: str) -> None:
    """A LoRA's metadata or a recipe may bring them; nobody needs them to choose layers."""
    with pytest.raises(ValidationError, match="could take for ever"):
        AdapterSettings(include=(pattern,))
    assert AdapterSettings(exclude=(r"down_blocks.*attn[12].*(to_q|to_k)$", "ff_net_0?")).exclude
