"""Both text encoders agree with transformers' CLIP for the same weights, layer by layer."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from loraloom.models.text_encoders import ClipTextEncoder, OpenClipTextEncoder, TextEncoder

VOCABULARY, LAYERS, WIDTH, PROJECTION = 120, 4, 128, 48
EOS = VOCABULARY - 1


def reference(activation: str, *, dtype: torch.dtype = torch.float32) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        projection_dim=PROJECTION,
        hidden_act=activation,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = CLIPTextModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.to(dtype)


def hugging_face_state(model: CLIPTextModelWithProjection) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def open_clip_state(model: CLIPTextModelWithProjection) -> dict[str, Tensor]:
    """The reference's weights under OpenCLIP's names: q, k, v in one tensor, the projection transposed."""
    source = hugging_face_state(model)
    state = {
        "token_embedding.weight": source["embeddings.token_embedding.weight"],
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "text_projection": source["text_projection.weight"].T.contiguous(),
        "ln_final.weight": source["final_layer_norm.weight"],
        "ln_final.bias": source["final_layer_norm.bias"],
    }
    renamed = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for layer in range(LAYERS):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            for theirs, ours in renamed.items():
                state[f"{new}.{ours}.{kind}"] = source[f"{old}.{theirs}.{kind}"]
            state[f"{new}.attn.out_proj.{kind}"] = source[f"{old}.self_attn.out_proj.{kind}"]
            parts = [source[f"{old}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
    return state


def build(kind: str, model: CLIPTextModelWithProjection) -> TextEncoder:
    if kind == "clip":
        state = {name: tensor for name, tensor in hugging_face_state(model).items() if "projection" not in name}
        cls: type[ClipTextEncoder] | type[OpenClipTextEncoder] = ClipTextEncoder
    else:
        state, cls = open_clip_state(model), OpenClipTextEncoder
    with torch.device("meta"):
        encoder = cls.from_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    encoder.load_state_dict(state, assign=True)
    return encoder


def token_ids() -> Tensor:
    ids = torch.randint(0, VOCABULARY - 2, (3, 77), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = VOCABULARY - 2
    for row, end in enumerate((5, 40, 76)):
        ids[row, end:] = EOS
    return ids


KINDS = pytest.mark.parametrize(("kind", "activation"), [("clip", "quick_gelu"), ("open_clip", "gelu")])


@KINDS
@pytest.mark.parametrize("skip", range(1, LAYERS + 1))
def test_every_layer_agrees_with_transformers(kind: str, activation: str, skip: int) -> None:
    model = reference(activation)
    encoder = build(kind, model)
    with torch.no_grad():
        expected = model(token_ids(), output_hidden_states=True)
        plain, _ = encoder(token_ids(), skip=skip, normalize=False, dtype=torch.float32)
        normalized, _ = encoder(token_ids(), skip=skip, dtype=torch.float32)
    torch.testing.assert_close(plain, expected.hidden_states[-skip], rtol=1e-4, atol=1e-4)
    norm = getattr(model, "text_model", model).final_layer_norm
    torch.testing.assert_close(normalized, norm(expected.hidden_states[-skip]), rtol=1e-4, atol=1e-4)


def test_pooled_vector_agrees_with_transformers() -> None:
    model = reference("gelu")
    encoder = build("open_clip", model)
    ids = token_ids()
    with torch.no_grad():
        _, pooled = encoder(ids, skip=2, pooled=True, dtype=torch.float32)
        padded_with_zero = ids.clone()
        for row, end in enumerate((5, 40, 76)):
            padded_with_zero[row, end + 1 :] = 0
        _, again = encoder(padded_with_zero, skip=2, pooled=True, dtype=torch.float32)
    torch.testing.assert_close(pooled, model(ids).text_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, again, rtol=1e-5, atol=1e-5)  # nothing after the end is seen


@KINDS
def test_layers_above_the_chosen_one_do_not_run(kind: str, activation: str) -> None:
    encoder = build(kind, reference(activation))
    run: list[int] = []
    for index, layer in enumerate(encoder.layer_list()):
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
    encoder(token_ids(), skip=3, dtype=torch.float32)
    assert run == [0, 1]
    run.clear()
    encoder(token_ids(), skip=3, pooled=True, dtype=torch.float32)
    assert run == [0, 1, 2, 3]


@KINDS
def test_half_precision_weights_compute_in_the_asked_precision(kind: str, activation: str) -> None:
    half = build(kind, reference(activation, dtype=torch.float16))
    full = build(kind, reference(activation, dtype=torch.float16).float())
    got, _ = half(token_ids(), dtype=torch.float32)
    expected, _ = full(token_ids(), dtype=torch.float32)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    torch.testing.assert_close(got, expected)


@KINDS
def test_checkpointing_changes_no_gradient(kind: str, activation: str) -> None:
    gradients = []
    for recompute in ("none", "selective", "full"):
        encoder = build(kind, reference(activation))
        encoder.gradient_checkpointing = recompute
        hidden, _ = encoder(token_ids(), skip=2, dtype=torch.float32)
        hidden.square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert gradients[0].keys() == other.keys()
        for name, gradient in gradients[0].items():
            assert torch.equal(other[name], gradient)


def test_heads_follow_the_width() -> None:
    for width, heads in ((32, 1), (64, 1), (768, 12), (1024, 16), (1280, 20)):
        shapes = {
            "embeddings.token_embedding.weight": (10, width),
            "embeddings.position_embedding.weight": (77, width),
            "encoder.layers.0.mlp.fc1.weight": (4 * width, width),
        }
        with torch.device("meta"):
            assert ClipTextEncoder.from_shapes(shapes).sizes.heads == heads


def test_skipping_more_layers_than_there_are_is_refused() -> None:
    encoder = build("clip", reference("quick_gelu"))
    with pytest.raises(ValueError, match=re.escape("skip must be 1 to 4, not 5")):
        encoder(token_ids(), skip=5, dtype=torch.float32)
