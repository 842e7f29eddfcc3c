"""Plans for a process without torch: asked of a helper that has it, and that stays warm between two questions.

The helper (:mod:`loraloom.studio.planner_process`) is started with the first question and reads one JSON line for each.
It ends with the process that started it, or by itself when nobody asks for a while. One that does not answer is ended,
and the next question starts another. No torch here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OverdueError
from dataclasses import dataclass
from typing import IO, Any

from loraloom.actions import parts_from_record
from loraloom.errors import LoraloomError
from loraloom.studio.results import to_record
from loraloom.training.settings import TrainSettings

__all__ = ["IDLE_S", "PATIENCE_S", "PlanAnswer", "Planner"]

IDLE_S = 600.0
"""After this many seconds without a question the helper ends."""
PATIENCE_S = 180.0
"""How long an answer may take: a large dataset is read picture by picture."""


@dataclass(frozen=True)
class PlanAnswer:
    """What a run will take, as plain data."""

    work: Mapping[str, Any]
    """``steps``, ``epochs``, ``steps_per_epoch``, ``images_seen``."""
    concepts: tuple[Mapping[str, Any], ...]
    """Of each concept: ``name``, ``shown`` (pictures over the whole run) and ``percent`` of all that are shown."""
    seconds: float
    """A rough figure: it is counted, not timed."""
    disk: Mapping[str, Any]
    """Bytes: ``total``, ``free`` (None where it is not known), ``fits``."""
    memory: Mapping[str, Any]
    """Bytes: ``peak``, ``room`` on this machine now (None where it is not known); ``device``, ``fits``."""
    changes: tuple[Mapping[str, Any], ...]
    """The cheapest changes that make it fit: ``overrides``, ``cost`` in words, ``peak`` in bytes."""
    notices: tuple[str, ...]
    """What a run would say before it begins, settings without effect among them."""


class _Helper:
    """One helper process and the questions that it has not answered yet."""

    def __init__(self, idle_s: float) -> None:
        command = [sys.executable, "-P", "-m", "loraloom.studio.planner_process", str(idle_s)]
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any] | None]] = {}
        threading.Thread(target=self._listen, name="planner", daemon=True).start()

    def ask(self, number: int, question: Mapping[str, Any]) -> Future[dict[str, Any] | None]:
        """Send a question; those before it are answered with None. Raises OSError where nobody listens any more."""
        answer: Future[dict[str, Any] | None] = Future()
        with self._lock:
            for older in self._waiting.values():
                older.set_result(None)
            self._waiting = {number: answer}
        assert self.process.stdin is not None, "it was opened with a pipe"
        self.process.stdin.write(json.dumps({"id": number, **question}).encode() + b"\n")
        self.process.stdin.flush()
        return answer

    def _listen(self) -> None:
        assert self.process.stdout is not None, "it was opened with a pipe"
        for line in self.process.stdout:
            answer = json.loads(line)
            with self._lock:
                asked = self._waiting.pop(answer["id"], None)
            if asked is not None:
                asked.set_result(answer)
        self.process.wait()
        with self._lock:
            left, self._waiting = self._waiting, {}
        for asked in left.values():
            asked.set_exception(EOFError(self.last_words()))

    def last_words(self) -> str:
        """The last line that the process printed."""
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def end(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()


class Planner:
    """Answers plans, one at a time, to any number of threads: a newer question takes the place of an older one."""

    def __init__(self, *, idle_s: float = IDLE_S, patience_s: float = PATIENCE_S) -> None:
        self._idle_s = idle_s
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        self._number = 0

    @property
    def pid(self) -> int | None:
        """The helper's number in the system; None while none runs."""
        helper = self._helper
        return None if helper is None or helper.process.poll() is not None else helper.process.pid

    def ask(self, settings: TrainSettings) -> PlanAnswer | None:
        """The plan of a run with these settings; None when a newer question took this one's place.

        Waits for the answer. Raises LoraloomError with the problem and the hint of the run that could not be planned,
        or when the helper did not answer.
        """
        question = {"settings": to_record(settings)}
        for attempt in (1, 2):
            helper, asked = self._send(question)
            try:
                answer = asked.result(self._patience_s)
                break
            except OverdueError as error:
                helper.end()
                problem = f"the plan was not ready after {self._patience_s:.0f} s"
                raise LoraloomError(problem, "ask again; a smaller dataset is planned sooner") from error
            except EOFError as error:
                # It may have ended of idleness just as the question came, so one more is asked.
                if attempt == 2:
                    raise LoraloomError(f"the process that plans has ended: {error}", "ask again") from error
        if answer is None or "cancelled" in answer:
            return None
        if "problem" in answer:
            raise LoraloomError(parts_from_record(answer["problem"]), parts_from_record(answer["hint"]))
        plan = answer["plan"]
        return PlanAnswer(**{**plan, **{name: tuple(plan[name]) for name in ("concepts", "changes", "notices")}})

    def close(self) -> None:
        """End the helper, if there is one."""
        with self._lock:
            helper, self._helper = self._helper, None
        if helper is not None:
            helper.end()

    def _send(self, question: Mapping[str, Any]) -> tuple[_Helper, Future[dict[str, Any] | None]]:
        with self._lock:
            self._number += 1
            if self._helper is not None and self._helper.process.poll() is None:
                try:
                    return self._helper, self._helper.ask(self._number, question)
                except OSError:  # it has ended in this moment
                    self._helper.end()
            self._helper = _Helper(self._idle_s)
            return self._helper, self._helper.ask(self._number, question)
