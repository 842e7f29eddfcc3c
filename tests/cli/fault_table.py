"""What every long command does on a full disk, a read-only disk, a closed pipe, SIGHUP, SIGTERM and SIGINT: a table.

    python tests/cli/fault_table.py [--only NAME,NAME] [--faults NAME,NAME] [-o TABLE.md]

Linux, as root (it mounts small disks of memory). Each command is a real process on the small checkpoint of the demo; a
signal is sent when the command has begun to work, which a file or a line that it prints tells. Ends with 1 where a
command prints a traceback, leaves a half-written file or ends with a code that is not documented.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from loraloom.formats.tensors import open_tensors
from loraloom.studio.demo import make_checkpoint

FAULTS = ("full disk", "read-only disk", "closed pipe", "SIGHUP", "SIGTERM", "SIGINT")
CODES = {0, 1, 129, 130, 143}
ROOM_KB = 900
"""Of the full disk: enough for folders and logs, too little for most results."""

LONGEST = 400
"""Letters of what a command said; of more, the first and the last."""


@dataclass(frozen=True)
class Command:
    """A command as it is typed, with IN (folder of the inputs) and OUT (where it writes) to be filled in."""

    name: str
    words: tuple[str, ...]
    begun: str = ""
    """How to see that it works: a text that it prints, /PATTERN of files in OUT, @NAME of a library that it loads."""
    again: bool = True
    """Whether the same command is given again to see that it goes on."""
    resume: tuple[str, ...] = ()
    room_kb: int = ROOM_KB
    """Of the full disk; less where the result is small, so that it becomes full in the middle of the work."""


TRAIN = ("checkpoint=IN/base.safetensors", "dataset.folder=IN/pictures", "dataset.resolution=64", "adapter.rank=4")
TRAIN = (*TRAIN, "device=cpu", "saving.read_back=false", "output=OUT/runs", "batch_size=1")
PAINT = ("steps=4", "width=64", "height=64", "device=cpu")
COMMANDS = (
    Command(
        "train",
        ("train", *TRAIN, "name=a", "steps=40", "saving.state_every_steps=2"),
        "steps per epoch",
        again=False,
        resume=("train", "--resume", "OUT/runs/a"),
    ),
    Command("sweep", ("sweep", *TRAIN, "name=s", "steps=12", "optimizer.lr=1e-4,1e-3"), "steps per epoch"),
    Command(
        "generate",
        ("generate", "IN/base.safetensors", "a cat", *PAINT, "count=30", "seed=1", "output_folder=OUT/images"),
        "/images/0*.png",
        room_kb=60,
    ),
    Command(
        "grid",
        ("grid", "IN/base.safetensors", "a cat", *PAINT, "-x", "seed=1-30", "-o", "OUT/grid", "--batch-size", "1"),
        "/grid/images/*.png",
        room_kb=60,
    ),
    Command(
        "class-images",
        ("dataset", "class-images", "IN/base.safetensors", "IN/pictures", "a cat", *PAINT, "--count=30", "-oOUT/class"),
        "/class/*.png",
        room_kb=60,
    ),
    Command("dataset check", ("dataset", "check", "IN/many", "resolution=64"), "@_imaging"),
    Command("merge", ("merge", "IN/base.safetensors", "IN/lora.safetensors:0.7", "-o", "OUT/m.safetensors"), "/.tmp-*"),
    Command(
        "merge-checkpoints",
        ("merge-checkpoints", "IN/base.safetensors", "IN/tuned.safetensors:0.3", "-o", "OUT/c.safetensors"),
        "/.tmp-*",
    ),
    Command(
        "extract",
        (
            "extract",
            "IN/base.safetensors",
            "IN/tuned.safetensors",
            "-oOUT/e.safetensors",
            "--rank=64",
            "--no-read-back",
        ),
    ),
    Command(
        "resize",
        ("resize", "IN/big.safetensors", "-o", "OUT/r.safetensors", "--rank", "2", "--no-read-back"),
        room_kb=60,
    ),
    Command("convert", ("convert", "IN/big.safetensors", "-o", "OUT/d.safetensors", "--to", "diffusers")),
    Command("library scan", ("library", "scan", "IN", "--hash", "--index", "OUT/index.sqlite"), room_kb=8),
    Command("plan", ("plan", *TRAIN, "name=p", "epochs=2"), again=False),
    Command("demo", ("demo", "OUT/demo", "--epochs", "1"), "steps per epoch", again=False),
    Command("import", ("import", "IN/recipe.toml", "-o", "OUT/run.toml"), "@pydantic_core", room_kb=4),
)


@dataclass
class Row:
    """What a command did."""

    command: str
    fault: str
    code: int
    said: str
    left: str
    goes_on: str
    faults: list[str] = field(default_factory=list)


def prepare(folder: Path) -> None:
    """The inputs of all commands."""
    make_checkpoint(folder / "base.safetensors")
    colours = Image.new("RGB", (96, 80))
    for index in range(12):
        (folder / "pictures" / "2_red").mkdir(parents=True, exist_ok=True)
        colours.paste((20 * index, 90, 200 - 10 * index), (0, 0, 96, 40))
        colours.save(folder / "pictures" / "2_red" / f"{index}.png")
        (folder / "pictures" / "2_red" / f"{index}.txt").write_text("a red square", encoding="utf-8")
    (folder / "many" / "1_red").mkdir(parents=True)
    large = Image.effect_noise((1024, 1024), 60)
    large.save(folder / "large.png")
    for index in range(400):
        (folder / "many" / "1_red" / f"{index}.png").hardlink_to(folder / "large.png")
    base = ("train", *TRAIN, "steps=2", "saving.state=false", "optimizer.lr=1e-2")
    for name, rank in (("lora", 4), ("big", 64)):
        prepared(folder, *base, f"name={name}", f"adapter.rank={rank}")
        (folder / "runs" / name / "weights" / f"{name}.safetensors").rename(folder / f"{name}.safetensors")
    shutil.rmtree(folder / "runs")
    prepared(folder, "merge", "IN/base.safetensors", "IN/big.safetensors:1", "-o", "IN/tuned.safetensors")
    recipe = 'pretrained_model_name_or_path = "base.safetensors"\ntrain_data_dir = "pictures"\nnetwork_dim = 4\n'
    (folder / "recipe.toml").write_text(recipe + 'network_module = "networks.lora"\n', encoding="utf-8")


def prepared(folder: Path, *words: str) -> None:
    """Run a command on the inputs, which must go well."""
    subprocess.run(typed(Command("", words), folder, folder), check=True, capture_output=True, env=environment(folder))


def typed(command: Command, inputs: Path, out: Path, words: tuple[str, ...] = ()) -> list[str]:
    """The words of a command."""
    filled = [word.replace("IN/", f"{inputs}/").replace("OUT/", f"{out}/") for word in words or command.words]
    return [sys.executable, "-m", "loraloom", *(str(inputs) if word == "IN" else word for word in filled)]


def environment(home: Path) -> dict[str, str]:
    """Few threads, no colours, and a home of its own."""
    own = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", "HOME": str(home), "PYTHONUNBUFFERED": "1"}
    own |= {"XDG_DATA_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache")}
    return os.environ | own


@contextmanager
def disk(folder: Path, fault: str, room_kb: int) -> Iterator[None]:
    """A disk of memory at ``folder``: small, or read-only, or with room."""
    folder.mkdir()
    size = f"{room_kb}k" if fault == "full disk" else "600m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        if fault == "read-only disk":
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def try_command(command: Command, fault: str, inputs: Path, scratch: Path) -> Row:
    """Run a command under a fault."""
    out, home = scratch / "out", Path(tempfile.mkdtemp(dir=scratch, prefix="home-"))
    with disk(out, fault, command.room_kb):
        code, said = _run(command, fault, typed(command, inputs, out), out, home)
        row = Row(command.name, fault, code, _without_places(_last_words(said), home), _left(out, home), "")
        row.faults += ["a traceback was printed"] if "Traceback" in said else []
        row.faults += [f"the exit code {code} is not documented"] if code not in CODES else []
        row.faults += [f"{path.name} is half-written" for path in out.rglob("*.safetensors") if not _is_whole(path)]
        row.faults += [f"{path.name} stayed" for path in out.rglob(".tmp-*")]
        goes_on = _goes_on(command, code, inputs, out, home) if fault not in FAULTS[:2] else "-"
        row.goes_on = _without_places(goes_on, home)
    shutil.rmtree(home, ignore_errors=True)
    return row


def _run(command: Command, fault: str, words: list[str], out: Path, home: Path) -> tuple[int, str]:
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(home), cwd=home, text=True
    )
    assert process.stdout is not None
    said = ""
    if fault in FAULTS[2:]:
        said = _wait_until_begun(process, command.begun, out)
        if fault == "closed pipe":
            process.stdout.close()
            return process.wait(), said
        with suppress(ProcessLookupError):
            process.send_signal(getattr(signal, fault))
    rest = process.stdout.read()
    return process.wait(), said + rest


def _wait_until_begun(process: subprocess.Popen[str], begun: str, out: Path) -> str:
    """Read what a command prints until it has begun, or is over."""
    assert process.stdout is not None
    said = b""
    descriptor = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while process.poll() is None:
            if selector.select(timeout=0.005):
                said += os.read(descriptor, 65536)
            pattern = begun.removeprefix("/")
            if begun.startswith("/") and next(out.glob(pattern), None) is not None:
                break
            if begun and not begun.startswith("/") and begun.encode() in said:
                break
            if (not begun or begun[0] == "@") and _has_loaded(process.pid, begun[1:] or "libtorch_cpu"):
                break
    return said.decode("utf-8", "replace")


def _has_loaded(pid: int, library: str) -> bool:
    with suppress(OSError):
        return library in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    return False


def _goes_on(command: Command, code: int, inputs: Path, out: Path, home: Path) -> str:
    words = command.resume or (command.words if command.again else ())
    if not words or (code == 0 and not command.resume):
        return "finished" if code == 0 else "-"
    done = subprocess.run(
        typed(command, inputs, out, words), capture_output=True, text=True, env=environment(home), cwd=home, check=False
    )
    if "is finished after" in done.stderr:
        return "finished"
    return "yes" if done.returncode == 0 else f"no: {_last_words(done.stderr)}"


def _is_whole(path: Path) -> bool:
    from loraloom.errors import FileError

    try:
        with open_tensors(path) as file:
            return all(file[name].numel() >= 0 for name in file)
    except FileError:
        return False


def _left(out: Path, home: Path) -> str:
    """Kinds of files and how many of each, on the disk and (rescued) elsewhere."""
    counts: dict[str, int] = {}
    for place, mark in ((out, ""), (home / "data" / "loraloom" / "rescued", " (rescued)")):
        for path in place.rglob("*"):
            if path.is_file():
                inside = path.relative_to(place).parts
                folder = "latents" if "latents" in inside else inside[-2] if len(inside) > 1 else "."
                kind = f"{folder}/*{path.suffix or path.name}{mark}"
                counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())) or "nothing"


def _last_words(said: str) -> str:
    lines = [" ".join(line.split()) for line in said.replace("\r", "\n").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error:", "hint:", "then:", "stopped", "stopping"))]
    return (" / ".join(told) if told else lines[-1] if lines else "").replace("|", "¦")


def _without_places(said: str, home: Path) -> str:
    """Without where the table was made: paths begin at its working folder, and none is cut before that is done."""
    said = said.replace(f"{home}/", "home/").replace(f"{home.parent}/", "")
    return said if len(said) <= LONGEST else f"{said[: LONGEST // 2]} ... {said[-LONGEST // 2 :]}"


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| command | fault | exit code | what it said | what is left | goes on |", "|---|---|---|---|---|---|"]
    for row in rows:
        marks = "".join(f" **{fault}**" for fault in row.faults)
        cells = (row.command, row.fault, str(row.code), row.said + marks, row.left, row.goes_on)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(say: Callable[[str], object] = print) -> int:
    """The table; 1 where something in it is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of commands")
    parser.add_argument("--faults", default="", help="names of faults")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    commands = [one for one in COMMANDS if not given.only or one.name in given.only.split(",")]
    faults = [one for one in FAULTS if not given.faults or one in given.faults.split(",")]
    rows: list[Row] = []
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # what nohup or a shell ignores for us, the commands would ignore too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="fault-table-") as name:
        inputs = Path(name) / "in"
        inputs.mkdir()
        prepare(inputs)
        for command in commands:
            for fault in faults:
                rows.append(try_command(command, fault, inputs, Path(name)))
                say(table(rows[-1:]).splitlines()[-1])
                if given.output is not None:
                    given.output.write_text(table(rows), encoding="utf-8")
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
