"""The process that does one job: ``python -m loraloom.studio.jobs.worker FOLDER``. It outlives whoever started it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from loraloom.control import Control, Order, Request, first_of, number_of, orders_of
from loraloom.errors import LoraloomError, OutputError, ResumeError
from loraloom.events import JobFailed, JobFinished, JobPaused, JobResumed, JobStarted, Listener, ignore
from loraloom.studio.detached import work_to_the_end
from loraloom.studio.jobs.folder import JobRecord, read_job, write_job
from loraloom.studio.jobs.kinds import JobKind, find_kind
from loraloom.studio.jobs.recorder import JobRecorder
from loraloom.studio.jobs.status import StatusReader
from loraloom.studio.results import to_record
from loraloom.studio.runs.control import FolderControl, RunLock, is_trained
from loraloom.studio.runs.log import EventLog
from loraloom.studio.system_errors import explained

__all__ = ["do_job", "main"]


class _Telling:
    """A control that tells of a pause and its end when the work hears of them."""

    def __init__(self, control: Control, record: Listener) -> None:
        self._control = control
        self._record = record
        self._waits = False

    @property
    def number(self) -> int:
        """The signal by which it asks, where it is one."""
        return number_of(self._control)

    def __call__(self) -> Request:
        request = self._control()
        waits = request is Request.PAUSE
        if waits != self._waits:
            self._record(JobPaused() if waits else JobResumed())
        self._waits = waits
        return request

    def take_orders(self) -> tuple[Order, ...]:
        """Passed on."""
        return orders_of(self._control)


def do_job(folder: Path, *, control: Control) -> None:
    """Do the job in ``folder``, in this process, with its record; a job that is done already stays so.

    Raises ResumeError when another process does it, FileError where its record cannot be read, and what the work
    raises, which its log has then too.
    """
    kind = find_kind(read_job(folder).kind)
    if kind.is_run:
        if is_trained(folder):
            raise ResumeError(f"{folder} is being trained already", "it can be asked to stop, or be waited for")
        _noted(folder, lambda: kind.run(folder, ignore, control))
        return
    with RunLock(folder):
        if StatusReader(folder, is_run=False).read(alive=False).state == "done":
            return
        _noted(folder, lambda: _recorded(folder, kind, control))


def _noted(folder: Path, work: Callable[[], object]) -> None:
    """Do the work, with its times in the record, and the error that ended it."""
    begun = read_job(folder).begun()
    _note(folder, begun)
    try:
        work()
    except KeyboardInterrupt:
        _note(folder, begun.ended(stopped=True))
        raise
    except BaseException as error:
        if not is_trained(folder) or not isinstance(error, ResumeError):  # else another process was quicker
            said = _worded(error)
            _note(folder, begun.ended(problem=said.problem, hint=said.hint))
        raise
    _note(folder, begun.ended())


def _note(folder: Path, record: JobRecord) -> None:
    with suppress(OutputError):  # the disk is full: the log, or the state in which it ends, says enough
        write_job(folder, record)


def _worded(error: BaseException) -> LoraloomError:
    return explained(error) or LoraloomError(
        f"a fault in Loraloom itself: {type(error).__name__}: {error}", "the last lines of its log name the report"
    )


def _recorded(folder: Path, kind: JobKind, control: Control) -> None:
    with EventLog(folder) as log:
        recorder = JobRecorder(log)
        recorder.record(JobStarted())
        try:
            result = kind.run(folder, recorder, _Telling(first_of(control, FolderControl(folder)), recorder.record))
        except KeyboardInterrupt as left:
            is_to_go_on = getattr(left, "request", Request.STOP) is Request.LEAVE
            recorder.record(JobPaused(freed=True) if is_to_go_on else JobFinished(stopped=True, result={}))
            raise
        except BaseException as error:
            said = _worded(error)
            recorder.record(JobFailed(said.problem, said.hint))
            raise
        told = to_record(result)
        recorder.record(JobFinished(stopped=False, result=told if isinstance(told, dict) else {}))


def main(folder: Path) -> int:
    """Do the job in ``folder``; the exit code. A signal asks for a clean end, as it does in a terminal."""
    return work_to_the_end(lambda stop: do_job(folder, control=stop), ["job", str(folder)])


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
