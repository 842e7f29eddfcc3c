"""What every kind of adapter must do: start as nothing, act as its merged weight does, and survive a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from loraloom.adapters.attach import AdapterSet, attach, read_adapters
from loraloom.adapters.dora import DoraAdapter
from loraloom.adapters.lora import LoraAdapter
from loraloom.adapters.norm import NormAdapter
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import write_adapter_file
from loraloom.formats.adapter_kinds import ADAPTERS
from loraloom.formats.tensors import write_tensors

from .layers import INPUTS, LAYERS, SETTINGS, TRAINED, made, randomise, spot


@pytest.fixture(params=sorted(LAYERS))
def layer_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    return LAYERS[request.param](), torch.randn(INPUTS[request.param])


def test_every_kind_is_tested() -> None:
    assert {str(settings["kind"]) for settings in SETTINGS.values()} == set(TRAINED) == set(ADAPTERS) - {"norm"}


@pytest.mark.parametrize("case", SETTINGS)
def test_starts_as_identity(case: str, layer_and_input: tuple[nn.Module, torch.Tensor]) -> None:
    layer, x = layer_and_input
    adapter = made(layer, SETTINGS[case])
    assert float(adapter.delta(layer.weight).abs().max()) <= 3e-7  # type: ignore[arg-type]
    with attach(AdapterSet({spot(layer): adapter}), {"lora_unet_a_b": layer}):
        assert torch.allclose(layer(x), layer.forward(x), atol=2e-6)


@pytest.mark.parametrize("weight", [1.0, -0.6])
@pytest.mark.parametrize("case", SETTINGS)
def test_forward_equals_merged_weight(
    case: str, weight: float, layer_and_input: tuple[nn.Module, torch.Tensor]
) -> None:
    layer, x = layer_and_input
    adapter = randomise(made(layer, SETTINGS[case]))
    before = layer.weight.detach().clone()  # type: ignore[operator,union-attr]
    delta = adapter.delta(before)
    assert float(delta.abs().max()) > 0.01
    with attach(AdapterSet({spot(layer): adapter}), {"lora_unet_a_b": layer}, unet=weight):
        trained = layer(x)
        with torch.no_grad():
            beside = layer(x)
    assert torch.equal(layer.weight, before)  # type: ignore[arg-type]
    layer.weight.data += weight * delta  # type: ignore[union-attr,operator]
    assert torch.allclose(beside, layer(x), atol=1e-5)
    assert torch.allclose(trained, beside, atol=1e-5)


@pytest.mark.parametrize("case", SETTINGS)
def test_gradients_are_those_of_the_merged_weight(case: str) -> None:
    """Autograd through the delta says what the short cut of the forward pass must give."""
    torch.manual_seed(2)
    layer, x = LAYERS["conv3"](), torch.randn(INPUTS["conv3"])
    adapter = randomise(made(layer, SETTINGS[case]))
    with attach(AdapterSet({spot(layer): adapter}), {"lora_unet_a_b": layer}):
        layer(x).square().sum().backward()
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    found = [parameter.grad.clone() for parameter in trained]  # type: ignore[union-attr]
    adapter.zero_grad()
    change = adapter.change(layer.weight.detach())  # type: ignore[operator,union-attr]
    output = nn.functional.conv2d(x, layer.weight.detach() + change, layer.bias, 2, 1)  # type: ignore[operator,union-attr,arg-type]
    output.square().sum().backward()
    for parameter, gradient in zip(trained, found, strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", SETTINGS)
def test_file_round_trip(case: str, layer_and_input: tuple[nn.Module, torch.Tensor], tmp_path: Path) -> None:
    layer, _ = layer_and_input
    adapter = randomise(made(layer, SETTINGS[case]))
    path, place = tmp_path / "x.safetensors", spot(layer)
    write_adapter_file(path, AdapterSet({place: adapter}).file_tensors(), metadata={}, dtype=torch.float32)
    ((_, read),) = read_adapters(path, [place]).items()
    base = layer.weight.detach()  # type: ignore[operator,union-attr]
    assert torch.allclose(read.delta(base), adapter.delta(base), atol=1e-6)
    assert read.ranks == adapter.ranks
    assert read.kind == adapter.kind or (read.kind, adapter.kind) == ("lora", "lora_fa")
    assert not any(parameter.requires_grad for parameter in read.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", SETTINGS)
def test_a_file_in_half_precision_is_reckoned_with_in_single(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    layer = LAYERS["conv3"]()
    adapter, path, place = randomise(made(layer, SETTINGS[case])), tmp_path / "x.safetensors", spot(layer)
    write_adapter_file(path, AdapterSet({place: adapter}).file_tensors(), metadata={}, dtype=dtype)
    ((_, read),) = read_adapters(path, [place]).items()
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    base = layer.weight.detach()  # type: ignore[operator,union-attr]
    exact = ("dora_scale",)  # lengths are not rounded
    kept = {role: t if role in exact else t.to(dtype).float() for role, t in adapter.tensors().items()}
    found = read.delta(base).detach()
    torch.testing.assert_close(found, type(adapter).from_tensors(kept, place).delta(base).detach())
    assert not torch.equal(found, adapter.delta(base).detach()), "half precision has lost nothing"


@pytest.mark.parametrize(("rank", "alpha"), [(3, 0.7), (3, 5.0), (7, 2.0)])
@pytest.mark.parametrize("name", ["linear", "conv3"])
def test_principal_factors_are_the_best_approximation_whatever_the_alpha(name: str, rank: int, alpha: float) -> None:
    """At the start ``alpha / rank * up @ down`` is the weight cut to that rank, shared evenly between both factors."""
    layer = LAYERS[name]()
    adapter = made(layer, {"kind": "lora", "init": "pissa", "rank": rank}, alpha=alpha)
    assert isinstance(adapter, LoraAdapter)
    down, up = adapter.down.detach().flatten(1), adapter.up.detach().flatten(1)
    left, values, right = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)  # type: ignore[operator,union-attr]
    best = left[:, :rank] * values[:rank] @ right[:rank]
    torch.testing.assert_close(up @ down * (alpha / rank), best, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", SETTINGS)
def test_shortened_to_a_norm(case: str, layer_and_input: tuple[nn.Module, torch.Tensor]) -> None:
    layer, _ = layer_and_input
    adapter = randomise(made(layer, SETTINGS[case]))
    if adapter.needs_base:
        before = float(adapter.norm())
    else:
        before = float(adapter.delta().norm())
        assert float(adapter.norm()) == pytest.approx(before, rel=1e-5)
    adapters = AdapterSet({spot(layer): adapter})
    assert adapters.apply_max_norm(before * 2) == (0, pytest.approx(before, rel=1e-5))
    assert adapters.apply_max_norm(before / 3) == (1, pytest.approx(before / 3, rel=1e-5))
    assert float(adapter.norm()) <= before / 3 * 1.00001
    if "pissa" not in case:
        assert float(adapter.norm()) == pytest.approx(before / 3, rel=1e-4)


@pytest.mark.parametrize("case", [case for case in SETTINGS if case.startswith(("loha", "lokr", "full"))])
def test_a_file_says_the_norm_of_its_change(case: str, layer_and_input: tuple[nn.Module, torch.Tensor]) -> None:
    """From the tensors alone, by the kind's own reckoning; an alpha that is not the rank."""
    layer, _ = layer_and_input
    adapter = randomise(made(layer, SETTINGS[case], alpha=0.7))
    tensors = {role: tensor.detach() for role, tensor in adapter.tensors().items()}
    norm = pytest.approx(float(adapter.delta().detach().norm()), rel=1e-5)
    assert type(adapter).norm_in_file(tensors) == (norm, layer.weight.numel())  # type: ignore[operator,union-attr]


