"""Runs whose home was moved: the paths in their settings are brought along, so that they can go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loraloom.errors import LoraloomError
from loraloom.studio.runs.folder import RunFolder, run_folders, with_each_path

__all__ = ["bring_along"]


def bring_along(runs: Path, before: Path, now: Path) -> int:
    """Let the settings of the runs in ``runs``, those of sweeps too, name what lies in ``now`` and lay in ``before``.

    Returns how many were changed. Settings that this version cannot read stay as they are.
    """
    return sum(_brought_along(RunFolder(path), before, now) for path in _all_runs(runs))


def _all_runs(runs: Path) -> Iterator[Path]:
    yield from run_folders(runs)
    for sweep in runs.glob("*-sweep"):
        yield from run_folders(sweep)


def _brought_along(run: RunFolder, before: Path, now: Path) -> bool:
    from loraloom.training.settings import TrainSettings

    def moved(path: Path) -> Path:
        return now / path.relative_to(before) if path.is_relative_to(before) else path

    try:
        settings = TrainSettings.load(run.settings_path)
        changed = with_each_path(settings, moved)
        if changed != settings:
            run.write_settings(changed)
    except LoraloomError:
        return False
    return changed != settings
