"""CLIP's byte-pair tokenizer, built from the merges that come with the package. Imports no torch.

Every family uses the same 49,408 ids; the encoders differ only in the id they pad with (see conditioning.py).
Text is cleaned as CLIP does (Radford et al., arXiv:2103.00020, and its published code): Unicode NFC, white space
collapsed, lower case. There are no special tokens in text: ``<|endoftext|>`` in a caption is eleven characters.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

__all__ = ["BOS", "COMMA", "EOS", "VOCABULARY_SIZE", "Token", "Tokenizer", "clip_tokenizer", "huggingface_files"]

BOS = 49406
"""``<|startoftext|>``"""
EOS = 49407
"""``<|endoftext|>``"""
COMMA = 267
"""``,`` as a word of its own."""
VOCABULARY_SIZE = 49408
_WORD_END = "</w>"
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Token(NamedTuple):
    """One token and where it stands: ``text[start:end]``, in characters of the text as given."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids, without begin, end or padding."""

    backend: tokenizers.Tokenizer

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``; nothing for empty or blank text."""
        return [token.id for token in self.tokens(text)]

    def count(self, text: str) -> int:
        """How many tokens ``text`` has, of the 75 that fit a chunk."""
        return len(self.encode(text))

    def tokens(self, text: str) -> list[Token]:
        """The ids of ``text`` with their places in it."""
        encodable = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates become "?", one for one
        encoding = self.backend.encode(encodable, add_special_tokens=False)
        return [Token(id, start, end) for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids as the encoders read it: lower case, a blank after every word."""
        symbols = "".join(self.backend.id_to_token(id) or "" for id in ids).replace(_WORD_END, "\0")
        values = {symbol: byte for byte, symbol in zip(_byte_order(), _byte_symbols(), strict=True)}
        raw = bytes(values.get(symbol, ord(" ")) for symbol in symbols)
        return raw.decode("utf-8", "replace").rstrip(" ")


@cache
def clip_tokenizer() -> Tokenizer:
    """The tokenizer of every Stable Diffusion family (built once, in less than a tenth of a second)."""
    merges = _merges()
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=_vocabulary(merges),
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=_WORD_END,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Tokenizer(backend)


def huggingface_files(pad_token: str = "<|endoftext|>") -> dict[str, str]:
    """File name to content of a tokenizer folder as transformers and diffusers read it.

    ``pad_token`` is ``<|endoftext|>`` for CLIP-L and ``!`` (id 0) for the OpenCLIP encoders.
    """
    merges = _merges()
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = pad_token
    config = {
        "add_prefix_space": False,
        **special,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    return {
        "vocab.json": json.dumps(_vocabulary(merges), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }


def _merges() -> list[tuple[str, str]]:
    packed = (files("loraloom.models") / "clip_bpe_merges.txt.gz").read_bytes()
    pairs = (line.split(" ") for line in gzip.decompress(packed).decode("utf-8").splitlines() if line)
    return [(left, right) for left, right in pairs]


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + _WORD_END for symbol in symbols), *(left + right for left, right in merges)]
    return {word: id for id, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def _byte_order() -> list[int]:
    """The bytes in vocabulary order: visible Latin-1 first, then the other 68."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*visible, *(byte for byte in range(256) if byte not in visible)]


def _byte_symbols() -> list[str]:
    """One visible character for each byte, in vocabulary order; those that cannot be seen are moved beyond Latin-1."""
    visible = 256 - 68
    return [chr(byte) if index < visible else chr(256 + index - visible) for index, byte in enumerate(_byte_order())]
