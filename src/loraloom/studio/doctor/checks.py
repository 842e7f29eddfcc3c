"""The table of checks, and the look at a machine by all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loraloom.errors import LoraloomError
from loraloom.studio.doctor.device import check_accelerator, check_torch
from loraloom.studio.doctor.finding import Check, Finding, Machine, State
from loraloom.studio.doctor.packages import check_8bit, check_optional, check_versions
from loraloom.studio.doctor.places import check_far_folders, check_room
from loraloom.studio.doctor.system import (
    check_clock,
    check_long_paths,
    check_memory,
    check_open_files,
    check_python,
    check_threads,
)
from loraloom.studio.doctor.work import check_database, check_leftovers, check_library, check_runs
from loraloom.studio.system_errors import explained

__all__ = ["CHECKS", "examine", "worst"]

CHECKS: tuple[Check, ...] = (
    check_python,
    check_torch,
    check_accelerator,
    check_memory,
    check_threads,
    check_room,
    check_far_folders,
    check_long_paths,
    check_open_files,
    check_clock,
    check_optional,
    check_8bit,
    check_versions,
    check_runs,
    check_leftovers,
    check_library,
    check_database,
)
"""In the order in which they are shown."""


def examine(machine: Machine, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """What each check finds. One that the system stops is a problem of its own, and the others go on."""
    for check in checks:
        try:
            yield from check(machine)
        except (LoraloomError, OSError) as error:
            said = explained(error) or LoraloomError(str(error))
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield Finding(name, "problem", said.problem, said.hint)


def worst(findings: Sequence[Finding]) -> State:
    """The state of the whole."""
    states = {finding.state for finding in findings}
    return "problem" if "problem" in states else "note" if "note" in states else "good"
