"""``loraloom jobs`` and ``loraloom work``: the queue of a home, seen, changed and worked through in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.actions import Sentence
from loraloom.cli.output import duration, takes_all_letters, visible
from loraloom.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from loraloom.events import Event
    from loraloom.settings import Settings
    from loraloom.studio.jobs.dispatcher import Look
    from loraloom.studio.jobs.queue import Job, Queue
    from loraloom.training.settings import TrainSettings

__all__ = [
    "QueueHome",
    "ToQueue",
    "app",
    "check_queue_options",
    "in_the_home",
    "open_queue",
    "put_into_queue",
    "say_notice",
    "work",
]

app = typer.Typer(help="The queue: what waits, runs and has ended.", invoke_without_command=True)
HomeOption = Annotated[Path, typer.Option("--home", help="The folder of the studio. Unset: the present one.")]
Number = Annotated[int, typer.Argument(metavar="JOB", help="The number of the job in the list.")]
HERE = Path()
ToQueue = Annotated[bool, typer.Option("--queue", help="Put it into the queue of the studio instead (docs/jobs.md).")]
QueueHome = Annotated[
    Path | None, typer.Option("--home", help="With --queue: the folder of the studio. Unset: the present one.")
]


@app.callback()
def jobs(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a job.")] = False,
    home: HomeOption = HERE,
) -> None:
    """List the jobs: those that run, those that wait in their order, and those that have ended."""
    import json

    from loraloom.studio.results import to_record

    context.obj = home
    if context.invoked_subcommand is not None:
        return
    queue = open_queue(home)
    found = queue.jobs()
    if as_json:
        for job in found:
            typer.echo(json.dumps(to_record(job), ensure_ascii=not takes_all_letters()))
        return
    if found:
        _show(found)
    else:
        typer.echo("the queue is empty; `loraloom train ... --queue` puts a run into it")
    if queue.stop_after_this:
        typer.echo("nothing more is started; `loraloom jobs stop-after --off` lets the queue go on")


@app.command()
def hold(context: typer.Context, job: Number) -> None:
    """Keep a job that waits from being started."""
    _say(open_queue(context.obj).hold(job), "is held; `loraloom jobs release` lets it go on")


@app.command()
def release(context: typer.Context, job: Number) -> None:
    """Let a job that was held be started when its turn comes."""
    _say(open_queue(context.obj).release(job), "waits for its turn")


@app.command()
def move(
    context: typer.Context,
    job: Number,
    before: Annotated[
        int | None, typer.Option("--before", metavar="JOB", help="The job that it is to run before.")
    ] = None,
) -> None:
    """Let a job that waits run before another one; without --before as the last."""
    moved = open_queue(context.obj).move(job, before)
    _say(moved, f"is number {moved.position} of those that wait")


@app.command()
def cancel(
    context: typer.Context,
    job: Number,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Let a run save what there is first.")] = True,
) -> None:
    """End a job: one that waits is not started, one that runs ends after the step in progress."""
    cancelled = open_queue(context.obj).cancel(job, save=save)
    _say(cancelled, f"is {cancelled.state}" if cancelled.is_over else "ends after the step in progress")


@app.command()
def retry(context: typer.Context, job: Number) -> None:
    """Put a job that has ended back into the queue, as the first: it goes on exactly where its kind can."""
    _say(open_queue(context.obj).retry(job), "waits for its turn")


@app.command()
def forget(context: typer.Context, job: Number) -> None:
    """Take a job that has ended out of the list; its folder and all its files stay."""
    queue = open_queue(context.obj)
    folder = queue.job(job).folder
    queue.forget(job)
    typer.echo(f"job {job} is out of the list; its files stay in {folder}")


@app.command()
def log(
    context: typer.Context,
    job: Number,
    lines: Annotated[int, typer.Option("--lines", min=1, help="How many.")] = 40,
) -> None:
    """Print the last lines that the process of a job printed."""
    found = open_queue(context.obj).job(job)
    said = found.output(lines)
    for line in said:
        typer.echo(visible(line))
    if not said:
        typer.echo(f"it printed nothing; what happened is in {found.folder / 'events.jsonl'}")


@app.command()
def stop_after(
    context: typer.Context,
    off: Annotated[bool, typer.Option("--off", help="Let the queue go on.")] = False,
) -> None:
    """Start nothing more: what runs goes on to its end."""
    queue = open_queue(context.obj)
    queue.stop_after_this = not off
    typer.echo("the queue goes on" if off else "nothing more is started; what runs goes on to its end")


def work(
    home: HomeOption = HERE,
    until_done: Annotated[bool, typer.Option("--until-done", help="End when nothing runs or waits any more.")] = False,
) -> None:
    """Work through the queue, without a page. Ctrl-C ends this command; jobs that run go on."""
    from rich.console import Console

    from loraloom.studio.home import Home
    from loraloom.studio.jobs.dispatcher import Dispatcher

    console = Console(highlight=False, emoji=False)
    opened = Home.open(home, listener=say_notice)
    with Dispatcher(opened, listener=say_notice) as dispatcher:
        news = _News(dispatcher.queue, console)
        try:
            dispatcher.run(until_done=until_done, each=news.tell)
        except KeyboardInterrupt:
            running = [job for job in dispatcher.queue.jobs() if job.state in ("preparing", "running", "paused")]
            for job in running:
                _say(job, "goes on in its own process")
            raise


def open_queue(home: Path) -> Queue:
    """The queue of a folder that is a home already; a folder that is none is not made one by a look."""
    from loraloom.errors import MissingFileError
    from loraloom.studio.home import Home
    from loraloom.studio.jobs.queue import Queue

    if not Home.is_there(home):
        raise MissingFileError(
            f"there is no queue in {home.absolute()}",
            "name its folder with --home; `loraloom train ... --queue` begins one",
        )
    return Queue(Home.open(home, listener=say_notice))


def check_queue_options(*, queue: bool, home: Path | None) -> None:
    """What goes with the queue alone."""
    from loraloom.studio.runs.training import launched_together

    if home is not None and not queue:
        raise SettingsError(["--home goes with --queue"], "without it, the work is done here and now")
    if queue and launched_together() > 1:
        raise SettingsError(["--queue under torchrun"], "jobs of the queue run in one process; start it without")


def put_into_queue(home: Path | None, kind: str, given: Settings | Path) -> None:
    """A job of the queue: new settings, or the folder of a run that is to go on."""
    from loraloom.studio.home import Home
    from loraloom.studio.jobs.queue import Queue
    from loraloom.studio.runs.folder import with_absolute_paths

    queue = Queue(Home.open(home or HERE, listener=say_notice))
    if isinstance(given, Path):
        job = queue.add_run(given)
    else:
        settings = with_absolute_paths(given)
        job = queue.add(kind, settings)
        for path in queue.missing(kind, settings):
            typer.echo(f"{visible(str(path))} is not there now; it must be when the job starts", err=True)
    typer.echo(visible(f"job {job.id}: {job.title} is number {job.position} of those that wait, in {job.folder}"))
    if not queue.is_worked_through:
        typer.echo("nobody works through the queue now: `loraloom work` does")


def in_the_home(settings: TrainSettings, home: Path | None) -> TrainSettings:
    """The settings of a run that goes into the home, unless another folder was named."""
    from loraloom.studio.home import Home

    if "output" in settings.chosen():
        return settings
    return settings.model_copy(update={"output": Home.runs_in(home or HERE)})


def say_notice(event: Event) -> None:
    """The listener of a home: what had to be mended, or what keeps the queue from being worked through."""
    from rich.console import Console
    from rich.text import Text

    from loraloom.events import Notice

    if isinstance(event, Notice):
        console = Console(stderr=True, highlight=False, emoji=False)
        console.print(Text(visible(event.text), "yellow" if event.level == "warning" else ""), soft_wrap=True)


def _say(job: Job, what: str) -> None:
    typer.echo(visible(f"job {job.id} ({job.title}) {what}"))


def _show(found: list[Job]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("job", "kind", "title", "state", "progress", "time left"):
        table.add_column(name, overflow="fold")
    for job in found:
        table.add_row(*map(Text, _cells(job)))
    console = Console(highlight=False, emoji=False)
    console.print(table)
    for job in found:
        for text in _trouble(job):
            console.print(Text(text), soft_wrap=True)


def _cells(job: Job) -> tuple[str, ...]:
    """A job's row. What is not known is left empty: a zero would look measured."""
    far, left = "", None
    if job.progress is not None:
        total = f"/{job.progress.total}" if job.progress.total else ""
        far, left = f"{job.progress.done}{total} {job.progress.what}", job.progress.seconds_left
    state = f"{job.state}, held" if job.held else job.state
    return str(job.id), job.kind, job.title, state, far, "" if left is None else duration(left)


