"""Captions on their way to the model: weights, lengths, and encodings kept in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.control import Request
from loraloom.data.caption_operations import Moment
from loraloom.data.concepts import Concept
from loraloom.data.sample import Sample
from loraloom.data.settings import CaptionSettings
from loraloom.events import Event, Notice
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.conditioning import Segment
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.randomness import shuffled
from loraloom.training import captions
from loraloom.training.captions import CaptionEncoder, caption_text, needed_chunks, text_of
from loraloom.training.settings import TrainSettings

MakeSettings = Callable[..., TrainSettings]


@pytest.fixture
def model(checkpoints: Callable[[str], Path]) -> LoadedModel:
    return load_model(open_checkpoint(checkpoints("sd1")), device=torch.device("cpu"), compute=torch.float32)


def sample(text: str, **settings: object) -> Sample:
    concept = Concept("1_x", "x", Path("1_x"), 1)
    parsed = CaptionSettings.parse(settings)
    return Sample(Path("a"), "a", "a", "a", concept, text, (64, 64), (64, 64), lines=(text,), captions=parsed)


def test_brackets_are_weights_only_when_asked() -> None:
    assert text_of("a (b:1.3)", weighted=False) == "a (b:1.3)"
    assert text_of("a, b", weighted=True) == "a, b"
    assert text_of("a (b:1.3)", weighted=True) == (Segment("a ", 1.0), Segment("b", 1.3))
    assert text_of(r"a \(b\)", weighted=True) == (Segment("a (b)", 1.0),)
    assert caption_text(sample("[a]", weighted=True), Moment(0)) == (Segment("a", 1 / 1.1),)


def test_weighted_captions_are_encoded_with_their_weights(model: LoadedModel, make_settings: MakeSettings) -> None:
    for trained in (False, True):
        encode = CaptionEncoder(model, make_settings(), chunks=1, trained=trained)
        with torch.no_grad():
            plain, marked = encode(["a fox"]), encode([text_of("a (fox:1.5)", weighted=True)])
            both = encode(["a fox", text_of("a (fox:1.5)", weighted=True)])
        assert not torch.equal(plain.context, marked.context)
        assert torch.allclose(both.context[:1], plain.context, atol=1e-6)
        assert torch.allclose(both.context[1:], marked.context, atol=1e-6)


def test_each_caption_is_encoded_once(
    model: LoadedModel, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    original = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda texts, **more: (encoded.extend(texts), original(texts, **more))[1])
    encode = CaptionEncoder(model, make_settings(), chunks=1, trained=False)
    first = encode(["a", "b", "a"])
    assert encoded == ["a", "b"]
    assert torch.equal(encode(["b"]).context, first.context[1:2])
    assert encoded == ["a", "b"]
    encode(["c"], lambda: ["d", "a"])
    assert encoded == ["a", "b", "c", "d"]
    encode(["d"], lambda: pytest.fail("nothing is missing"))


@pytest.mark.parametrize("wish", [Request.PAUSE, Request.STOP])
def test_nothing_is_encoded_ahead_once_something_is_asked(
    wish: Request, model: LoadedModel, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    original = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda texts, **more: (encoded.extend(texts), original(texts, **more))[1])
    encode = CaptionEncoder(
        model,
        make_settings(),
        chunks=1,
        trained=False,
        control=lambda: wish if len(encoded) >= 4 else Request.GO,
    )
    first = encode(["a", "b"], lambda: ["c", "d", "e", "a"])
    assert encoded == ["a", "b", "c", "d"] and len(first.context) == 2
    encode(["f", "e"], lambda: ["g"])
    assert encoded[4:] == ["f", "e"], "what the step needs is encoded whatever is asked"


def test_memory_is_bounded_and_results_are_right_all_the_same(
    model: LoadedModel, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = model.encode_text(["a"]).context.nbytes
    monkeypatch.setattr(captions, "_MEMORY_BYTES", 2 * size)
    encode = CaptionEncoder(model, make_settings(), chunks=1, trained=False)
    texts = [f"caption {index}" for index in range(6)]
    found = encode(texts)
    for index, text in enumerate(texts):
        with torch.no_grad():
            assert torch.equal(found.context[index : index + 1], model.encode_text([text]).context)
    assert encode._known._bytes <= 2 * size


def test_what_is_on_disk_is_used_only_for_what_it_was_made_of(
    model: LoadedModel, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    original = model.encode_text

    def counting(texts: list[str], **more: object) -> object:
        nonlocal count
        count += len(texts)
        return original(texts, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "encode_text", counting)

    told: list[Event] = []

    def encoder(*overrides: str, chunks: int = 1) -> CaptionEncoder:
        folder = f"dataset.cache_folder='{tmp_path / 'cache'}'"
        settings = make_settings("dataset.cache_text_to_disk=true", folder, *overrides)
        return CaptionEncoder(model, settings, chunks=chunks, trained=False, listener=told.append)

    first = encoder()(["a fox", "b"])
    assert count == 2
    assert torch.equal(encoder()(["a fox", "b"]).context, first.context)
    assert count == 2
    encoder()(["a Fox"])
    assert count == 3
    encoder("clip_skip=2")(["b"])
    encoder(chunks=2)(["b"])
    assert count == 5
    encoder()([text_of("(b:1.2)", weighted=True)])
    assert count == 6
    name = next(name for name in model.checkpoint if "final_layer_norm.bias" in name)
    changed = {**{key: model.checkpoint[key] for key in model.checkpoint}, name: model.checkpoint[name] + 1}
    monkeypatch.setattr(type(model.checkpoint), "__getitem__", lambda self, key: changed[key])
    encoder()(["b"])
    assert count == 7
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert not told
    damaged = encoder()
    damaged(["b", "c"])
    damaged(["a fox"])
    assert count == 10
    assert [event.text for event in told if isinstance(event, Notice)] == [
        f"1 of the encoded captions in {tmp_path / 'cache' / 'text'} was damaged: it is encoded again"
    ]


def test_nothing_is_kept_on_disk_while_the_text_encoder_is_trained(
    model: LoadedModel, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings("dataset.cache_text_to_disk=true", f"dataset.cache_folder='{tmp_path / 'cache'}'")
    with torch.no_grad():
        CaptionEncoder(model, settings, chunks=1, trained=True)(["a"])
    assert not (tmp_path / "cache").exists()


def test_every_order_of_a_long_caption_fits_the_chunks_that_are_allowed(model: LoadedModel) -> None:
    tags = [("very " * (index % 17) + f"long tag {index}").strip() for index in range(24)]
    long = sample(", ".join(tags), shuffle=True)
    allowed = needed_chunks(long, model)
    used = [model.measure_text(", ".join(shuffled(tags, index))).chunks for index in range(200)]
    assert max(used) <= allowed
    assert needed_chunks(sample("a, b", shuffle=True), model) == 1
    plain = sample(", ".join(tags))
    assert needed_chunks(plain, model) == model.measure_text(plain.caption).chunks


def test_a_run_tells_the_model_what_the_preview_shows(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraloom.studio.datasets import preview_captions
    from loraloom.training.trainer import train

    settings = make_settings(
        "dataset.captions.shuffle=true",
        "dataset.captions.tag_dropout=0.3",
        "dataset.captions.trigger=sks",
        "adapter.text_encoder=false",
        "epochs=2",
        "seed=5",
    )
    told: set[str] = set()
    original = CaptionEncoder.__call__

    def listening(self: CaptionEncoder, texts: list[str], *more: object) -> object:
        told.update(texts)
        return original(self, texts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(CaptionEncoder, "__call__", listening)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    train(settings, tmp_path / "run")
    shown = set()
    for picture in preview_captions(settings.dataset, draws=4, seed=5).pictures:
        shown |= {text for epoch, text, _ in picture.told if epoch <= 2}
    assert told == shown
    assert len(told) > 3


def test_concepts_that_end_before_the_run_are_refused_at_once(make_settings: MakeSettings, tmp_path: Path) -> None:
    from loraloom.errors import SettingsError
    from loraloom.training.trainer import train

    folder = make_settings().dataset.folder / "2_red"
    settings = make_settings(f"dataset.concepts=[{{folder='{folder}', last_epoch=2}}]", "steps=5")
    (tmp_path / "run" / "weights").mkdir(parents=True)
    with pytest.raises(SettingsError, match="ends after 4 steps"):
        train(settings, tmp_path / "run")
