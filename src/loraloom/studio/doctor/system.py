"""Checks of Python and of the system beneath it: memory, threads, open files, the clock, long paths."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from loraloom.actions import Action, Sentence
from loraloom.formats.unfinished import unfinished_file
from loraloom.plain_data import size_text
from loraloom.studio.doctor.finding import Finding, Machine, good, note, problem

__all__ = [
    "check_clock",
    "check_long_paths",
    "check_memory",
    "check_open_files",
    "check_python",
    "check_threads",
    "container_limit",
    "long_path_findings",
    "memory_findings",
    "thread_findings",
]

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_LITTLE_MEMORY = 4 * 10**9
_TOO_LITTLE_MEMORY = 10**9
_FEW_FILES = 1024
_DAY_S = 24 * 3600.0
_SKEW_S = 60.0
"""Beyond the two seconds to which some file systems round a time."""
_LONGEST_WINDOWS_PATH = 260
_LONG_INSIDE = 120
"""Letters of the path of a file in a run folder, after that of the working folder."""
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def check_python(machine: Machine) -> Iterator[Finding]:
    """Which Python on which system."""
    macos = platform.mac_ver()[0]
    system = f"macOS {macos}" if macos else f"{platform.system()} {platform.release()}"
    found = f"{platform.python_version()} on {system} ({platform.machine()})"
    if sys.maxsize < 2**32:
        yield problem("Python", f"{found}, 32-bit", "install a 64-bit Python: there is no torch for this one")
    elif sys.version_info.releaselevel != "final":
        yield note("Python", found, "this is a trial version of Python: install one that has been released")
    else:
        yield good("Python", found)


def check_memory(machine: Machine) -> Iterator[Finding]:
    """How much of the machine's memory can be taken."""
    import psutil

    memory = psutil.virtual_memory()
    yield from memory_findings(memory.total, memory.available, container_limit("memory.max"))


def memory_findings(total: int, available: int, limit: int | None) -> Iterator[Finding]:
    """``limit``: bytes that a container may use, in place of all; None without one."""
    found = f"{size_text(available)} of {size_text(total)} free"
    if limit is not None and limit < total:
        available = min(available, limit)
        found += f", of which this container may use {size_text(limit)}"
    advice = Sentence("close other programs; ", Action.PLAN_MEMORY, " says what fits")
    if available < _TOO_LITTLE_MEMORY:
        yield problem("memory", found, advice)
    elif available < _LITTLE_MEMORY:
        yield note("memory", found, advice)
    else:
        yield good("memory", found)


def check_threads(machine: Machine) -> Iterator[Finding]:
    """Whether the CPU's cores are used, and not more of them than there are."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or usable, usable)
    chosen = {name: text for name in _THREAD_SETTINGS if (text := os.environ.get(name))}
    yield from thread_findings(cores, container_limit("cpu.max"), chosen)


def thread_findings(cores: int, limit: int | None, chosen: dict[str, str]) -> Iterator[Finding]:
    """``limit``: CPUs that a container may use; ``chosen``: the environment variables that are set."""
    # Fewer threads than cores waste some; more than a container may use wait for one another. A choice of one's own
    # settles the second.
    allowed = min(cores, limit or cores)
    few = {name: text for name, text in chosen.items() if text.isdecimal() and int(text) < allowed}

    if few:
        said = ", ".join(f"{name}={text}" for name, text in few.items())
        found = f"{said} is set, and {allowed} cores can be used: the CPU computes with fewer threads than it could"
        yield note("CPU", found, f"unset {' and '.join(few)} in the environment, unless this was meant")
    elif limit is not None and limit < cores and not chosen:
        found = f"{cores} cores, of which this container may use {limit}"
        yield note("CPU", found, f"set OMP_NUM_THREADS={limit}: more threads than that slow one another down")
    else:
        yield good("CPU", f"{cores} cores" if cores > 1 else "1 core")


def container_limit(name: str, root: Path = _CGROUP, own: Path = _OWN_CGROUP) -> int | None:
    """The lowest limit that a container, or any around it, sets: bytes for ``memory.max``, CPUs for ``cpu.max``.

    None without one, and on systems without control groups (version 2).
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    place = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = root / place.lstrip("/")
    limits = []
    for above in (folder, *folder.parents):
        if above == root or root in above.parents:
            limits += _limit(above / name)
    return min(limits, default=None)


def _limit(path: Path) -> list[int]:
    try:
        words = path.read_text(encoding="utf-8").split()
        numbers = [int(word) for word in words]
    except (OSError, ValueError):  # "max": there is none
        return []
    if len(numbers) == 2:  # microseconds of CPU time in so many
        return [max(1, round(numbers[0] / numbers[1]))]
    return numbers[:1]


def check_open_files(machine: Machine) -> Iterator[Finding]:
    """How many files a process may have open at once."""
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or limit >= _FEW_FILES:
        yield good("open files", "enough may be open at once")
    else:
        found = f"only {limit} may be open at once"
        yield note("open files", found, "`ulimit -n 4096` in the same terminal allows more")


def check_clock(machine: Machine) -> Iterator[Finding]:
    """Whether the time can be right: files are not from the future."""
    now = time.time()
    made = machine.package.stat().st_mtime
    if made > now + _DAY_S:
        found = f"it says {_date(now)}, and Loraloom was installed on {_date(made)}"
        yield problem("clock", found, "set the clock: the age of files is known by it")
        return
    try:
        with unfinished_file(machine.folder) as path:
            off = path.stat().st_mtime - time.time()
    except OSError:  # the folder cannot be written, which another check says
        off = 0.0
    if abs(off) > _SKEW_S:
        found = f"that of the disk of {machine.folder} is {abs(off):.0f} seconds {'ahead' if off > 0 else 'behind'}"
        yield note("clock", found, "set both clocks: the age of files is known by them")
    else:
        yield good("clock", _date(now))


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def check_long_paths(machine: Machine) -> Iterator[Finding]:
    """On Windows: whether paths may be longer than 260 letters."""
    allowed = _long_paths_allowed()
    if allowed is not None:
        yield from long_path_findings(machine.folder, allowed=allowed)


def _long_paths_allowed() -> bool | None:
    """What Windows' registry says; None on other systems."""
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except OSError:  # no such entry before Windows 10
        return False


def long_path_findings(folder: Path, *, allowed: bool) -> Iterator[Finding]:
    """Whether the paths of a run's files in ``folder`` can become too long."""
    length = len(str(folder.absolute()))
    if allowed or length + _LONG_INSIDE <= _LONGEST_WINDOWS_PATH:
        yield good("long paths", "allowed" if allowed else "not allowed, and the folder's own is short")
        return
    found = f"Windows allows {_LONGEST_WINDOWS_PATH} letters here, and the folder's own path has {length}"
    advice = "turn on long paths in Windows (LongPathsEnabled), or work in a folder nearer to the root of the disk"
    yield problem("long paths", found, advice)
