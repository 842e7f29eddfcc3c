"""A run in a process of its own, which outlives the one that started it: torch, its memory and its signals are its
own."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import ResumeError
from loraloom.studio.detached import OUTPUT_NAME, start_detached, work_to_the_end
from loraloom.studio.runs.control import is_trained, is_trained_by
from loraloom.studio.runs.training import check_run, train_run

__all__ = ["OUTPUT_NAME", "RunProcess", "main", "start_run"]

_LOOK_S = 0.05


@dataclass(frozen=True)
class RunProcess:
    """The process that trains the run in ``folder``. Nothing happens to it when this object is dropped."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self.process.pid

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code, once it has ended: 0, 1 for an error, 70 for a fault, 128 + n left by signal n.

        Raises TimeoutError after ``timeout_s``.
        """
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.folder} is still being trained by process {self.pid}") from error


def start_run(folder: Path) -> RunProcess:
    """Train the run in a new process, as :func:`train_run` would; it goes on when this one ends.

    Returns as soon as that process has the run, or has ended. The run's log shows how it goes; what it prints goes to
    ``output.log`` in the folder. Raises ResumeError when the run is finished or trained already, also by a process that
    was started at the same time; FileError or SettingsError where its settings cannot be read, OutputError when the
    folder takes no file.
    """
    if is_trained(folder):
        raise _trained_already(folder)
    check_run(folder)  # here, where the caller hears of it: whoever follows the log would wait for a first event
    process = start_detached("loraloom.studio.runs.process", folder)
    while process.poll() is None and not is_trained_by(folder, process.pid):
        time.sleep(_LOOK_S)
    if process.poll() == 1 and is_trained(folder):
        raise _trained_already(folder)  # another process was quicker
    return RunProcess(folder, process)


def _trained_already(folder: Path) -> ResumeError:
    return ResumeError(f"{folder} is being trained already", "it can be asked to stop, or be waited for")


def main(folder: Path) -> int:
    """Train the run in ``folder``; the exit code. A signal asks for a clean end, as it does in a terminal."""
    return work_to_the_end(lambda stop: train_run(folder, control=stop), ["train", str(folder)])


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
