"""The tokenizer agrees with transformers' CLIPTokenizer, except where that one reads markup in user text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from loraloom.models.tokenizer import BOS, COMMA, EOS, VOCABULARY_SIZE, clip_tokenizer, huggingface_files

ODD_TEXTS = [
    "",
    "   \t\n ",
    "a photo of a cat",
    "A PHOTO of a Cat",
    "it's they'll we've I'm you're he'd don't 's ''s 're're",
    "1girl, solo, 2024-01-01, 1,000.50€",
    "masterpiece,best quality , (ultra-detailed:1.3),,, ,",
    "naïve café — “quoted” … ½ ² Ⅷ",
    "e\u0301 versus \u00e9",
    "ＦＵＬＬ ｗｉｄｔｈ",
    "İstanbul ıI ẞß ΣΑΣ ς",
    "日本語のテキスト 中文 한국어",
    "हिन्दी עברית العربية ไทย",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈!",
    "zero\u200bwidth\ufeff nbsp\u00a0tab\tideographic\u3000space",
    "back\\slash under_score <tag> {curly} [square] |pipe| ~^`",
    "!!!! ! !? ?!",
    "a" * 300,
    "\x00\x01\x7f\x80",
    "hello\r\nworld\u2028next",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in huggingface_files().items():
        (folder / name).write_text(content, encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def reference_ids(reference: CLIPTokenizer, text: str) -> list[int]:
    return list(reference(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_agrees_with_transformers(reference: CLIPTokenizer, text: str) -> None:
    assert clip_tokenizer().encode(text) == reference_ids(reference, text)


@settings(max_examples=300)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_agrees_on_random_text(reference: CLIPTokenizer, text: str) -> None:
    if "<|" not in text:
        assert clip_tokenizer().encode(text) == reference_ids(reference, text)


def test_known_ids() -> None:
    tokenizer = clip_tokenizer()
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode(",") == [COMMA]
    assert tokenizer.count("a photo of a cat") == 5
    assert tokenizer.backend.get_vocab_size() == VOCABULARY_SIZE
    assert (BOS, EOS) == (VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1)


def test_markup_in_text_stays_text() -> None:
    ids = clip_tokenizer().encode("a <|endoftext|> b <|startoftext|>")
    assert BOS not in ids
    assert EOS not in ids
    assert len(ids) > 8


def test_exclamation_marks_are_not_padding(tmp_path: Path) -> None:
    """With "!" as pad token, transformers still sees the id 256 of a lone "!"; id 0 is only ever padding or "!x"."""
    assert clip_tokenizer().encode("hi!") == [1883, 256]
    for name, content in huggingface_files("!").items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    reference = CLIPTokenizer.from_pretrained(tmp_path)
    assert reference.pad_token_id == 0
    padded = reference("a cat", padding="max_length", max_length=77).input_ids
    assert padded == [BOS, 320, 2368, EOS, *[0] * 73]


def test_places_point_into_the_original_text() -> None:
    text = "A  Photo,\tof CAFE\u0301s"
    words = [text[token.start : token.end] for token in clip_tokenizer().tokens(text)]
    assert words[:4] == ["A", "Photo", ",", "of"]
    assert "".join(words).replace(" ", "") == "APhoto,ofCAFE\u0301s"


def test_a_lone_surrogate_is_a_question_mark() -> None:
    assert clip_tokenizer().encode("a \ud800 b") == clip_tokenizer().encode("a ? b")


def test_vocabulary_file_lists_every_id_once() -> None:
    vocabulary = json.loads(huggingface_files()["vocab.json"])
    assert sorted(vocabulary.values()) == list(range(VOCABULARY_SIZE))


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, loraloom.models.tokenizer as t; t.clip_tokenizer(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
