"""Change the source in one place at a time and see whether a test notices: ``python tools/mutate.py --help``.

A test that passes with ``<`` in place of ``<=``, or with a step left out, says nothing about that place. Every *mutant*
is the source with one such change. It is *killed* by the first test that fails (or that runs far too long), and
*survives* when all of them pass; a survivor is either equivalent to the source, or a number that the tests should hold.

What is run is read from ``tools/mutation_plan.toml``: groups of source files, and for each group the tests in stages,
from the file that mirrors the source to the slow ones. A mutant that survives a stage goes on to the next.

The tests run in a copy of the tree, never in the tree itself. Importing torch and the libraries that serve as oracles
takes half a minute, a quick test milliseconds. So one process imports them once, and every mutant is tried in a fork
of it, which imports only Loraloom and the tests anew (this needs a system with ``fork``). Results go to a file of JSON
lines as they come; started again, a pass goes on where it stopped.

    python tools/mutate.py --count 30 --seed 1 --results mutants.jsonl          # all groups, 30 mutants of each
    python tools/mutate.py --only buckets --list                                # what could be changed there
    python tools/mutate.py --results mutants.jsonl --report                     # killed, survivors by name
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLAN = Path(__file__).with_name("mutation_plan.toml")


# ---------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True, order=True)
class Mutant:
    """One change of one file: the bytes ``start:end`` become ``new``."""

    file: str
    line: int
    start: int
    end: int
    kind: str
    old: str
    new: str

    def applied(self, source: bytes) -> bytes:
        """The source with the change."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    @property
    def name(self) -> str:
        """File, line and change in one line of text."""
        return f"{self.file}:{self.line}: {_short(self.old)} -> {_short(self.new)}"


def _short(text: str, limit: int = 90) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "amin": "amax",
    "amax": "amin",
    "sum": "mean",
    "mean": "sum",
    "sqrt": "square",
    "rsqrt": "sqrt",
    "square": "abs",
    "floor": "ceil",
    "ceil": "floor",
    "exp": "log",
    "log": "exp",
    "sin": "cos",
    "cos": "sin",
    "bisect_left": "bisect_right",
    "bisect_right": "bisect_left",
    "float64": "float32",
    "startswith": "endswith",
    "endswith": "startswith",
    "lstrip": "rstrip",
    "rstrip": "lstrip",
    "partition": "rpartition",
    "rpartition": "partition",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "ndtr": "sigmoid",
}
"""Functions and methods that can stand in for one another."""

DROPPED = frozenset(
    [
        "abs",
        "neg",
        "square",
        "sqrt",
        "rsqrt",
        "exp",
        "log",
        "float",
        "double",
        "sort",
        "sorted",
        "reversed",
        "set",
        "strip",
        "lstrip",
        "rstrip",
        "lower",
        "upper",
        "casefold",
        "clone",
        "resolve_conj",
        "resolve_neg",
        "contiguous",
        "detach",
        "round",
        "int",
    ]
)
"""Calls without further arguments that can be left out: ``x.abs()`` becomes ``x``, ``sorted(x)`` becomes ``x``."""

INSTEAD = {ast.AugAssign: "pass", ast.Raise: "pass", ast.Continue: "break", ast.Break: "continue"}
"""What stands in the place of a statement."""

SYMMETRIC = frozenset(["min", "max", "equal", "isclose", "gcd"])
"""Calls in which the order of the arguments says nothing."""

TALK = frozenset(
    ["warn", "debug", "info", "warning", "error", "exception", "log", "isinstance", "cast", "TypeVar", "Literal"]
)
"""Calls whose arguments are messages or types."""


