"""A run in a process of its own, which outlives the one that started it: torch, its memory and its signals are its
own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.errors import LoraloomError, OutputError, ResumeError
from loraloom.events import ignore
from loraloom.hardware import set_thread_defaults
from loraloom.studio.crash_report import write_report
from loraloom.studio.runs.control import is_trained, is_trained_by
from loraloom.studio.runs.training import check_run, train_run
from loraloom.studio.stopping import StopRequest, stop_on_signals

__all__ = ["OUTPUT_NAME", "RunProcess", "main", "start_run"]

OUTPUT_NAME = "output.log"
"""The file in a run folder that takes what the process prints: warnings of libraries, the reason of a failure."""
_TOGETHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes; the new one is not among them."""
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
    # Python looks for modules in the present folder first unless -P forbids it; strangers' files may lie there.
    command = [sys.executable, "-P", "-m", "loraloom.studio.runs.process", str(folder.absolute())]
    environment = {name: value for name, value in os.environ.items() if name not in _TOGETHER}
    own: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    try:
        with (folder / OUTPUT_NAME).open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, **own
            )
    except OSError as error:
        raise OutputError(
            f"{folder / OUTPUT_NAME} cannot be written: {error.strerror}", "check the permissions of the folder"
        ) from error
    while process.poll() is None and not is_trained_by(folder, process.pid):
        time.sleep(_LOOK_S)
    if process.poll() == 1 and is_trained(folder):
        raise _trained_already(folder)  # another process was quicker
    return RunProcess(folder, process)


def _trained_already(folder: Path) -> ResumeError:
    return ResumeError(f"{folder} is being trained already", "it can be asked to stop, or be waited for")


def main(folder: Path) -> int:
    """Train the run in ``folder``; the exit code. A signal asks for a clean end, as it does in a terminal."""
    set_thread_defaults()
    stop = StopRequest()
    try:
        with stop_on_signals(stop, ignore):
            train_run(folder, control=stop)
    except LoraloomError as error:
        sys.stderr.write(f"{error.problem}\n{error.hint}\n")
        return 1
    except KeyboardInterrupt as left:
        return 128 + int(getattr(left, "number", stop.number))
    except Exception as error:  # noqa: BLE001 (the last net of a process of its own)
        traceback.print_exception(error)
        report = write_report(error, ["train", str(folder), "(in a process of its own)"])
        sys.stderr.write(f"a fault in Loraloom itself; the report is {report}\n")
        return 70
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