def test_lengths_beside_the_factors_as_peft_has_them(layer_and_input: tuple[nn.Module, torch.Tensor]) -> None:
    """One for each output, in a row for linear layers; it has none for inputs."""
    layer, _ = layer_and_input
    lengths = torch.arange(1.0, layer.weight.shape[0] + 1)  # type: ignore[union-attr,operator]
    tensors = randomise(made(layer, {"kind": "dora", "dora_axis": "output"})).tensors()
    stored = lengths.reshape(tensors["dora_scale"].shape).half()
    (found,) = DoraAdapter.beside_factors({**tensors, "dora_scale": stored}, spot(layer), "x").values()
    wanted = lengths if isinstance(layer, nn.Linear) else lengths.reshape(1, -1, 1, 1)
    assert torch.equal(found, wanted)
    inputs = made(layer, {"kind": "dora"}).tensors()
    with pytest.raises(AdapterError, match=r"^x is a DoRA .* for each input channel"):
        DoraAdapter.beside_factors(inputs, spot(layer), "x")


def test_max_norm_of_several_adapters() -> None:
    """Norms on both sides of the limit and one at it; the mean is of the norms afterwards."""
    layer = LAYERS["linear"]()
    adapters = {
        spot(layer, f"lora_unet_{n}"): randomise(made(layer, {}), n, size) for n, size in enumerate((0.1, 0.3, 0.7))
    }
    norms = [float(adapter.norm()) for adapter in adapters.values()]
    limit = norms[1]
    assert norms[0] < limit < norms[2]
    scaled, mean = AdapterSet(adapters).apply_max_norm(limit)
    assert (scaled, mean) == (1, pytest.approx((norms[0] + 2 * limit) / 3, rel=1e-5))
    assert [float(a.delta().norm()) for a in adapters.values()] == pytest.approx([norms[0], limit, limit], rel=1e-5)


