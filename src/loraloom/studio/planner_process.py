"""The helper of :mod:`loraloom.studio.planner`: reads questions from its input, a JSON line each, and answers plans."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import IO, Any

from loraloom.actions import Sentence, parts_to_record
from loraloom.control import Interrupted, Request
from loraloom.errors import LoraloomError
from loraloom.events import Event, Notice
from loraloom.hardware import set_thread_defaults
from loraloom.studio.plan import changes_for, plan_run, room_here
from loraloom.studio.results import to_record
from loraloom.studio.system_errors import explained
from loraloom.training.settings import TrainSettings

__all__ = ["answer", "main", "plan_data"]


def plan_data(settings: TrainSettings, questions: queue.Queue[str] | None = None) -> dict[str, Any]:
    """The plan as :class:`~loraloom.studio.planner.PlanAnswer` holds it. Interrupted once another question waits."""
    notices: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(str(event.text))

    def control() -> Request:
        return Request.GO if questions is None or questions.empty() else Request.STOP

    plan, _ = plan_run(settings, dry=True, listener=listen, control=control)
    room = room_here(settings, plan)
    changes = [] if room is None else changes_for(settings, plan, room)
    work = plan.work
    return {
        "work": {
            "steps": work.steps,
            "epochs": work.epochs,
            "steps_per_epoch": work.steps_per_epoch,
            "images_seen": work.images_seen,
        },
        "concepts": [
            {"name": name, "shown": shown, "percent": 100 * shown / max(work.images_seen, 1)}
            for name, shown in work.images.items()
        ],
        "seconds": plan.seconds,
        "disk": {"total": plan.disk.total, "free": plan.free_disk, "fits": plan.fits_disk},
        "memory": {
            "device": plan.memory.device,
            "peak": plan.memory.peak,
            "room": room,
            "fits": room is None or plan.memory.peak <= room,
        },
        "changes": to_record(changes),
        "notices": notices,
    }


def answer(question: Mapping[str, Any], questions: queue.Queue[str] | None = None) -> dict[str, Any]:
    """The answer to one question: a plan, or a problem with its hint, or that it was left for a newer one."""
    number = question["id"]
    try:
        settings = TrainSettings.parse(question["settings"], source="the form")
        return {"id": number, "plan": plan_data(settings, questions)}
    except Interrupted:
        return {"id": number, "cancelled": True}
    except Exception as error:  # noqa: BLE001 (the last net: the helper stays for the next question)
        known = error if isinstance(error, LoraloomError) else explained(error)
        if known is None:
            known = LoraloomError(
                f"{type(error).__name__}: {error}", "this is a fault of the program: please report it"
            )
        problem, hint = Sentence(known.problem), Sentence(known.hint)
        return {"id": number, "problem": parts_to_record(problem), "hint": parts_to_record(hint)}


def _take_in(lines: Iterable[str], questions: queue.Queue[str]) -> None:
    """Queue what is asked; the process ends with the one that asks, whatever it is doing."""
    for line in lines:
        questions.put(line)
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """Answer until nobody has asked for as many seconds as the argument says."""
    idle_s = float((sys.argv[1:] if arguments is None else arguments)[0])
    set_thread_defaults()
    # What a library prints must not come between the answers.
    answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_take_in, args=(sys.stdin, questions), daemon=True).start()
    while True:
        try:
            line = questions.get(timeout=idle_s)
        except queue.Empty:
            return 0
        # Only the newest question still has somebody who waits.
        while not questions.empty():
            line = questions.get()
        answers.write(json.dumps(answer(json.loads(line), questions)) + "\n")
        answers.flush()


if __name__ == "__main__":
    raise SystemExit(main())
