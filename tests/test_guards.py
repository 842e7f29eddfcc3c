"""Guards that only get tighter: what is repeated, what is long, what docstrings owe. ruff keeps the others.

Each reads the sources as text. A number may fall and a list may shrink: lower the one, shorten the other, never the
other way round. The functions have tests of their own on small sources, so that it is known that they find something.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import loraloom
from loraloom import errors

ROOT = Path(loraloom.__file__).parent

RUN = 6
"""Lines that make a repetition."""
MOST_REPETITIONS = 82
"""Pairs of places in the package that share :data:`RUN` lines or more."""
LONGEST_FILE = 500
LONG_FILES = {
    "formats/pickles.py": 793,
    "formats/torch_file.py": 610,
}
"""Files beyond that, each with the most lines it may have."""
MANY_BRANCHES = 10


def sources() -> dict[str, str]:
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}


def below_the_doors() -> dict[str, str]:
    """Without the commands, whose docstrings are what ``--help`` shows."""
    return {name: source for name, source in sources().items() if not name.startswith("cli/")}


# -- repetitions -----------------------------------------------------------------------------------------------------


def telling_lines(source: str) -> list[tuple[int, str]]:
    """Lines that say something, with their numbers: no imports, no remarks, no lone brackets; blanks folded."""
    lines = [(number, " ".join(line.split())) for number, line in enumerate(source.splitlines(), 1)]
    return [
        (number, line)
        for number, line in lines
        if len(re.findall(r"\w", line)) > 2 and not line.startswith(("#", "import ", "from "))
    ]


def repetitions(files: Mapping[str, str], length: int) -> list[str]:
    """Pairs of places with the same ``length`` lines or more, the longest first."""
    lines = {name: telling_lines(source) for name, source in files.items()}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, found in lines.items():
        texts = [text for _, text in found]
        for start in range(len(texts) - length + 1):
            places[tuple(texts[start : start + length])].append((name, start))
    # Two places whose next lines are the same too are one repetition: they lie at the same distance.
    starts: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for found_at in places.values():
        for index, (name, start) in enumerate(found_at):
            for other, there in found_at[index + 1 :]:
                if name != other or there - start >= length:
                    starts[name, other, there - start].add(start)
    runs = []
    for (name, other, distance), begun in starts.items():
        for start in begun:
            if start - 1 in begun:
                continue
            end = next(number for number in range(start, start + len(begun) + 1) if number not in begun)
            here, there = lines[name][start][0], lines[other][start + distance][0]
            runs.append((end - start + length - 1, f"{name}:{here} ~ {other}:{there}"))
    return [f"{count} lines: {place}" for count, place in sorted(runs, key=lambda run: (-run[0], run[1]))]


def test_nothing_more_is_written_twice() -> None:
    found = repetitions(sources(), RUN)
    assert len(found) <= MOST_REPETITIONS, "\n".join(["what is new here?", *found])


def test_repetitions_are_found() -> None:
    block = "".join(f"    value_{number} = take({number})\n" for number in range(6))
    one = f"import os\ndef f():\n{block}    return 1\n"
    two = "def g():\n" + block.replace("\n", "\n\n    # why\n", 1) + "    return 2\n"
    assert repetitions({"a.py": one, "b.py": two}, 6) == ["6 lines: a.py:3 ~ b.py:2"]
    assert repetitions({"a.py": one + two}, 6) == ["6 lines: a.py:3 ~ a.py:11"]
    assert repetitions({"a.py": one, "b.py": two.replace("value_3", "other")}, 6) == []
    assert len(repetitions({"a.py": one, "b.py": two, "c.py": two}, 6)) == 3
    assert repetitions({"b.py": two, "c.py": two}, 6) == ["8 lines: b.py:1 ~ c.py:1"]


# -- length ----------------------------------------------------------------------------------------------------------


def too_long(files: Mapping[str, str], allowed: Mapping[str, int]) -> list[str]:
    """Files with more lines than they may have, and entries of the list that could be lower."""
    lengths = {name: len(source.splitlines()) for name, source in files.items()}
    wrong = [
        f"{name} has {length} lines, {allowed.get(name, LONGEST_FILE)} are allowed"
        for name, length in lengths.items()
        if length > allowed.get(name, LONGEST_FILE)
    ]
    return wrong + [
        f"{name} is short enough: take it from the list" for name in allowed if lengths.get(name, 0) <= LONGEST_FILE
    ]


def test_files_get_no_longer() -> None:
    assert too_long(sources(), LONG_FILES) == []


def test_long_files_are_found() -> None:
    files = {"a.py": "x\n" * 501, "b.py": "x\n" * 500, "c.py": "x\n" * 620}
    assert too_long(files, {"c.py": 619}) == [
        "a.py has 501 lines, 500 are allowed",
        "c.py has 620 lines, 619 are allowed",
    ]
    assert too_long({"b.py": files["b.py"]}, {"b.py": 510}) == ["b.py is short enough: take it from the list"]


# -- docstrings ------------------------------------------------------------------------------------------------------

_SIZE = r"(?:\.\.\.|\w+(?: ?[*+/-] ?\w+)*)"
_SHAPE = re.compile(rf"\({_SIZE},(?: {_SIZE}(?:, {_SIZE})*)?\)|\([A-Z]\)|\b(?:shapes?|shaped|scalars?|elements?)\b")
"""``(B, C, h, w)``, ``(steps + 1,)``, or a word for it."""
_ERRORS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}


def public_functions(source: str) -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Described functions and methods without an underscore in their path, each with what its docstring says.

    What the docstrings of the module and of its class say counts for each.
    """

    def inside(body: list[ast.stmt], path: str, above: str) -> Iterator[tuple[str, ast.FunctionDef, str]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from inside(node.body, f"{path}{node.name}.", f"{above}\n{ast.get_docstring(node)}")
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                own = ast.get_docstring(node)
                if own:
                    yield f"{path}{node.name}", node, f"{own}\n{above}"

    tree = ast.parse(source)
    yield from inside(tree.body, "", ast.get_docstring(tree) or "")


def takes_tensors(function: ast.FunctionDef) -> bool:
    """Whether an argument is a tensor or a sequence of them; a table of named ones has no shape to speak of."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    said = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation is not None]
    plain = r"(?:(?:torch\.)?Tensor(?: \| None)?)"
    return any(
        re.fullmatch(rf"{plain}|(?:list|tuple|Sequence|Iterable)\[{plain}(?:, .*)?\](?: \| None)?", text)
        for text in said
    )


def errors_raised(function: ast.FunctionDef) -> set[str]:
    """The package's errors that stand behind a ``raise`` in the function's own body."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found |= {node.exc.func.id} & set(_ERRORS)
        waiting += ast.iter_child_nodes(node)
    return found


def without_a_shape(source: str) -> list[str]:
    """Public functions that take tensors and say no shape."""
    return [name for name, node, said in public_functions(source) if takes_tensors(node) and not _SHAPE.search(said)]


def without_their_error(source: str) -> list[str]:
    """Public functions that raise an error of the package and name neither it nor one that it is a kind of."""

    def named(error: str, said: str) -> bool:
        kinds = [kind.__name__ for kind in _ERRORS[error].__mro__ if kind.__name__ in _ERRORS]
        return any(re.search(rf"\b{kind}\b", said) for kind in kinds)

    return [
        name
        for name, node, said in public_functions(source)
        if not all(named(error, said) for error in errors_raised(node))
    ]


def test_public_functions_that_take_tensors_give_shapes() -> None:
    found = {f"{name}: {function}" for name, source in sources().items() for function in without_a_shape(source)}
    assert found == set()


def test_public_functions_that_raise_name_the_error() -> None:
    found = {
        f"{name}: {function}" for name, source in below_the_doors().items() for function in without_their_error(source)
    }
    assert found == set()


def test_missing_shapes_are_found() -> None:
    head = "def f(x: Tensor, n: int = 2) -> Tensor:\n"
    assert without_a_shape(f'{head}    """Twice ``x``."""') == ["f"]
    assert without_a_shape('class C:\n  def f(self, *, x: Sequence[Tensor] | None) -> None:\n    """Keep."""') == [
        "C.f"
    ]
    assert without_a_shape(f'{head}    """Twice ``x`` (B, C)."""') == []
    assert without_a_shape(f'{head}    """Twice ``x`` (B,)."""') == []
    assert without_a_shape(f'{head}    """Twice ``x``, of any shape."""') == []
    assert without_a_shape('def f(x: Mapping[str, Tensor]) -> None:\n    """Keep."""') == []
    assert without_a_shape(head.replace("f(", "_f(") + '    """Twice (see there)."""') == []
    assert without_a_shape(f'{head}    """Twice (see there), or thrice (if x is large, or not)."""') == ["f"]


def test_errors_that_are_not_named_are_found() -> None:
    body = "    if x:\n        raise MissingFileError('x')\n    return x"
    assert without_their_error(f'def f(x):\n    """Read."""\n{body}') == ["f"]
    assert without_their_error(f'def f(x):\n    """Read. Raises DatasetError."""\n{body}') == ["f"]
    assert without_their_error(f'def f(x):\n    """Read. Raises MissingFileError."""\n{body}') == []
    assert without_their_error(f'def f(x):\n    """Read, or FileError."""\n{body}') == []
    assert (
        without_their_error(f'class C:\n  """Raises FileError."""\n  def f(x):\n    """Read."""\n    {body.strip()}')
        == []
    )
    assert (
        without_their_error('def f(x):\n    """Read."""\n    def g():\n        raise FileError(x)\n    return g') == []
    )


# -- why -------------------------------------------------------------------------------------------------------------

_BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case, ast.Assert)


