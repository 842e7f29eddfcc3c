"""Choices drawn anew for every image: ``{red|blue}``, ``{2$$a|b|c}``, ``{1-2$$ and $$a|b}``, ``__name__`` from a file.

Every draw is a function of the image's seed and of the place in the prompt, so an image can be made again and one
choice does not depend on another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from loraloom.errors import PromptError, nearest
from loraloom.randomness import seed_of, shuffled, uniform
from loraloom.reading import read_text

__all__ = ["WildcardFolders", "has_choices", "make_choices"]

_TOKEN = re.compile(
    r"""
      \\.
    | __ (?P<name> [^\W_] (?: [\w\-./*\ ]*? (?: [^\W_] | \* ) )?? ) __ (?!_)
    | (?P<mark> [{}|] )
    | \$\$
    | [^\\_{}|$]+
    | .
    """,
    re.DOTALL | re.VERBOSE,
)
_COUNT = re.compile(r"\s*(?:(\d{1,4})|(\d{0,4})-(\d{0,4}))\s*")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_DEEPEST = 32
_MOST_DRAWS = 10_000
_MOST_CHARACTERS = 1_000_000
_MOST_BYTES = 64 * 2**20


def has_choices(prompt: str) -> bool:
    """Whether anything in the prompt may be drawn (a quick look: True can be wrong, False cannot)."""
    return "{" in prompt or "__" in prompt


@dataclass
class WildcardFolders:
    """Lists of choices: text files found by name in folders and their subfolders, read once."""

    folders: Sequence[Path]
    _known: dict[str, Path] | None = None
    _lines: dict[Path, tuple[str, ...]] = field(default_factory=dict)

    def lines(self, name: str) -> tuple[str, ...]:
        """The choices that ``__name__`` means: a file's name or its path in the folder; ``*`` joins several files.

        One choice a line, blank lines and those that begin with ``#`` left out. Raises PromptError when there is no
        such file or nothing in it, FileFormatError when it is no UTF-8 text.
        """
        known = self._files()
        wanted = name.strip().casefold()
        if "*" in wanted:
            found = sorted({path for key, path in known.items() if fnmatchcase(key, wanted)})
        else:
            found = [known[wanted]] if wanted in known else []

        if not found:
            close = nearest(wanted, known)
            searched = ", ".join(str(folder) for folder in self.folders) or "no folder"
            suggestion = f"did you mean __{close[0]}__? " if close else ""
            raise PromptError(
                f"there is no wildcard file {name + '.txt'!r} (searched: {searched})",
                f"{suggestion}set wildcard_folders, or dynamic_prompts=false if __{name}__ is meant as text",
            )

        # An empty choice would change the prompt without a word.
        lines = tuple(line for path in found for line in self._read(path))
        if not lines:
            raise PromptError(f"the wildcard file of __{name}__ is empty: {found[0]}", "write one choice a line")
        return lines

    def _files(self) -> dict[str, Path]:
        """Every file under its path in the folder and under its own name; earlier folders and shorter paths win."""
        if self._known is None:
            self._known = {}
            for folder in self.folders:
                root = folder.expanduser()
                paths = sorted(root.rglob("*.txt"), key=lambda path: (len(path.parts), path.as_posix()))
                for path in paths:
                    inside = path.relative_to(root).with_suffix("").as_posix().casefold()
                    self._known.setdefault(inside, path)
                    self._known.setdefault(path.stem.casefold(), path)
        return self._known

    def _read(self, path: Path) -> tuple[str, ...]:
        if path not in self._lines:
            stripped = (line.strip() for line in read_text(path, limit=_MOST_BYTES).split("\n"))
            self._lines[path] = tuple(line for line in stripped if line and not line.startswith("#"))
        return self._lines[path]


@dataclass(frozen=True)
class _Wildcard:
    name: str


@dataclass
class _Group:
    """``{...}`` while it is read: its options, each a list of texts, wildcards and groups."""

    options: list[list[str | _Wildcard | _Group]] = field(default_factory=lambda: [[]])


_Option = list[str | _Wildcard | _Group]


def make_choices(prompt: str, folders: WildcardFolders, *key: int | str) -> str:
    r"""The prompt with every choice made, by the random numbers of ``key`` (the image's seed, and which prompt it is).

    ``{a|b}`` one of them, ``{0.3::a|b}`` with weights, ``{2$$a|b|c}`` two different ones joined by a comma,
    ``{1-2$$ and $$a|b|c}`` one or two joined by what stands between the dollars; a missing end of the range is 0 or
    all. ``{2$$__colour__}`` takes two lines of the file. Choices hold choices. Braces without ``|`` or ``$$``, braces
    that do not match and ``\{`` are text. Raises PromptError (a file that is not there, files that name each other).
    """
    return _Draw(folders, key).text(prompt, (), 0) if has_choices(prompt) else prompt


class _Draw:
    """All draws of one prompt."""

    def __init__(self, folders: WildcardFolders, key: tuple[int | str, ...]) -> None:
        self._folders = folders
        self._key = key
        self._draws = 0

    def text(self, prompt: str, path: tuple[int, ...], depth: int) -> str:
        """``path``: where the text comes from, which choices are made by."""
        return self._join(_parse(prompt), path, depth)

    def _join(self, option: _Option, path: tuple[int, ...], depth: int) -> str:
        made = "".join(self._item(item, (*path, index), depth) for index, item in enumerate(option))
        if len(made) > _MOST_CHARACTERS:
            raise PromptError("the choices of a prompt make more than a million characters", "use fewer wildcards")
        return made

    def _item(self, item: str | _Wildcard | _Group, path: tuple[int, ...], depth: int) -> str:
        if isinstance(item, str):
            return item
        self._draws += 1
        if depth > _DEEPEST or self._draws > _MOST_DRAWS:
            raise PromptError(
                "the choices of a prompt do not come to an end", "wildcard files must not name each other in a circle"
            )
        if isinstance(item, _Wildcard):
            lines = self._folders.lines(item.name)
            chosen = seed_of(*self._key, "wildcard", *path) % len(lines)
            return self.text(lines[chosen], (*path, chosen), depth + 1)
        return self._group(item, path, depth)

    def _group(self, group: _Group, path: tuple[int, ...], depth: int) -> str:
        options = group.options
        count, separator, first = _head(options[0])
        if count is None and len(options) == 1:
            return "{" + self._join(options[0], path, depth) + "}"
        options = [first, *options[1:]]
        if len(options) == 1 and len(first) == 1 and isinstance(first[0], _Wildcard):
            options = [_parse(line) for line in self._folders.lines(first[0].name)]
        least, most = (1, 1) if count is None else count
        most = len(options) if most is None else min(most, len(options))
        least = min(least, most)
        wanted = least + seed_of(*self._key, "count", *path) % (most - least + 1)
        chosen = self._chosen(options, wanted, path)
        return separator.join(self._join(options[index], (*path, index), depth + 1) for index in chosen)

    def _chosen(self, options: list[_Option], wanted: int, path: tuple[int, ...]) -> list[int]:
        """Indices of ``wanted`` different options in the order drawn. The weights are taken off the options."""
        weights = []
        for index, option in enumerate(options):
            match = _WEIGHT.match(option[0]) if option and isinstance(option[0], str) else None
            weights.append(float(match[1]) if match else 1.0)
            if match and isinstance(option[0], str):
                options[index] = [option[0][match.end() :], *option[1:]]

        if len(set(weights)) == 1:
            return shuffled(range(len(options)), *self._key, "options", *path)[:wanted]

        left = [index for index, weight in enumerate(weights) if weight > 0]
        chosen: list[int] = []
        while left and len(chosen) < wanted:
            place = uniform(*self._key, "option", len(chosen), *path) * sum(weights[index] for index in left)
            for index in left:  # the last one is kept where rounding leaves a rest
                place -= weights[index]
                if place < 0:
                    break
            chosen.append(index)
            left.remove(index)
        return chosen


def _head(option: _Option) -> tuple[tuple[int, int | None] | None, str, _Option]:
    """``2-3$$ and $$`` at the start of a group: the range, what joins the choices, and the rest of the first option."""
    if "$$" not in option:
        return None, "", option
    place = option.index("$$")
    match = _COUNT.fullmatch("".join(item for item in option[:place] if isinstance(item, str)))
    if match is None or any(not isinstance(item, str) for item in option[:place]) or not any(match.groups()):
        return None, "", option

    exact, least, most = match.groups()
    count = (int(exact), int(exact)) if exact else (int(least or 0), int(most) if most else None)
    rest = option[place + 1 :]

    # What joins the choices is plain text up to a second $$; without that they are joined by commas.
    texts: list[str] = []
    for index, item in enumerate(rest):
        if item == "$$":
            return count, "".join(texts), _joined(rest[index + 1 :])
        if not isinstance(item, str):
            break
        texts.append(item)
    return count, ", ", _joined(rest)


def _joined(option: _Option) -> _Option:
    """Neighbouring texts as one, so that a weight is found in one piece."""
    joined: _Option = []
    for item in option:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    return joined


def _parse(prompt: str) -> _Option:
    """Texts, wildcards and groups; braces that do not match are text, and so are those nested too deeply."""
    stack: list[_Group] = [_Group()]
    for match in _TOKEN.finditer(prompt):
        item: str | _Wildcard = _Wildcard(match["name"]) if match["name"] else match.group(0)
        mark = match["mark"]

        current = stack[-1].options
        if mark == "{" and len(stack) <= _DEEPEST:
            stack.append(_Group())
        elif mark == "|" and len(stack) > 1:
            current.append([])
        elif mark == "}" and len(stack) > 1:
            group = stack.pop()
            # The $$ has to stay a piece of its own, since the head of the group is read by it later.
            group.options = [option if "$$" in option else _joined(option) for option in group.options]
            stack[-1].options[-1].append(group)
        else:
            current[-1].append(item)

    # Braces that are never closed are text, with all that stands in them.
    while len(stack) > 1:
        stack[-2].options[-1].extend(_as_text(stack[-1]))
        stack.pop()
    return stack[0].options[0]


def _as_text(group: _Group) -> Iterator[str | _Wildcard | _Group]:
    """A brace that was never closed."""
    yield "{"
    for index, option in enumerate(group.options):
        if index:
            yield "|"
        yield from option