class _Finder(ast.NodeVisitor):
    """Collects the mutants of one file."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found: list[Mutant] = []
        self.alike: list[dict[str, list[str]]] = []
        self.bound: list[set[str]] = []

    # -- taking note

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self.lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self.lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return start, end

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _add(self, kind: str, node: ast.AST, new: str) -> None:
        start, end = self._span(node)
        line = self.source[:start].count(b"\n") + 1
        self.found.append(Mutant(self.file, line, start, end, kind, self._text(node), new))

    # -- what is left alone: types, messages, texts, decorators, what is checked by the type checker

    def visit_Module(self, node: ast.Module) -> None:
        self._body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._body(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        of_type: dict[str, list[str]] = {}
        for argument in arguments:
            if argument.annotation is not None:
                of_type.setdefault(ast.unparse(argument.annotation), []).append(argument.arg)
        alike = {name: [n for n in names if n != name] for names in of_type.values() for name in names}
        self.alike.append({name: others for name, others in alike.items() if others})
        self.bound.append({argument.arg for argument in arguments})
        for default in [*node.args.defaults, *(value for value in node.args.kw_defaults if value)]:
            self.visit(default)
        self._body(node.body)
        self.bound.pop()
        self.alike.pop()

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        if isinstance(node.target, ast.Name) and self.bound:
            self.bound[-1].add(node.target.id)

    def visit_Import(self, node: ast.Import) -> None:
        pass

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    # -- statements

    def _body(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant):
                return  # a docstring
            if isinstance(node.value, ast.Call | ast.Yield):
                self._add("statement", node, "pass")
        elif type(node) in INSTEAD:
            self._add("statement", node, INSTEAD[type(node)])
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "__all__" in names or _is_type_alias(node):
                return
            self._assignment(node, names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self.visit(node)

    def _assignment(self, node: ast.Assign, names: Sequence[str]) -> None:
        """Left out where the names have values already, or something else is changed."""
        if not self.bound:
            return
        known = any(name in self.bound[-1] for name in names)
        placed = any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
        if known or placed:
            self._add("statement", node, "pass")
        self.bound[-1].update(names)

    def generic_visit(self, node: ast.AST) -> None:
        for _, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    self._statement(child)
                elif isinstance(child, ast.AST):
                    self.visit(child)

    def visit_If(self, node: ast.If) -> None:
        self._add("branch", node.test, "True")
        self._add("branch", node.test, "False")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add("branch", node.test, "True")
        self._add("branch", node.test, "False")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._add("branch", test, "True")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        other = OPERATORS.get(type(node.op))
        if other is not None:
            changed = ast.AugAssign(node.target, other(), node.value)
            self._add("operator", node, ast.unparse(ast.fix_missing_locations(changed)))
        self.visit(node.value)

    # -- expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, op in enumerate(node.ops):
            other = COMPARISONS.get(type(op))
            if other is not None:
                ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                self._add("comparison", node, f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = OPERATORS.get(type(node.op))
        if other is not None and not _is_text(node):
            self._add("operator", node, f"({ast.unparse(ast.BinOp(node.left, other(), node.right))})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._add("boolean", node, f"({ast.unparse(ast.BoolOp(other, node.values))})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self._add("unary", node, f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add("constant", node, str(not value))
        elif isinstance(value, int):
            self._add("constant", node, str(value + 1))
            if value > 1:
                self._add("constant", node, str(value - 1))
        elif isinstance(value, float):
            self._add("constant", node, repr(value * 1.5 if value else 0.5))
            self._add("constant", node, f"({-value!r})" if value else "1.0")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in TALK:
            return
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                self._add("slice", bound, f"({ast.unparse(bound)}) + 1")
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            for other in self.alike[-1].get(node.id, ())[:1] if self.alike else ():
                self._add("variable", node, other)
            self._other_name(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._other_name(node, node.attr, self._text(node.value))
        self.visit(node.value)

    def _other_name(self, node: ast.AST, name: str, of: str | None = None) -> None:
        if name in NAMES:
            self._add("function", node, NAMES[name] if of is None else f"{of}.{NAMES[name]}")

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in TALK and not (name in ("log", "exp") and len(node.args) == 1):
            return
        if name in DROPPED and not node.keywords:
            if isinstance(node.func, ast.Attribute) and not node.args:
                self._add("call", node, self._text(node.func.value))
            elif isinstance(node.func, ast.Name) and len(node.args) == 1:
                self._add("call", node, f"({self._text(node.args[0])})")
        if len(node.args) >= 2 and name not in SYMMETRIC:
            self._other_order(*node.args[:2])
        for keyword in node.keywords:
            if keyword.arg in ("min", "max") and len(node.keywords) == 1:
                other = "max" if keyword.arg == "min" else "min"
                self._add("function", keyword, f"{other}={self._text(keyword.value)}")
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg != "strict":
                self.visit(keyword.value)

    def _other_order(self, first: ast.expr, second: ast.expr) -> None:
        if isinstance(first, ast.Starred) or isinstance(second, ast.Starred):
            return
        (start, _), (_, end) = self._span(first), self._span(second)
        line = self.source[:start].count(b"\n") + 1
        old = self.source[start:end].decode()
        if self._text(first) != self._text(second):
            new = f"{self._text(second)}, {self._text(first)}"
            self.found.append(Mutant(self.file, line, start, end, "order", old, new))


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _is_type_alias(node: ast.Assign) -> bool:
    value = node.value
    return isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name) and value.value.id in TALK


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """Every change of a file, by place; :func:`is_another` says which of them are programs."""
    source = (root / file).read_bytes()
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found))


def is_another(root: Path, mutant: Mutant) -> bool:
    """Whether the changed file compiles, and to something else than the file."""
    source = (root / mutant.file).read_bytes()
    try:
        tree = ast.parse(mutant.applied(source))
        compile(tree, "mutant", "exec")
    except SyntaxError:
        return False
    return ast.dump(tree) != ast.dump(ast.parse(source))


def sampled(root: Path, mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """``count`` of the mutants, as many lines as possible: of no line a second one before all lines had theirs."""
    draw = random.Random(f"{seed} {mutants[0].file if mutants else ''}")
    rounds: dict[int, list[Mutant]] = {}
    seen: dict[tuple[str, int], int] = {}
    for mutant in draw.sample(list(mutants), len(mutants)):
        line = (mutant.file, mutant.line)
        rounds.setdefault(seen.get(line, 0), []).append(mutant)
        seen[line] = seen.get(line, 0) + 1
    in_order = (mutant for number in sorted(rounds) for mutant in rounds[number])
    return sorted(islice((mutant for mutant in in_order if is_another(root, mutant)), count))


# ---------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Group:
    """Source files that share their tests."""

    name: str
    sources: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    """Each a list of arguments for pytest, the quickest first."""


def read_plan(path: Path) -> list[Group]:
    """The groups of a plan."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Group(name, tuple(table["sources"]), tuple(tuple(stage) for stage in table["stages"]))
        for name, table in tables.items()
    ]


