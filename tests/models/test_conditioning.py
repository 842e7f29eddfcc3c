"""Chunking, emphasis and batching of conditionings, against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from loraloom.models.conditioning import (
    BREAK,
    CHUNK_IDS,
    Chunk,
    Conditioning,
    Segment,
    TextEmbedding,
    apply_emphasis,
    measure,
    tokenise,
)
from loraloom.models.tokenizer import BOS, COMMA, EOS, clip_tokenizer

TOKENIZER = clip_tokenizer()
CAT, DOG = TOKENIZER.encode("cat")[0], TOKENIZER.encode("dog")[0]


def words(chunk: Chunk) -> list[int]:
    return list(chunk.ids[1 : chunk.ids.index(EOS)])


def test_one_short_chunk() -> None:
    (chunk,) = tokenise("a cat", TOKENIZER)
    assert chunk.ids == (BOS, 320, CAT, *[EOS] * 74)
    assert chunk.weights == (1.0,) * CHUNK_IDS
    assert not chunk.emphasised


@pytest.mark.parametrize("text", ["", "  \n", [], [Segment("")]])
def test_no_text_is_one_empty_chunk(text: str | list[Segment]) -> None:
    (chunk,) = tokenise(text, TOKENIZER)
    assert chunk.ids == (BOS, *[EOS] * 76)


@pytest.mark.parametrize(("count", "chunks"), [(74, 1), (75, 1), (76, 2), (150, 2), (151, 3), (300, 4)])
def test_chunks_of_75(count: int, chunks: int) -> None:
    made = tokenise("cat " * count, TOKENIZER)
    assert len(made) == chunks
    assert [word for chunk in made for word in words(chunk)] == [CAT] * count
    assert all(len(chunk.ids) == len(chunk.weights) == CHUNK_IDS for chunk in made)


def test_break_closes_a_chunk_and_the_word_in_a_caption_does_not() -> None:
    first, second = tokenise([Segment("cat"), BREAK, Segment("dog")], TOKENIZER)
    assert (words(first), words(second)) == ([CAT], [DOG])
    assert len(tokenise("cat BREAK dog", TOKENIZER)) == 1
    assert len(tokenise([Segment("cat"), BREAK], TOKENIZER)) == 1
    assert len(tokenise([BREAK, Segment("cat")], TOKENIZER)) == 2


def test_a_phrase_cut_by_the_end_of_a_chunk_moves_on_whole() -> None:
    text = "cat " * 69 + ", " + "dog " * 10  # 69 + comma + 10: the chunk is full after five dogs
    first, second = tokenise(text, TOKENIZER)
    assert words(first) == [CAT] * 69 + [COMMA]
    assert words(second) == [DOG] * 10
    first, second = tokenise(text, TOKENIZER, comma_backtrack=0)
    assert words(first) == [CAT] * 69 + [COMMA] + [DOG] * 5


@pytest.mark.parametrize(("before", "moved"), [(54, False), (55, True)])
def test_commas_further_back_than_the_limit_do_not_move_text(before: int, moved: bool) -> None:
    first, _ = tokenise("cat " * before + ", " + "dog " * 40, TOKENIZER, comma_backtrack=20)
    assert (DOG not in words(first)) == moved


def test_a_comma_that_does_not_fit_opens_the_next_chunk() -> None:
    first, second = tokenise("cat , " + "cat " * 73 + ", dog", TOKENIZER)
    assert len(words(first)) == 75
    assert words(second) == [COMMA, DOG]


def test_weights_follow_their_tokens() -> None:
    (chunk,) = tokenise([Segment("a"), Segment("cat", 1.3), Segment("dog", 0.5)], TOKENIZER)
    assert chunk.weights[:5] == (1.0, 1.0, 1.3, 0.5, 1.0)
    assert chunk.emphasised


def test_padding_replaces_only_what_follows_the_end() -> None:
    (chunk,) = tokenise("!cat", TOKENIZER)
    assert chunk.ids[1] == TOKENIZER.encode("!cat")[0]
    assert chunk.padded_with(0).ids == (*chunk.ids[: chunk.ids.index(EOS) + 1], *[0] * (76 - chunk.ids.index(EOS)))
    (full,) = tokenise("cat " * 75, TOKENIZER)
    assert full.padded_with(0) == full


def test_measure_counts_tokens_chunks_and_losses() -> None:
    assert measure("a cat", TOKENIZER) == measure("a cat", TOKENIZER, max_chunks=1)
    length = measure("cat " * 160, TOKENIZER, max_chunks=2)
    assert (length.tokens, length.chunks, length.dropped) == (160, 3, 10)


def test_emphasis_multiplies_and_keeps_the_mean() -> None:
    hidden = torch.rand(2, 77, 8) + 0.5
    weights = torch.ones(2, 77)
    weights[1, 3] = 1.5
    out = apply_emphasis(hidden, weights)
    assert torch.equal(out[0], hidden[0])
    multiplied = hidden[1].clone()
    multiplied[3] *= 1.5
    torch.testing.assert_close(out[1], multiplied * hidden[1].mean() / multiplied.mean())
    torch.testing.assert_close(out[1].mean(), hidden[1].mean())
    assert torch.equal(apply_emphasis(hidden[1:], weights[1:])[0], out[1])  # alone or in a batch


def test_stack_repeats_whole_contexts_so_attention_is_unchanged() -> None:
    short, long = (Conditioning(torch.randn(1, 77 * chunks, 16)) for chunks in (2, 3))
    both = Conditioning.stack([short, long])
    assert both.context.shape == (2, 77 * 6, 16)
    query = torch.randn(1, 5, 16)
    for index, single in enumerate((short, long)):
        alone = F.scaled_dot_product_attention(query, single.context, single.context)
        batched = F.scaled_dot_product_attention(query, both[index].context, both[index].context)
        torch.testing.assert_close(batched, alone)


def test_stack_index_and_move() -> None:
    items = [Conditioning(torch.randn(2, 77, 4), torch.randn(2, 3), torch.full((2, 6), 512.0)) for _ in range(2)]
    both = Conditioning.stack(items)
    assert len(both) == 4
    assert torch.equal(both[-1].context, items[1].context[1:])
    assert torch.equal(both[1:3].pooled, torch.cat([items[0].pooled[1:], items[1].pooled[:1]]))
    half = both.to(dtype=torch.float16)
    assert (half.context.dtype, half.pooled.dtype, half.sizes.dtype) == (torch.float16, torch.float16, torch.float32)
    with pytest.raises(ValueError, match="cannot share a batch"):
        Conditioning.stack([items[0], Conditioning(torch.randn(1, 77, 4))])


# --- embeddings


def embedding(name: str, length: int) -> TextEmbedding:
    return TextEmbedding(name, tuple(TOKENIZER.encode(name)), {"text_encoder": torch.zeros(length, 4)})


def test_an_embedding_takes_as_many_places_as_it_has_vectors() -> None:
    style = embedding("my style", 3)
    (chunk,) = tokenise([Segment("a "), Segment("my style, cat", 1.5)], TOKENIZER, embeddings=[style])
    assert chunk.embeddings == ((2, style),)
    assert chunk.length == 6
    assert chunk.weights[1:8] == (1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.0)
    assert chunk.ids[5:7] == tuple(TOKENIZER.encode(", cat"))


def test_the_longest_name_is_meant_and_parts_of_words_are_none() -> None:
    short, long = embedding("my", 1), embedding("my style", 1)
    (chunk,) = tokenise("my, my style, mystyle", TOKENIZER, embeddings=[short, long])
    assert [(place, item.name) for place, item in chunk.embeddings] == [(1, "my"), (3, "my style")]


def test_an_embedding_is_never_split() -> None:
    style = embedding("style", 10)
    first, second = tokenise("cat " * 70 + "style dog", TOKENIZER, embeddings=[style])
    assert first.length == 70
    assert first.embeddings == ()
    assert second.embeddings == ((1, style),)
    assert second.length == 11
    (only,) = tokenise("cat " * 65 + "style", TOKENIZER, embeddings=[style])
    assert only.embeddings == ((66, style),)


def test_an_embedding_moves_with_its_phrase() -> None:
    style = embedding("style", 4)
    first, second = tokenise("cat " * 68 + ", a style b c d e", TOKENIZER, embeddings=[style])
    assert first.length == 69
    assert second.embeddings == ((2, style),)


# --- emphasis in closed form


def test_each_emphasis_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, empty = torch.randn(2, 77, 8, generator=generator), torch.randn(1, 77, 8, generator=generator)
    weights = torch.ones(2, 77)
    weights[0, 3:6] = torch.tensor([1.5, 0.0, -1.0])
    multiplied = hidden * weights[:, :, None]
    torch.testing.assert_close(apply_emphasis(hidden, weights, "no_norm"), multiplied)
    restored = multiplied * (hidden.mean((1, 2)) / multiplied.mean((1, 2)))[:, None, None]
    torch.testing.assert_close(apply_emphasis(hidden, weights, "original"), restored, rtol=1e-4, atol=1e-5)
    moved = empty + weights[:, :, None] * (hidden - empty)
    comfy = apply_emphasis(hidden, weights, "comfy", empty)
    torch.testing.assert_close(comfy, moved)
    assert torch.equal(comfy[1], hidden[1])
    assert torch.equal(apply_emphasis(hidden, weights, "ignore"), hidden)
    with pytest.raises(ValueError, match="empty"):
        apply_emphasis(hidden, weights, "comfy")


def test_a_context_is_padded_with_its_last_vector() -> None:
    context = torch.arange(6.0).reshape(1, 3, 2)
    padded = Conditioning(context).padded(5).context
    assert padded[0].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