def all_functions(body: Iterable[ast.AST], path: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions by their qualified names: methods, and functions inside others, too."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield f"{path}{node.name}", node
        inside = f"{path}{node.name}." if isinstance(node, ast.FunctionDef | ast.ClassDef) else path
        yield from all_functions(ast.iter_child_nodes(node), inside)


def branches(function: ast.FunctionDef) -> int:
    """Places where the function's own lines go one way or another; those of functions inside it are theirs."""
    count = 0
    waiting: list[ast.AST] = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, _BRANCHES):
            count += 1 + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return count


def without_a_why(source: str) -> list[str]:
    """Functions of :data:`MANY_BRANCHES` or more that have no comment inside, or no blank line between two steps."""
    lines = source.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    found = []
    for name, function in all_functions(ast.parse(source).body):
        if branches(function) < MANY_BRANCHES:
            continue
        steps = function.body[1:] if ast.get_docstring(function) else function.body
        end = function.end_lineno or 0
        has_comment = any(number in comments for number in range(function.lineno, end + 1))
        has_blank = any(not lines[number - 1].strip() for number in range(steps[0].lineno, end + 1))
        if not (has_comment and has_blank):
            found.append(name)
    return found


def test_where_many_branches_meet_somebody_says_why() -> None:
    found = {f"{name}: {function}" for name, source in sources().items() for function in without_a_why(source)}
    assert found == set()


def test_missing_whys_are_found() -> None:
    ifs = "".join(f"    if x == {number}:\n        y = {number}\n" for number in range(MANY_BRANCHES))
    head, end = 'def f(x):\n    """Sort.\n\n    Out."""\n', "    return y\n"
    assert without_a_why(head + ifs + end) == ["f"]
    assert without_a_why(f"{head}{ifs}\n{end}") == ["f"]
    assert without_a_why(f"{head}    # Zero first.\n{ifs}{end}") == ["f"]
    assert without_a_why(f"{head}\n    # Zero first.\n{ifs}{end}") == ["f"]
    assert without_a_why(f"{head}    # Zero first.\n{ifs}\n{end}") == []
    fewer = ifs.partition("    if x == 1:")[0] + "    if x == 2 or x == 3:\n        y = [z for z in x if z]\n"
    assert without_a_why(head + fewer + end) == []
    text = 'def f(x):\n    y = "# no comment"\n\n' + ifs + end
    assert without_a_why(text) == ["f"]
    inner = "class C:\n" + "".join(f"    {line}\n" for line in (head + ifs + end).splitlines())
    assert without_a_why(inner) == ["C.f"]