# ---------------------------------------------------------------------------------------- trying


class Workshop:
    """A copy of the tree, and forks in which the tests run over one changed file of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)
        self.output = folder / "mutate-output.txt"
        self._forks = multiprocessing.get_context("fork")

    def run(self, arguments: Sequence[str], limit_s: float, *, keep_bytecode: bool = False) -> tuple[int | None, str]:
        """pytest's exit code (None: it ran too long) and what it printed.

        ``limit_s`` is of processor time, which other work on the machine does not use up; of waiting, ten times that.
        """
        with tempfile.TemporaryDirectory(prefix="mutate-") as scratch:
            process = self._forks.Process(
                target=_pytest_in_fork,
                args=(self.folder, list(arguments), self.output, Path(scratch), int(limit_s), keep_bytecode),
            )
            process.start()
            process.join(10 * limit_s)
            code = None if process.exitcode == -signal.SIGXCPU else process.exitcode
            if process.pid is not None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)  # with everything that the tests started
                except ProcessLookupError:
                    process.kill()
            process.join()
        return code, self.output.read_text(encoding="utf-8", errors="replace")

    def warm(self) -> None:
        """Import what the last run with ``keep_bytecode`` imported, apart from Loraloom and the tests."""
        names = json.loads((self.folder / "mutate-modules.json").read_text(encoding="utf-8"))
        for name in names:
            if name not in sys.modules:
                try:
                    importlib.import_module(name)
                except Exception as error:  # noqa: BLE001 - a fork that needs it says what is wrong
                    print(f"not imported beforehand: {name} ({type(error).__name__})", file=sys.stderr)
        gc.collect()
        gc.freeze()  # else each fork walks, and so copies, all that was imported: three quarters of a quick test's time

    def with_mutant(self, mutant: Mutant) -> Restored:
        """The copy with the mutant in it, for a ``with`` block."""
        return Restored(self.folder / mutant.file, mutant)


class Restored:
    """Puts a mutant into its file, and the source back at the end."""

    def __init__(self, path: Path, mutant: Mutant) -> None:
        self.path, self.mutant, self.source = path, mutant, path.read_bytes()

    def __enter__(self) -> None:
        # Bytecode is trusted by time and size, and a mutant may have both.
        for cached in (self.path.parent / "__pycache__").glob(f"{self.path.stem}.*.pyc"):
            cached.unlink()
        self.path.write_bytes(self.mutant.applied(self.source))

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.source)


def _pytest_in_fork(
    folder: Path, arguments: list[str], output: Path, scratch: Path, limit_s: int, keep_bytecode: bool
) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.chdir(folder)
    sys.dont_write_bytecode = not keep_bytecode
    os.environ |= {"PYTHONPATH": str(folder / "src"), "TMPDIR": str(scratch)}
    if not keep_bytecode:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    tempfile.tempdir = str(scratch)
    sys.path = [str(folder / "src"), *(path for path in sys.path if path and not Path(path).is_relative_to(ROOT))]

    import pytest

    start = time.monotonic()
    code = int(pytest.main(["-x", "-p", "no:cacheprovider", "--tb=line", *arguments]))
    print(f"{time.monotonic() - start:.1f} s")
    if keep_bytecode:
        names = [name for name, module in list(sys.modules.items()) if _is_foreign(name, module, folder)]
        (folder / "mutate-modules.json").write_text(json.dumps(names), encoding="utf-8")
    sys.stdout.flush()
    os._exit(code)


def _is_foreign(name: str, module: Any, folder: Path) -> bool:
    spec = getattr(module, "__spec__", None)
    if name == "__main__" or spec is None or spec.name != name:
        return False
    origin = spec.origin or ""
    return not name.startswith("loraloom") and not origin.startswith(str(folder)) and "site-packages" in origin


def _failure(output: str) -> str:
    """The test that failed first."""
    for line in output.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" - ")[0]
    return _short(output[-200:])


@dataclass(frozen=True)
class Result:
    """What became of a mutant."""

    group: str
    mutant: Mutant
    outcome: str
    """``killed``, ``timeout`` (which counts as killed) or ``survived``."""
    stage: int
    """The stage that killed it, or the last one that it survived."""
    by: str
    seconds: float


def try_group(group: Group, mutants: Mapping[Mutant, int], stages: int, workshop: Workshop) -> Iterator[Result]:
    """Each mutant's fate, as it is known. ``mutants`` says how many stages each has survived already.

    Stage by stage, so that the slow tests are run for the few that survive the quick ones: a mutant has one result for
    each stage that it survives. Raises RuntimeError if the tests fail without a mutant.
    """
    alive = dict(mutants)
    for stage in range(min(alive.values()) + 1, stages + 1):
        here = [mutant for mutant, survived in alive.items() if survived == stage - 1]
        if not here:
            continue
        arguments = group.stages[stage - 1]
        limit = _limit(group, arguments, workshop)
        for mutant in here:
            started = time.monotonic()
            with workshop.with_mutant(mutant):
                code, output = workshop.run(arguments, limit)
            outcome = "survived" if code == 0 else "timeout" if code is None else "killed"
            by = _failure(output) if outcome == "killed" else ""
            yield Result(group.name, mutant, outcome, stage, by, round(time.monotonic() - started, 1))
            if code == 0:
                alive[mutant] = stage
            else:
                del alive[mutant]


def _limit(group: Group, arguments: Sequence[str], workshop: Workshop) -> float:
    """How much processor time a mutant may take, in seconds: the tests are run without one.

    That run also says what to import beforehand.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code, output = workshop.run(arguments, 1800, keep_bytecode=True)
    if code != 0:
        raise RuntimeError(f"{group.name}: the tests fail without a mutant\n{output[-3000:]}")
    after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    workshop.warm()
    print(f"{group.name}: {' '.join(arguments)}: {took:.1f} s, {busy:.1f} s of processor time", flush=True)
    return 10 + 3 * busy