def test_max_norm_of_a_lora_is_that_of_sd_scripts() -> None:
    """There the product is built: both matrices are multiplied by the root of limit / norm."""
    layer = LAYERS["conv3"]()
    adapter = randomise(made(layer, {"kind": "lora"}))
    assert isinstance(adapter, LoraAdapter)
    down, up, scale = adapter.down.detach().clone(), adapter.up.detach().clone(), adapter.scale
    norm = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down).mul(scale).norm()
    AdapterSet({spot(layer): adapter}).apply_max_norm(float(norm) / 4)
    assert torch.allclose(adapter.up, up / 2, atol=1e-6)
    assert torch.allclose(adapter.down, down / 2, atol=1e-6)


@pytest.mark.parametrize("case", SETTINGS)
def test_dropouts_depend_on_the_step_alone_and_are_off_in_eval(
    case: str, layer_and_input: tuple[nn.Module, torch.Tensor]
) -> None:
    layer, x = layer_and_input
    adapter = randomise(made(layer, SETTINGS[case]))
    adapters = AdapterSet({spot(layer): adapter})
    with torch.no_grad(), attach(adapters, {"lora_unet_a_b": layer}):
        plain, whole = layer.forward(x), layer(x)
        for name in ("rank_dropout", "module_dropout"):
            setattr(adapter, name, 0.5)
            outputs = []
            for step in (*range(12), *range(12)):
                adapters.train().seed_step(3, step)
                torch.rand(2)  # the global generator must not matter
                outputs.append(layer(x))
            assert all(torch.equal(a, b) for a, b in zip(outputs[:12], outputs[12:], strict=True)), name
            assert any(not torch.allclose(outputs[0], other) for other in outputs), name
            if name == "module_dropout":
                kinds = {torch.equal(output, plain) for output in outputs}
                assert kinds == {True, False}
                assert all(torch.equal(o, plain) or torch.allclose(o, whole, atol=1e-6) for o in outputs)
            adapters.eval()
            assert torch.allclose(layer(x), whole, atol=1e-6)
            setattr(adapter, name, 0.0)


@pytest.mark.parametrize("case", ["lora", "dora", "loha", "full"])
def test_the_share_of_steps_that_leave_a_layer_out(case: str) -> None:
    """At 0.3, where leaving out and keeping cannot be taken for one another."""
    layer, x = LAYERS["narrow"](), torch.randn(1, 12)
    adapter = randomise(made(layer, SETTINGS[case]))
    adapter.module_dropout = 0.3
    adapters = AdapterSet({spot(layer): adapter}).train()
    left_out = 0
    with torch.no_grad(), attach(adapters, {"lora_unet_a_b": layer}):
        plain = layer.forward(x)
        for step in range(1000):
            adapters.seed_step(8, step)
            left_out += torch.equal(layer(x), plain)
    assert left_out / 1000 == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", ["linear", "conv3"])
