"""``loraloom plan``: what a run will take, and what would make it fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.output import takes_all_letters

if TYPE_CHECKING:
    from loraloom.studio.plan import Change, Plan

__all__ = ["plan"]


def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SETTINGS.toml] [KEY=VALUE]...", help="As for loraloom train."),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option("--dry", help="Load nothing, take no real step: memory is counted, time calculated."),
    ] = False,
    memory: Annotated[
        str,
        typer.Option(
            "--memory", metavar="SIZE", help="Memory to fit into, such as 6GB: names the cheapest change that fits."
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Predict what a run will take before it starts: steps, images, memory, time, disk.

    Memory is counted by taking a step with the real modules on tensors without data. Unless --dry, two real steps of
    the largest batch are timed after that; where two minutes are too short for them, the time is calculated instead,
    and the plan says so. Nothing is saved.
    """
    from rich.console import Console

    from loraloom.cli.progress import ProgressDisplay
    from loraloom.cli.train import split_arguments
    from loraloom.studio.plan import parse_size, plan_record, plan_run
    from loraloom.training.settings import TrainSettings

    limit = parse_size(memory) if memory else None
    path, overrides = split_arguments(arguments or [])
    settings = TrainSettings.load(path, overrides)
    with ProgressDisplay(Console(stderr=True, highlight=False, emoji=False)) as display:
        found, changes = plan_run(settings, dry=dry, limit=limit, listener=display)
    if json:
        import json as writer

        typer.echo(writer.dumps(plan_record(found, changes), indent=2, ensure_ascii=not takes_all_letters()))
        return
    for line in describe(found):
        typer.echo(line)
    if limit is not None:
        for line in advice(found, changes, limit):
            typer.echo(line)


def describe(plan: Plan) -> list[str]:
    """The plan in lines."""
    return [*_work_lines(plan), *_memory_lines(plan), _time_line(plan), _disk_line(plan)]


def _work_lines(plan: Plan) -> list[str]:
    work = plan.work
    width, height, images = work.largest
    buckets = ", ".join(f"{size}: {count}" for size, count in work.buckets.items())
    return [
        f"steps      {work.steps} in {work.epochs} epochs of {work.steps_per_epoch}",
        f"images     {work.images_seen} seen: "
        + ", ".join(f"{concept} {count}" for concept, count in work.images.items()),
        f"batches    of an epoch by size: {buckets}; the largest is {images} of {width}x{height}",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    memory = plan.memory
    lines = [
        f"memory     {_gib(memory.peak)} at its peak ({memory.device}): weights {_mib(memory.weights)}, "
        f"LoRA {_mib(memory.adapter)}, optimizer {_mib(memory.optimizer)}, a step {_mib(memory.step)} "
        f"(kept for the backward pass {_mib(memory.kept)}), encoding {_mib(memory.encoding)}"
        + (f", previews {_mib(memory.previews)}" if memory.previews else "")
        + (f", the program {_mib(memory.process)}" if memory.process else ""),
    ]
    if memory.mapped:
        lines.append(f"           and {_gib(memory.mapped)} of the mapped checkpoint, which the system may drop")
    off = plan.off_percent
    if off is not None and plan.trial is not None and plan.trial.peak is not None:
        lines.append(
            f"           measured in two real steps: {_gib(plan.trial.peak)} (the prediction is {off:+.0f} % off)"
        )
    return lines


def _time_line(plan: Plan) -> str:
    source = (
        "from two real steps"
        if plan.timed
        else f"from counted operations at an assumed {plan.rate / 1e9:.0f} GFLOP/s: a rough figure"
    )
    return (
        f"time       {_duration(plan.seconds)}; {plan.seconds_per_batch:.2f} s for the largest batch "
        f"({plan.memory.flops / 1e12:.2f} TFLOP), {source}"
    )


def _disk_line(plan: Plan) -> str:
    disk = plan.disk
    parts = [f"{disk.loras} LoRA files of {_mib(disk.lora)}"]
    parts += [f"{disk.states} states of {_mib(disk.state)}"] if disk.states else []
    parts += [f"previews {_mib(disk.previews)}"] if disk.previews else []
    parts += [f"latent cache {_mib(disk.latents)}"] if disk.latents else []
    parts += [f"log {_mib(disk.log)}"]
    return f"disk       {_mib(disk.total)}: {', '.join(parts)}{_room(plan)}"


def _room(plan: Plan) -> str:
    if plan.free_disk is None:
        return ""
    if not plan.fits_disk:
        return f"; too much, only {_mib(plan.free_disk)} are free: set output to a folder on another disk"
    return f"; {_gib(plan.free_disk)} are free"


def advice(plan: Plan, changes: list[Change], limit: int) -> list[str]:
    """What to change so that it fits."""
    from loraloom.studio.plan import least_peak

    if not changes:
        return [f"fits       in {_gib(limit)} as it is"]
    least = least_peak(plan, changes)
    fits = least <= limit
    head = f"to fit     {_gib(limit)}:" if fits else f"does not fit {_gib(limit)}; the least is {_gib(least)}, with:"
    return [head] + [
        f"           {' '.join(f'{key}={_value(value)}' for key, value in change.overrides.items())}"
        f"  -> {_gib(change.peak)} ({change.cost})"
        for change in changes
    ]


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**20 * 10 else f"{size / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