# ---------------------------------------------------------------------------------------- results


def read_results(path: Path) -> list[Result]:
    """The results so far: of each mutant the last one, which may come of later stages than the one before."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    results = [Result(**{**row, "mutant": Mutant(**row["mutant"])}) for row in rows]
    return list({result.mutant: result for result in results}.values())


def report(results: Sequence[Result]) -> str:
    """Killed of how many for each file and in all, and every survivor by name."""
    files: dict[str, list[Result]] = {}
    for result in results:
        files.setdefault(result.mutant.file, []).append(result)
    lines = [f"{'file':60} {'mutants':>8} {'killed':>8} {'timeout':>8} {'survived':>8}"]
    for file, of_file in [*sorted(files.items()), ("all", list(results))]:
        counts = [sum(result.outcome == outcome for result in of_file) for outcome in ("killed", "timeout", "survived")]
        lines.append(f"{file:60} {len(of_file):8} " + " ".join(f"{count:8}" for count in counts))
    survivors = [result for result in results if result.outcome == "survived"]
    return "\n".join([*lines, "", *(result.mutant.name for result in survivors)])


def main() -> None:
    """Read the command line and make a pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=PLAN, help="groups of sources and their tests")
    parser.add_argument("--only", nargs="*", help="names of groups; without it all of the plan")
    parser.add_argument("--count", type=int, default=30, help="mutants of each group")
    parser.add_argument("--seed", type=int, default=1, help="which mutants are drawn")
    parser.add_argument("--stages", type=int, help="how many stages of tests, the quickest first; without it all")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"), help="JSON lines; what is there is kept")
    parser.add_argument("--again", action="store_true", help="try the survivors in --results once more, by their text")
    parser.add_argument("--list", action="store_true", help="only print what would be tried")
    parser.add_argument("--report", action="store_true", help="only print what --results holds")
    options = parser.parse_args()

    if options.report:
        print(report(read_results(options.results)))
        return
    groups = [group for group in read_plan(options.plan) if not options.only or group.name in options.only]
    drawn = {group.name: _drawn(group, options.count, options.seed) for group in groups}
    if options.list:
        for group in groups:
            print(*(mutant.name for mutant in drawn[group.name]), sep="\n")
        return
    done = read_results(options.results)
    if options.again:
        survivors = [result for result in done if result.outcome == "survived"]
        drawn = {group.name: _found_again(group, survivors) for group in groups}
        options.results = options.results.with_suffix(".again.jsonl")
        done = read_results(options.results)
    known = {result.mutant: result for result in done}

    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="mutate-tree-") as folder:
        workshop = Workshop(Path(folder).resolve())
        for group in groups:
            stages = min(options.stages or len(group.stages), len(group.stages))
            todo = _unfinished(drawn[group.name], known, stages)
            if not todo:
                continue
            for result in try_group(group, todo, stages, workshop):
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
                print(f"{result.outcome:8} {result.seconds:6.1f} s  {result.mutant.name}  {result.by}", flush=True)
    print(report(read_results(options.results)))


