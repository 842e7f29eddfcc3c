"""Token counts: of every text that a prompt is, with its chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from loraloom.cli.main import app
from loraloom.errors import MissingFileError
from loraloom.formats.tensors import write_tensors
from loraloom.generation.settings import GenerateSettings
from loraloom.models.tokenizer import clip_tokenizer
from loraloom.studio.tokens import count_tokens
from toys import toy_tensors


def counts(prompt: str, **changes: object) -> list[tuple[int, int]]:
    settings = GenerateSettings.parse({"prompt": prompt, "embedding_folders": [], **changes})
    return [(text.used, text.room) for text in count_tokens("sd1", settings) if not text.is_negative]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [(0, 75)]),
        ("a (red:1.2) cat", [(3, 75)]),
        ("cat " * 75, [(75, 75)]),
        ("cat " * 76, [(76, 150)]),
        ("a BREAK b", [(76, 150)]),
        ("a BREAK", [(75, 75)]),
        ("a cat AND b", [(2, 75), (1, 75)]),
        ("[a b c:d:0.5] <lora:x:1> # no", [(3, 75), (1, 75)]),
    ],
)
def test_counts(prompt: str, expected: list[tuple[int, int]]) -> None:
    assert counts(prompt) == expected


def test_the_comma_setting_moves_the_cut() -> None:
    prompt = "cat " * 70 + ", " + "dog " * 10
    assert counts(prompt) == [(75 + 10, 150)]
    assert counts(prompt, comma_backtrack=0) == [(75 + 6, 150)]


def test_chunks_say_what_the_encoders_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "mystyle.pt", {"string_to_param.*": torch.zeros(5, 768)})
    settings = GenerateSettings.parse({"prompt": "Été, (MyStyle:1.2) 猫 BREAK it's", "embedding_folders": [tmp_path]})
    found = count_tokens("sd1", settings)[0]
    assert found.chunks == ("été , <mystyle> 猫", "it 's")


def test_any_text_is_decoded() -> None:
    tokenizer = clip_tokenizer()
    for text in ("hello world", "naïve café", "猫と犬 🎉", "don't", "x<|endoftext|>y"):
        again = tokenizer.decode(tokenizer.encode(text))
        assert again.replace(" ", "") == text.lower().replace(" ", "")


def test_a_checkpoint_tells_which_embeddings_fit(tmp_path: Path) -> None:
    write_tensors(tmp_path / "toy.safetensors", toy_tensors("sd1"))
    write_tensors(tmp_path / "style.pt", {"string_to_param.*": torch.zeros(5, 7)})
    events: list[object] = []
    settings = GenerateSettings.parse({"prompt": "style", "embedding_folders": [tmp_path]})
    (found, _) = count_tokens(str(tmp_path / "toy.safetensors"), settings, listener=events.append)
    assert found.used == 1
    assert len(events) == 1
    with pytest.raises(MissingFileError, match="did you mean 'sdxl'"):
        count_tokens("sdlx", settings)


def test_the_command(tmp_path: Path) -> None:
    line = ["tokens", "sd1", "[a cat:b:0.5] AND c :0.5", "steps=10", "-n", "bad", f"embedding_folders=['{tmp_path}']"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "2/75 tokens",
        "part 1 (weight 1), steps 1 to 5: 2/75",
        "  1: a cat",
        "part 1 (weight 1), steps 6 to 10: 1/75",
        "  1: b",
        "part 2 (weight 0.5): 1/75",
        "  1: c",
        "negative: 1/75",
        "  1: bad",
    ]