def _trouble(job: Job) -> list[str]:
    """What went wrong with a job and what to do about it, in lines."""
    if not job.problem:
        return []
    return [visible(Sentence(f"job {job.id}: ", job.problem)), *([visible(job.hint)] if job.hint else [])]


class _News:
    """Says once what each job has come to."""

    def __init__(self, queue: Queue, console: Console) -> None:
        from loraloom.studio.jobs.watching import Watch

        self._console = console
        self._watch = Watch(queue)
        self._states = {job.id: job.state for job in self._watch.look().changed}
        waiting = sum(state == "queued" for state in self._states.values())
        console.print(f"{waiting} jobs wait; Ctrl-C ends this command, jobs that run go on")
        if queue.stop_after_this:
            console.print("nothing more is started; `loraloom jobs stop-after --off` lets the queue go on")
        self._looks_on = False

    def tell(self, look: Look) -> None:
        """After a look at the queue."""
        if look.problem:  # it was said already
            return
        if not look.works and not self._looks_on:
            self._console.print("another process works through this queue; this one takes over when that ends")
        self._looks_on = not look.works
        for job in self._watch.look().changed:
            if self._states.get(job.id) != job.state:
                self._states[job.id] = job.state
                self._say(job)

    def _say(self, job: Job) -> None:
        from rich.text import Text

        held = ", held" if job.held else ""
        self._console.print(Text(visible(f"job {job.id} ({job.title}): {job.state}{held}")), soft_wrap=True)
        for text in _trouble(job):
            self._console.print(Text(f"  {text}", "yellow"), soft_wrap=True)