def _unfinished(mutants: Sequence[Mutant], known: Mapping[Mutant, Result], stages: int) -> dict[Mutant, int]:
    """The mutants that are neither killed nor through all stages, and how many stages each has survived."""
    survived = {mutant: known[mutant].stage if mutant in known else 0 for mutant in mutants}
    killed = {mutant for mutant, result in known.items() if result.outcome != "survived"}
    return {mutant: stage for mutant, stage in survived.items() if stage < stages and mutant not in killed}


def _drawn(group: Group, count: int, seed: int) -> list[Mutant]:
    files = [file for pattern in group.sources for file in _files(pattern)]
    return sampled(ROOT, [mutant for file in files for mutant in mutants_of(ROOT, file)], count, seed)


def _files(pattern: str) -> list[str]:
    found = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    if not found:
        raise SystemExit(f"{pattern}: no such source; the plan names a file that has moved")
    return found


def _found_again(group: Group, results: Sequence[Result]) -> list[Mutant]:
    """The same changes in the source as it is now; those whose place has changed are left out."""
    wanted = {
        (r.mutant.file, r.mutant.kind, r.mutant.old, r.mutant.new): r.mutant for r in results if r.group == group.name
    }
    found: dict[tuple[str, str, str, str], Mutant] = {}
    for file in (file for pattern in group.sources for file in _files(pattern)):
        for mutant in mutants_of(ROOT, file):
            key = (mutant.file, mutant.kind, mutant.old, mutant.new)
            if key in wanted and (key not in found or _nearer(mutant, found[key], wanted[key])):
                found[key] = mutant
    return sorted(found.values())


def _nearer(mutant: Mutant, other: Mutant, wanted: Mutant) -> bool:
    return abs(mutant.line - wanted.line) < abs(other.line - wanted.line)


if __name__ == "__main__":
    main()
