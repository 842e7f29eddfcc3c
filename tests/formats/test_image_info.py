"""Infotext: the web UI's grammar, and what images of every kind keep of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loraloom.errors import MissingFileError, OutputError
from loraloom.formats.image_info import (
    Parameters,
    format_parameters,
    parse_parameters,
    read_parameters,
    save_image,
    size_of,
)
from work import growth

FIELDS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7.5, "Seed": 1, "Size": "512x768"}
ODD = 'naïve 猫 🦄 "quoted", back\\slash <lora:a b:0.5>\nsecond: line\ttab'


def test_the_text_is_the_web_uis() -> None:
    fields = {**FIELDS, "VAE": None, "Lora hashes": "a: 0123456789ab, b: ba9876543210", "Version": "loraloom-1"}
    assert format_parameters("a cat\non a mat", "dog", fields) == (
        "a cat\non a mat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1, Size: 512x768, "
        'Lora hashes: "a: 0123456789ab, b: ba9876543210", Version: loraloom-1'
    )
    assert "Negative prompt" not in format_parameters("a cat", "", FIELDS)


def test_a_web_ui_text_is_taken_apart() -> None:
    read = parse_parameters(
        "masterpiece, (cat:1.2)\nsitting\nNegative prompt: blurry,\nugly\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5, Lora hashes: "a: 0123, b: 4567", Note: "line\\nbreak", Version: v1.10.1\n'
    )
    assert read.prompt == "masterpiece, (cat:1.2)\nsitting"
    assert read.negative_prompt == "blurry,\nugly"
    assert read.fields["Lora hashes"] == "a: 0123, b: 4567"
    assert read.fields["Note"] == "line\nbreak"
    assert list(read.fields)[:3] == ["Steps", "Sampler", "Schedule type"]
    assert read.size == (512, 768)


def test_a_last_line_with_few_pairs_is_prompt() -> None:
    assert parse_parameters("a cat\nratio: 3, b: 4") == Parameters("a cat\nratio: 3, b: 4", "", {})
    assert parse_parameters("") == Parameters()


SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 3, Size: 512x768, Version: v1.6.0"


def test_what_follows_the_settings_is_no_negative_prompt() -> None:
    """The Dynamic Prompts extension writes its templates below the settings."""
    read = parse_parameters(
        f"a red cat\nNegative prompt: blurry\n{SETTINGS}\n\nTemplate: a {{red|blue}} cat, (x: y, z: 1)\nsecond line\n\n"
        "Negative Template: {blurry|ugly}"
    )
    assert (read.prompt, read.negative_prompt, read.rest) == ("a red cat", "blurry", "")
    assert read.fields["Template"] == "a {red|blue} cat, (x: y, z: 1)\nsecond line"
    assert read.fields["Negative Template"] == "{blurry|ugly}"
    assert read.fields["Version"] == "v1.6.0"
    assert read.size == (512, 768)


@pytest.mark.parametrize(
    ("behind", "fields", "rest"),
    [
        ("words of somebody", {}, "words of somebody"),
        ("\nADetailer model: face.pt", {"ADetailer model": "face.pt"}, ""),
        ("Model: toy, Clip skip: 2, VAE: a.pt", {"Model": "toy", "Clip skip": "2", "VAE": "a.pt"}, ""),
        ("see https://example.org/x\nNote: a\n  b", {"Note": "a\n  b"}, "see https://example.org/x"),
        ('Wildcard prompt: "one: two, three"', {"Wildcard prompt": "one: two, three"}, ""),
        ("Seed: 9", {}, "Seed: 9"),
    ],
)
def test_lines_behind_the_settings(behind: str, fields: dict[str, str], rest: str) -> None:
    read = parse_parameters(f"a cat\n{SETTINGS}\n{behind}")
    assert (read.prompt, read.negative_prompt, read.rest) == ("a cat", "", rest)
    assert fields.items() <= read.fields.items()
    assert read.fields["Seed"] == "3"  # the line of settings wins


def test_a_negative_prompt_below_the_settings_is_one() -> None:
    read = parse_parameters(f"a cat\n{SETTINGS}\nNegative prompt: dog,\nhorse")
    assert (read.prompt, read.negative_prompt) == ("a cat", "dog,\nhorse")
    read = parse_parameters(f"a cat\nnegative Prompt: dog\r\n{SETTINGS}\r\n")
    assert (read.prompt, read.negative_prompt, read.fields["Version"]) == ("a cat", "dog", "v1.6.0")


def test_a_setting_on_each_line() -> None:
    read = parse_parameters("a cat\nNegative prompt: dog\nSteps: 20\nSampler: Euler a\nSeed: 3\nSize: 64x72")
    assert (read.prompt, read.negative_prompt, read.size) == ("a cat", "dog", (64, 72))
    read = parse_parameters("a list\nSeed: the one of an apple\nSteps: 3\nand more")
    assert read.fields == {}


@pytest.mark.parametrize(
    ("pairs", "fields"),
    [
        ("CFG scale: 7,5, Seed: 1", {"CFG scale": "7,5", "Seed": "1"}),
        ("Eta: 0,67", {"Eta": "0,67"}),
        ('Civitai resources: [{"a":1,"b":[2,3]}], Seed: 1', {"Civitai resources": '[{"a":1,"b":[2,3]}]', "Seed": "1"}),
        ("Note: [a, b], Seed: 1", {"Note": "[a", "Seed": "1"}),
        ('Note: {"a": 1} and more, Seed: 1', {"Note": '{"a": 1} and more', "Seed": "1"}),
    ],
)
def test_values_with_commas(pairs: str, fields: dict[str, str]) -> None:
    read = parse_parameters(f"Steps: 20, Sampler: Euler, {pairs}")
    assert dict(read.fields) == {"Steps": "20", "Sampler": "Euler", **fields}


@pytest.mark.parametrize("text", ["512x768", " 512 x 768 ", "512×768", "512*768", "512X768"])
def test_sizes(text: str) -> None:
    assert size_of(text) == (512, 768)
    assert size_of(f"{text}x2") is None


PROMPTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=80).filter(
    lambda text: "Negative prompt:" not in text
)


@given(PROMPTS, PROMPTS, st.dictionaries(st.sampled_from(["Model", "VAE", "Note x"]), PROMPTS))
def test_texts_survive(prompt: str, negative: str, extra: dict[str, str]) -> None:
    fields = {"Steps": "20", "Seed": "1", "Size": "8x8", **{key: value.strip() for key, value in extra.items()}}
    fields = {key: value for key, value in fields.items() if value != key}
    read = parse_parameters(format_parameters(prompt, negative, fields))
    assert (read.prompt, read.negative_prompt, read.fields) == (prompt, negative, fields)


@given(st.text(max_size=300))
def test_any_text_can_be_parsed(text: str) -> None:
    parse_parameters(text)


@pytest.mark.parametrize("part", ["a", "a: ", '"', 'a:"', ", "])
def test_the_work_of_parsing_grows_with_the_text_and_no_faster(part: str) -> None:
    assert growth(parse_parameters, part * 20_000, part * 7 * 20_000) < 30  # 49 where it grows with the square


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
@pytest.mark.parametrize("prompt", ["a cat", ODD, "x" * 20_000])
def test_images_keep_the_parameters(tmp_path: Path, suffix: str, prompt: str) -> None:
    text = format_parameters(prompt, "dog", FIELDS)
    path = tmp_path / f"image{suffix}"
    save_image(Image.new("RGB", (16, 8), (200, 30, 30)), path, text)
    assert read_parameters(path) == text
    with Image.open(path) as image:
        assert image.size == (16, 8)
        assert (
            max(
                abs(own - other)
                for own, other in zip(image.convert("RGB").getpixel((3, 3)), (200, 30, 30), strict=True)
            )
            < 8
        )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_png_uses_the_chunk_other_programs_read(tmp_path: Path) -> None:
    save_image(Image.new("RGB", (8, 8)), tmp_path / "plain.png", "café")
    save_image(Image.new("RGB", (8, 8)), tmp_path / "wide.png", "猫")
    assert b"tEXtparameters\0" in (tmp_path / "plain.png").read_bytes()
    assert b"iTXtparameters\0" in (tmp_path / "wide.png").read_bytes()


def test_jpeg_comment_is_big_endian_unicode_as_the_web_ui_writes_it(tmp_path: Path) -> None:
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", "héllo")
    assert b"UNICODE\0" + "héllo".encode("utf-16-be") in (tmp_path / "a.jpg").read_bytes()


def test_lone_surrogates_and_nul_do_not_fail(tmp_path: Path) -> None:
    for suffix in (".png", ".webp"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / f"a{suffix}", "bad \udcff text")
        assert read_parameters(tmp_path / f"a{suffix}") == "bad ? text"


def test_foreign_and_damaged_files_have_no_parameters(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.jpg")
    for path in sorted(tmp_path.iterdir()):
        assert read_parameters(path) is None
    with pytest.raises(MissingFileError):
        read_parameters(tmp_path / "absent.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_mutated_images_never_fail(tmp_path_factory: pytest.TempPathFactory, position: int, patch: bytes) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    for suffix in (".png", ".jpg", ".webp"):
        path = folder / f"a{suffix}"
        save_image(Image.new("RGB", (8, 8)), path, format_parameters("a cat", "", FIELDS))
        data = bytearray(path.read_bytes())
        data[position : position + len(patch)] = patch
        path.write_bytes(bytes(data))
        read_parameters(path)


def test_unknown_suffixes_and_oversized_comments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written as \.bmp"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.bmp", "x")
    with pytest.raises(OutputError, match="too long"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", "x" * 40_000)
    assert list(tmp_path.iterdir()) == []


def test_a_line_behind_that_contradicts_the_settings_is_kept_apart() -> None:
    settings = "Steps: 7, Sampler: Euler a, CFG scale: 7.5, Seed: 5"
    found = parse_parameters(f"a cat\n{settings}\nSteps: the band played on, really\nSeed: 5")
    assert (found.fields["Steps"], found.fields["Seed"]) == ("7", "5")
    assert found.rest.startswith("Steps: the band played on")