@pytest.mark.parametrize("case", ["loha", "lokr", "lokr both", "ia3", "full"])
def test_dropped_channels_of_kinds_without_a_thin_activation(case: str, name: str) -> None:
    """Each output channel is left out in 0.3 of the steps, and 1 / 0.7 as large in the others."""
    layer, x = LAYERS[name](), torch.randn(INPUTS[name])
    adapter = randomise(made(layer, SETTINGS[case]))
    adapters = AdapterSet({spot(layer): adapter}).train()
    with torch.no_grad():
        whole = adapter.branch(x, layer)
        adapter.rank_dropout = 0.3
        kept = 0
        for step in range(100):
            adapters.seed_step(step)
            side = adapter.branch(x, layer)
            channels = side.movedim(1 if name == "conv3" else -1, 0).flatten(1)
            wanted = whole.movedim(1 if name == "conv3" else -1, 0).flatten(1) / 0.7
            on = channels.abs().sum(dim=1) > 0
            torch.testing.assert_close(channels[on], wanted[on], atol=1e-6, rtol=1e-5)
            kept += int(on.sum())
    assert kept / (100 * 20) == pytest.approx(0.7, abs=0.04)


def test_rank_dropout_keeps_the_mean() -> None:
    layer, x = LAYERS["linear"](), torch.randn(INPUTS["linear"])
    adapter = randomise(made(layer, {"kind": "lora", "rank": 4}))
    adapter.rank_dropout = 0.3
    adapters = AdapterSet({spot(layer): adapter}).train()
    with torch.no_grad():
        whole = adapter.eval().branch(x, layer)
        adapter.train()
        total = torch.zeros_like(whole)
        for step in range(2000):
            adapters.seed_step(step)
            total += adapter.branch(x, layer)
    assert torch.allclose(total / 2000, whole, atol=0.12 * float(whole.abs().max()))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8)])
def test_a_normalization_of_a_file(norm: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(3, 5, 8) if isinstance(norm, nn.LayerNorm) else torch.randn(2, 8, 4, 4)
    path, place = tmp_path / "x.safetensors", spot(norm)
    tensors = {"lora_unet_a_b.w_norm": torch.randn(8), "lora_unet_a_b.b_norm": torch.randn(8)}
    write_tensors(path, tensors)
    adapters = read_adapters(path, [place])
    assert isinstance(adapters.adapter(place.name), NormAdapter)
    with attach(adapters, {place.name: norm}, unet=0.5):
        beside = norm(x)
    norm.weight.data += 0.5 * tensors["lora_unet_a_b.w_norm"]  # type: ignore[union-attr,operator]
    norm.bias.data += 0.5 * tensors["lora_unet_a_b.b_norm"]  # type: ignore[union-attr,operator]
    assert torch.allclose(beside, norm(x), atol=1e-5)


BROKEN = {
    "loha": [
        ("hada_w1_b", torch.ones(2, 5), "hada_w|w_b"),
        ("hada_w2_a", None, "hada_w2_a"),
        ("hada_w1_a", torch.full((20, 2), float("nan")), "NaN"),
    ],
    "lokr": [
        ("lokr_w1", torch.ones(3, 3), "Kronecker"),
        ("lokr_w1", torch.ones(1, 1), "does not fit|factors are"),
        ("lokr_w2", torch.ones(4, 4, 2), "does not fit"),
    ],
    "dora": [("dora_scale", torch.ones(1, 7), "dora_scale"), ("up", torch.ones(20, 3), r"\(20, 3\)")],
    "full": [("diff", torch.ones(20, 11), r"\(20, 11\)")],
    "ia3": [("weight", torch.ones(3), "does not fit"), ("on_input", None, "do not make an adapter")],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_tensors_that_do_not_fit_are_refused(kind: str, tmp_path: Path) -> None:
    from loraloom.adapters.kinds import adapter_from_tensors

    layer = LAYERS["linear"]()
    whole = {**made(layer, {"kind": kind, "lokr_full_matrix": True}).tensors()}
    for role, tensor, message in BROKEN[kind]:
        tensors = {**whole, role: tensor} if tensor is not None else {k: t for k, t in whole.items() if k != role}
        with pytest.raises(AdapterError, match=message):
            adapter_from_tensors(tensors, spot(layer))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_factors_around_a_core_may_be_those_of_1x1_convolutions(kind: str) -> None:
    """Tucker's form: the left and the right factor in two or in four dimensions are the same change."""
    target = spot(nn.Conv2d(6, 4, 3))
    random = torch.Generator().manual_seed(4)
    shapes = {
        "loha": {"hada_w1_a": (2, 4), "hada_w1_b": (2, 6), "hada_t1": (2, 2, 3, 3)}
        | {"hada_w2_a": (3, 4), "hada_w2_b": (3, 6), "hada_t2": (3, 3, 3, 3)},
        "lokr": {"lokr_w1": (2, 3), "lokr_w2_a": (3, 2), "lokr_w2_b": (3, 2), "lokr_t2": (3, 3, 3, 3)},
    }[kind]
    tensors = {role: torch.randn(shape, generator=random) for role, shape in shapes.items()}
    wide = {role: t[..., None, None] if t.ndim == 2 and role != "lokr_w1" else t for role, t in tensors.items()}
    adapter = ADAPTERS.load(kind)
    plain = adapter.from_tensors(tensors, target).delta()
    assert torch.equal(adapter.from_tensors(wide, target).delta(), plain)
    assert float(plain.norm()) > 0.1
    scaled = {**tensors, "alpha": torch.tensor(0.7)}
    norm = pytest.approx(float(adapter.from_tensors(scaled, target).delta().detach().norm()), rel=1e-5)
    assert adapter.norm_in_file(scaled) == (norm, plain.numel())


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (2, 3, 3, 3), (2, 2, 3)])
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_core_that_fits_only_one_of_its_factors_is_refused(kind: str, shape: tuple[int, ...]) -> None:
    target = spot(nn.Conv2d(6, 4, 3))
    tensors = {
        "loha": {"hada_w1_a": torch.ones(2, 4), "hada_w1_b": torch.ones(2, 6), "hada_t1": torch.ones(shape)}
        | {"hada_w2_a": torch.ones(4, 3), "hada_w2_b": torch.ones(3, 54)},
        "lokr": {"lokr_w1": torch.ones(2, 3), "lokr_w2_a": torch.ones(2, 2), "lokr_w2_b": torch.ones(2, 2)}
        | {"lokr_t2": torch.ones(shape)},
    }[kind]
    with pytest.raises(AdapterError, match=r"a core of shape .* does not fit factors of shape"):
        ADAPTERS.load(kind).from_tensors(tensors, target)


