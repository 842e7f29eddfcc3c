from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, model_validator

from loraloom.errors import FileFormatError, MissingFileError, SettingsError
from loraloom.setting_marks import Kohya
from loraloom.settings import Settings, apply_overrides, read_toml, setting_rows


class Inner(Settings):
    rank: Annotated[int, Kohya("network_dim"), Field(ge=1)] = 16
    """Rank of the factors."""
    mode: Literal["a", "b"] = "a"
    """A choice."""


class Outer(Settings):
    checkpoint: Path
    """A path."""
    size: tuple[int, int] | None = None
    """Two numbers."""
    name: str = "x"
    """A name."""
    inner: Inner = Inner()
    """A group."""


def test_overrides_are_typed_and_nested() -> None:
    settings = Outer.load(None, ["checkpoint=a b.ckpt", "inner.rank=4", "size=[3, 4]", "name='q=r'", "inner.mode=b"])
    assert settings.inner == Inner(rank=4, mode="b")
    assert settings.size == (3, 4)
    assert settings.checkpoint == Path("a b.ckpt")
    assert settings.name == "q=r"


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Outer.load(None, ["inner.rank=0", "inner.mode=c", "nmae=x", "inner.network_dim=3"])
    problems = "\n".join(caught.value.problems)
    assert "'checkpoint' is required" in problems
    assert "'inner.rank' = 0" in problems
    assert "'inner.mode' = 'c'" in problems
    assert "unknown setting 'nmae', did you mean 'name'?" in problems
    assert "'inner.network_dim' is called 'inner.rank' here" in problems
    assert len(caught.value.problems) == 5


class Fitting(Settings):
    inner: Inner = Inner()
    """A group."""
    sizes: tuple[int, ...] = ()
    """Several numbers."""
    word: str = ""
    """A word."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.inner.mode == "b" and not self.word:
            raise ValueError("mode b needs a word")
        return self


def test_settings_that_do_not_fit_are_reported_with_those_that_are_wrong() -> None:
    with pytest.raises(SettingsError) as caught:
        Fitting.load(None, ["inner.rank=0", "inner.mode=b", "sizes=[1, 'x']"])
    assert len(caught.value.problems) == 3 and "mode b needs a word" in caught.value.problems[-1]


def test_nothing_is_said_twice_of_a_wrong_value() -> None:
    with pytest.raises(SettingsError) as caught:
        Fitting.load(None, ["inner.mode=b", "word=3"])
    (problem,) = caught.value.problems
    assert "'word' = 3" in problem


@pytest.mark.parametrize("text", ["rank", "=3", ""])
def test_an_override_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(SettingsError, match="not key=value"):
        apply_overrides({}, [text])


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('checkpoint = "models/a.ckpt"\n[inner]\nrank = 2\n', encoding="utf-8")
    settings = Outer.load(tmp_path / "run.toml", ["name=n"])
    assert settings.checkpoint == tmp_path / "models" / "a.ckpt"
    assert settings.inner.rank == 2


def test_toml_round_trip(tmp_path: Path) -> None:
    settings = Outer(checkpoint=Path("/models/äöü 'quoted'.ckpt"), size=(1, 2), name='say "hi"\n', inner=Inner(rank=3))
    path = tmp_path / "settings.toml"
    path.write_text(settings.to_toml(), encoding="utf-8")
    assert Outer.load(path) == settings
    assert "# Rank of the factors." in settings.to_toml()


def test_the_template_names_every_setting() -> None:
    text = Outer.template()
    assert [row.path.rpartition(".")[2] in text for row in setting_rows(Outer)] == [True] * 5


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.toml"):
        read_toml(tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_text("a = = 3", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"bad\.toml is not valid TOML"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match=r"binary\.toml"):
        read_toml(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (f"inner.rank={'9' * 400}", "inner.rank = a whole number of 400 digits"),
        (f"inner.rank={10**30}", "whole numbers go up to 9223372036854775807"),
        (f"size=[3, {10**30}]", "whole numbers go up to"),
        ("inner={mode='c', rank=2}", "'inner.mode' = 'c'"),
        ("inner=[3, 4]", "'inner' = 3, 4: "),
        (f"size={'[' * 900}", "'size' = "),
    ],
)
def test_values_that_nobody_means_are_refused_in_words(override: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Outer.load(None, ["checkpoint=a.ckpt", override])
    assert problem in caught.value.problem
    assert "{" not in caught.value.problem


def test_a_value_with_a_line_end_is_text() -> None:
    assert Outer.load(None, ["checkpoint=a.ckpt", "name=3\nsize = [1, 2]"]).name == "3\nsize = [1, 2]"


def test_settings_that_do_not_go_together_are_told_without_their_values() -> None:
    class Pair(Settings):
        low: int = 0
        """A number."""
        high: int = 9
        """A larger one."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low >= self.high:
                raise ValueError("low must be below high")
            return self

    class Whole(Settings):
        pair: Pair = Pair()
        """Two numbers."""

    with pytest.raises(SettingsError) as caught:
        Whole.parse({"pair": {"low": 7, "high": 3}})
    assert caught.value.problems == ("settings: pair: low must be below high",)


class Measured(Settings):
    """Settings of several types, for what is said of a wrong value."""

    share: int | float | None = None
    """A number."""
    many: int | list[int | tuple[int, int]] = 1
    """One or several."""
    words: tuple[str, ...] = ()
    """Several words."""
    on: bool | int = False
    """A switch or a number."""


@pytest.mark.parametrize("override", ["share=true", "many=false"])
def test_true_is_no_number(override: str) -> None:
    """Python counts it as 1."""
    with pytest.raises(SettingsError, match="a number is needed, not true or false"):
        Measured.load(None, [override])
    assert Measured.load(None, ["on=true"]).on is True


def test_a_wrong_value_is_told_once_and_in_words() -> None:
    with pytest.raises(SettingsError) as caught:
        Measured.load(None, ["many=[x]", "words=film"])
    first, second = sorted(caught.value.problems)
    assert "'many.0' = 'x': " in first or "'many' = " in first
    assert second.endswith("'words' = 'film': a list is needed, such as [\"a\", \"b\"] or [1, 2]")
