"""EXIF's UserComment: every encoding that its prefix names, and those that programs write under a wrong name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from loraloom.formats.image_info import read_parameters
from loraloom.formats.user_comment import decode_text, decode_user_comment

TEXT = "naïve 猫 cat, ふわふわ\nSteps: 20, Sampler: Euler a"
ASCII = "a cat\nSteps: 20, Seed: 3"


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0\xff\xfe" + TEXT.encode("utf-16-le"),
        b"UNICODE\0\xfe\xff" + TEXT.encode("utf-16-be"),
        b"UNICODE\0\xef\xbb\xbf" + TEXT.encode(),
        b"UNICODE\0" + TEXT.encode(),
        b"Unicode\0" + TEXT.encode("utf-16-le") + b"\0\0",
        b"ASCII\0\0\0" + TEXT.encode(),
        b"ASCII\0\0\0\xef\xbb\xbf" + TEXT.encode(),
        b"\0" * 8 + TEXT.encode(),
        b"\0" * 8 + TEXT.encode("utf-16-le"),
        b" " * 8 + TEXT.encode(),
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        b"\xff\xfe" + TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
    ],
)
def test_every_form_is_the_same_text(comment: bytes) -> None:
    assert decode_user_comment(comment) == TEXT
    assert decode_user_comment(comment, "little") == decode_user_comment(comment, "big") == TEXT


def test_other_encodings() -> None:
    assert decode_user_comment(b"ASCII\0\0\0caf\xe9") == "café"
    assert decode_user_comment(b"JIS\0\0\0\0\0" + "猫, cat".encode("iso2022_jp")) == "猫, cat"
    assert decode_user_comment(b"JIS\0\0\0\0\0" + "猫, cat".encode("shift_jis")) == "猫, cat"
    assert decode_user_comment(b"UNICODE\0" + ASCII.encode("utf-16-le") + b"\x20") == ASCII  # cut within a character
    assert decode_user_comment(b"") == decode_user_comment(b"UNICODE\0") == decode_user_comment(b"\0" * 40) == ""


def test_the_tiff_header_decides_where_the_content_does_not() -> None:
    either = b"UNICODE\0\x4e\x4f"
    assert decode_user_comment(either, "big") == "乏"
    assert decode_user_comment(either, "little") == "低"
    kana = "ふわふわのねこ"
    for order in ("little", "big", None):
        assert decode_user_comment(b"UNICODE\0" + kana.encode("utf-16-le"), order) == kana
        assert decode_user_comment(b"UNICODE\0" + kana.encode("utf-16-be"), order) == kana


def test_latin_1_is_taken_for_utf_8_only_where_it_is() -> None:
    assert decode_text("naïve".encode()) == "naïve"
    assert decode_text("naïve".encode("latin-1")) == "naïve"


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=("Cc", "Cn")), min_size=2))
def test_western_text_survives_either_order(text: str) -> None:
    for name, encoding in (("big", "utf-16-be"), ("little", "utf-16-le")):
        assert decode_user_comment(b"UNICODE\0" + text.encode(encoding), name) == text


@given(st.binary(max_size=60))
def test_no_bytes_are_an_error(data: bytes) -> None:
    decode_user_comment(data)
    decode_user_comment(b"UNICODE\0" + data, "little")


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png", ".avif"])
@pytest.mark.parametrize("comment", [b"UNICODE\0\xff\xfe" + TEXT.encode("utf-16-le"), b"ASCII\0\0\0" + TEXT.encode()])
def test_images_of_every_kind(tmp_path: Path, suffix: str, comment: bytes) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (16, 8)).save(tmp_path / f"a{suffix}", exif=exif.tobytes())
    assert read_parameters(tmp_path / f"a{suffix}") == TEXT
