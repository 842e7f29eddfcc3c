"""Work in a process of its own, which outlives the one that started it: how it is started, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraloom.control import Control
from loraloom.errors import LoraloomError, OutputError
from loraloom.events import ignore
from loraloom.hardware import set_thread_defaults
from loraloom.studio.crash_report import write_report

__all__ = ["OUTPUT_NAME", "last_lines", "start_detached", "work_to_the_end"]

OUTPUT_NAME = "output.log"
"""The file in a folder that takes what its process prints: warnings of libraries, the reason of a failure."""
_TOGETHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes; the new one is not among them."""
_TAIL_BYTES = 64 * 1024


def start_detached(module: str, folder: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Run ``module`` on ``folder`` in a new process, which goes on when this one ends.

    What it prints goes to ``output.log`` in the folder; ``environment`` is added to this process's own. Raises
    OutputError when the folder takes no file.
    """
    # Python looks for modules in the present folder first unless -P forbids it; strangers' files may lie there.
    command = [sys.executable, "-P", "-m", module, str(folder.absolute())]
    inherited = {name: value for name, value in os.environ.items() if name not in _TOGETHER}
    own: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    try:
        with (folder / OUTPUT_NAME).open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **(environment or {})},
                **own,
            )
    except OSError as error:
        raise OutputError(
            f"{folder / OUTPUT_NAME} cannot be written: {error.strerror}", "check the permissions of the folder"
        ) from error


def work_to_the_end(work: Callable[[Control], object], what: Sequence[str]) -> int:
    """Do the work of such a process; its exit code: 0, 1 for an error, 70 for a fault, 128 + n left by signal n.

    A signal asks for a clean end, as it does in a terminal. ``what`` names the work in the report of a fault.
    """
    from loraloom.studio.stopping import StopRequest, stop_on_signals

    set_thread_defaults()
    stop = StopRequest()
    try:
        with stop_on_signals(stop, ignore):
            work(stop)
    except LoraloomError as error:
        sys.stderr.write(f"{error.problem}\n{error.hint}\n")
        return 1
    except KeyboardInterrupt as left:
        return 128 + int(getattr(left, "number", stop.number))
    except Exception as error:  # noqa: BLE001 (the last net of a process of its own)
        traceback.print_exception(error)
        report = write_report(error, [*what, "(in a process of its own)"])
        sys.stderr.write(f"a fault in Loraloom itself; the report is {report}\n")
        return 70
    return 0


def last_lines(folder: Path, count: int = 40) -> list[str]:
    """The last lines that the process of ``folder`` printed; none where it printed nothing."""
    try:
        with (folder / OUTPUT_NAME).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL_BYTES, 0))
            data = file.read()
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    return lines[1 if size > _TAIL_BYTES else 0 :][-count:]
