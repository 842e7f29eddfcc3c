"""Styles, and the order in which a prompt is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.errors import FileFormatError, LoraloomError, MissingFileError, PromptError
from loraloom.generation.prompts import PromptReader
from loraloom.generation.prompts.styles import Style, apply_styles, find_styles, read_styles
from loraloom.generation.settings import GenerateSettings

TABLE = 'name,prompt,negative_prompt\nfilm,"a film still of {prompt},\ngrain",cartoon\nbright,bright colours,\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_web_uis_table(tmp_path: Path, encoding: str, ending: str) -> None:
    path = tmp_path / "styles.csv"
    path.write_bytes((TABLE + "épée,ÿ\n").replace("\n", ending).encode(encoding))
    styles = read_styles(path)
    assert list(styles) == ["film", "bright", "épée"]
    assert styles["film"].prompt.split() == ["a", "film", "still", "of", "{prompt},", "grain"]
    assert styles["film"].negative_prompt == "cartoon"
    assert styles["épée"] == Style("épée", "ÿ", "")


def test_the_old_column(tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text("name,text\nfilm,grain\n", encoding="utf-8")
    assert read_styles(tmp_path / "styles.csv")["film"] == Style("film", "grain", "")


@pytest.mark.parametrize(
    "content",
    ["épée,1\nx,ÿ\n".encode("latin-1"), b"", b"\xff\xfe\x00", b"a;b;c\n1;2;3\n", b'name,prompt\nx,"' + b"y" * 200_000,
     b"\x89PNG\r\n\x1a\n\x00\x00"],
)  # fmt: skip
def test_tables_that_cannot_be_read_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "styles.csv").write_bytes(content)
    with pytest.raises(FileFormatError) as error:
        read_styles(tmp_path / "styles.csv")
    assert "styles.csv" in error.value.problem
    assert "sig" not in error.value.problem.lower()
    assert error.value.hint


def test_styles_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text(TABLE, encoding="utf-8")
    with pytest.raises(PromptError, match="did you mean 'film'"):
        find_styles(["flim"], [tmp_path / "styles.csv"])
    with pytest.raises(MissingFileError):
        find_styles(["film"], [tmp_path / "none.csv"])
    assert find_styles([], [tmp_path / "none.csv"]) == ()


def test_styles_go_around_or_behind() -> None:
    assert apply_styles("a cat", ["old {prompt}!", "sharp"]) == "old a cat!, sharp"
    assert apply_styles("", ["sharp"]) == "sharp"
    assert apply_styles("a", [""]) == "a"


def reader(tmp_path: Path, **changes: object) -> PromptReader:
    (tmp_path / "styles.csv").write_text(TABLE, encoding="utf-8")
    folders = {"style_files": [tmp_path / "styles.csv"], "wildcard_folders": [tmp_path]}
    return PromptReader(GenerateSettings.parse({**folders, **changes}))


def test_a_prompt_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "who.txt").write_text("a cat <lora:cat:0.5>\n", encoding="utf-8")
    prompt = "__who__ # mine\n{x|x}"
    read = reader(tmp_path, prompt=prompt, negative_prompt="dog<lora:y:1>", styles=["film", "bright"]).read(7)
    assert read.prompt == "a film still of a cat <lora:cat:0.5> \nx,\ngrain, bright colours"
    assert read.text == "a film still of a cat  \nx,\ngrain, bright colours"
    assert [tag.name for tag in read.loras] == ["cat"]
    assert read.negative_prompt == "dog<lora:y:1>, cartoon"
    assert read.negative_text == "dog, cartoon"
    assert len(read.ignored_loras) == 1


def test_reading_what_was_read_changes_nothing(tmp_path: Path) -> None:
    once = reader(tmp_path, prompt=r"{a|b|c} \#1 \{x|y\} {z} (w:1.2)", styles=["film"]).read(3)
    assert reader(tmp_path, prompt=once.prompt).read(99).prompt == once.prompt


def test_choices_can_be_switched_off(tmp_path: Path) -> None:
    assert reader(tmp_path, prompt="{a|b} __c__", dynamic_prompts=False).read(1).text == "{a|b} __c__"
    with pytest.raises(LoraloomError):
        reader(tmp_path, prompt="{a|b} __c__").read(1)
