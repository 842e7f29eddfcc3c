"""Output that nobody reads, or that cannot be written, never ends work: real processes, real pipes."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from loraloom.cli.output import ForgivingStream
from loraloom.events import RunFinished
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import RunLog

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals of POSIX")


class Raw(io.RawIOBase):
    """A stream whose writes do what each of ``answers`` says: an error, a number of bytes, or None (full)."""

    def __init__(self, *answers: OSError | int | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_a_reader_that_is_gone_is_not_asked_again() -> None:
    raw = Raw(OSError(errno.EPIPE, "Broken pipe"))
    stream = ForgivingStream(raw)
    assert [stream.write(b"abc"), stream.write(b"defgh")] == [3, 5]
    assert (raw.asked, stream.readers_gone) == (1, True)


def test_a_full_disk_is_tried_again() -> None:
    raw = Raw(OSError(errno.ENOSPC, "No space left on device"), 3)
    stream = ForgivingStream(raw)
    assert [stream.write(b"abc"), stream.write(b"abc")] == [3, 3]
    assert (raw.asked, stream.readers_gone) == (2, False)
    assert stream.failure is not None


def test_a_full_pipe_is_waited_for() -> None:
    waited: list[float] = []
    stream = ForgivingStream(Raw(None, None, 2), waited.append)
    assert stream.write(b"abc") == 2
    assert len(waited) == 2


# -- real processes --------------------------------------------------------------------------------------------------


def start(folder: Path, arguments: list[str], **how: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", **how.pop("environment", {})}
    command = [sys.executable, "-m", "loraloom", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, **how)


def training(files: Path, steps: int) -> list[str]:
    return [
        "train",
        f"checkpoint={files / 'sd1.safetensors'}",
        f"dataset.folder={files / 'pictures'}",
        *("dataset.resolution=64", "adapter.rank=2", "device=cpu", "name=red", "saving.read_back=false"),
        f"steps={steps}",
    ]


def line_with(stream: IO[bytes], text: bytes) -> None:
    """Read until a line that holds ``text``."""
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed")


def finished_run(folder: Path) -> RunFinished:
    run = RunFolder(folder / "runs" / "red")
    (finished,) = (event for event in RunLog(run.path).events() if isinstance(event, RunFinished))
    lora = read_adapter_file(run.path / "weights" / "red.safetensors")
    assert int(lora.metadata["ss_steps"]) == finished.step
    assert [path.name for path in (run.path / "state").iterdir()] == [f"step-{finished.step:08d}.safetensors"]
    return finished


@POSIX
def test_a_reader_that_goes_away_does_not_end_training(files: Path, tmp_path: Path) -> None:
    process = start(tmp_path, training(files, 3), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    line_with(process.stdout, b"steps per epoch")
    process.stdout.close()
    assert process.wait() == 0
    assert (finished_run(tmp_path).step, finished_run(tmp_path).stopped) == (3, False)


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_signal_that_also_ends_the_reader_saves(number: int, files: Path, tmp_path: Path) -> None:
    """As ``loraloom train ... 2>&1 | tee log`` and Ctrl-C, or a terminal that is closed."""
    process = start(tmp_path, training(files, 100_000), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    line_with(process.stdout, b"steps per epoch")
    process.stdout.close()  # the reader dies first
    process.send_signal(number)
    assert process.wait() == 0
    assert finished_run(tmp_path).stopped


@POSIX
@pytest.mark.parametrize("closed", ["1>&-", "0>&- 1>&- 2>&-"])
def test_closed_streams(closed: str, files: Path, tmp_path: Path) -> None:
    command = " ".join(f"'{part}'" for part in [sys.executable, "-m", "loraloom", "convert"])
    lora, out = files / "lora-sd1.safetensors", tmp_path / "out.safetensors"
    line = f"exec {command} '{lora}' -o '{out}' --no-read-back {closed}"
    done = subprocess.run(["sh", "-c", line], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
    read_adapter_file(out)


@POSIX
def test_the_result_of_a_short_command_is_cut_off_without_a_word(files: Path, tmp_path: Path) -> None:
    arguments = ["inspect", "--json", str(files / "sd1.safetensors")]
    process = start(tmp_path, arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_the_disk_does_not_take_is_an_error(files: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(tmp_path, ["inspect", str(files / "lora-sd1.safetensors")], stdout=full, stderr=subprocess.PIPE)
        _, said = process.communicate()
        assert process.returncode == 1
        assert said.startswith(b"error: the output is lost")
        # Where the result is a file, it is there all the same.
        out = tmp_path / "out.safetensors"
        arguments = ["convert", str(files / "lora-sd1.safetensors"), "-o", str(out), "--no-read-back"]
        process = start(tmp_path, arguments, stdout=full, stderr=subprocess.PIPE)
        _, said = process.communicate()
    assert process.returncode == 0
    assert b"part of the output is lost" in said
    read_adapter_file(out)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_letters_that_the_terminal_does_not_have(encoding: str, files: Path, tmp_path: Path) -> None:
    name = "стиль-画.safetensors"
    (tmp_path / name).write_bytes((files / "lora-sd1.safetensors").read_bytes())
    for arguments in (["inspect", name], ["inspect", "--json", name]):
        process = start(
            tmp_path,
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            environment={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        )
        out, said = process.communicate()
        assert (process.returncode, said) == (0, b"")
        if "--json" in arguments:
            assert json.loads(out.decode(encoding))[0]["path"] == name


def test_a_command_in_this_process_prints_where_the_test_looks(command: Callable[..., Any]) -> None:
    assert command("--version").out.startswith("loraloom ")