def test_the_values_that_loha_starts_with() -> None:
    """As in LyCORIS: normal, 0.1 wide for the first left factor and 1 for the right ones; a zero for the second."""
    tensors = made(nn.Linear(700, 400, bias=False), {"kind": "loha", "rank": 7}).tensors()
    stds = {role: float(tensor.std()) for role, tensor in tensors.items() if role != "alpha"}
    assert stds == {
        "hada_w1_a": pytest.approx(0.1, rel=0.05),
        "hada_w1_b": pytest.approx(1.0, rel=0.05),
        "hada_w2_a": 0.0,
        "hada_w2_b": pytest.approx(1.0, rel=0.05),
    }
    assert not torch.equal(tensors["hada_w1_b"], tensors["hada_w2_b"])


@pytest.mark.parametrize(
    ("rank", "settings", "bounds"),
    [
        # 600 = 24 * 25 and 1400 = 35 * 40: w1 is (24, 35), w2 (25, 40); a side is factored below half its longer side
        (19, {}, {"lokr_w1": 35, "lokr_w2_a": 19, "lokr_w2_b": None}),
        (20, {}, {"lokr_w1": 35, "lokr_w2": None}),
        (17, {"lokr_decompose_both": True}, {"lokr_w1_a": 17, "lokr_w1_b": 35, "lokr_w2_a": 17, "lokr_w2_b": None}),
        (18, {"lokr_decompose_both": True}, {"lokr_w1": 35, "lokr_w2_a": 18, "lokr_w2_b": None}),
        (5, {"lokr_decompose_both": True, "lokr_full_matrix": True}, {"lokr_w1": 35, "lokr_w2": None}),
    ],
)
def test_the_values_that_lokr_starts_with(
    rank: int, settings: dict[str, object], bounds: dict[str, int | None]
) -> None:
    """Uniform within 1/sqrt(fan in), spread over all of that range; what comes last is zero."""
    layer = nn.Linear(1400, 600, bias=False)
    tensors = made(layer, {"kind": "lokr", "rank": rank, "lokr_factor": -1, **settings}, alpha=0.3).tensors()
    assert set(tensors) == set(bounds) | {"alpha"}
    for role, fan_in in bounds.items():
        largest, bound = float(tensors[role].abs().max()), 0.0 if fan_in is None else fan_in**-0.5
        assert largest <= bound
        assert largest == pytest.approx(bound, rel=0.05)
        assert float(tensors[role].mean()) == pytest.approx(0.0, abs=0.15 * bound)
