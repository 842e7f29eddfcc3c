"""The command line: one command group per file; errors are printed as a problem and a hint, never a traceback."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import loraloom
from loraloom.cli.failures import (
    UNFORESEEN,
    report_threads,
    show_failure,
    show_interruption,
    show_unforeseen,
)
from loraloom.cli.output import forgive_output, lost_output
from loraloom.errors import LoraloomError, SettingsError
from loraloom.hardware import set_thread_defaults
from loraloom.studio.system_errors import explained

__all__ = ["app", "main"]


class _PassedError(Exception):
    """Carries what typer would end in its own way (an interruption, the end of a file) to :func:`main`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class _Commands(TyperGroup):
    """All commands; what they raise reaches :func:`main`."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the words of the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _PassedError(error) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _PassedError(error) from None


app = typer.Typer(
    name="loraloom",
    cls=_Commands,
    help="A LoRA studio for Stable Diffusion: dataset, training, previews, use on the fly, merge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"loraloom {loraloom.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A LoRA studio for Stable Diffusion."""
    if "RANK" in os.environ and context.invoked_subcommand not in ("train", "sweep"):
        _check_alone(context.invoked_subcommand or "")


def _check_alone(command: str) -> None:
    """Several processes that torchrun started would all do the same, and write over one another."""
    from loraloom.studio.runs.training import launched_together, one_voice

    if launched_together() > 1:
        with one_voice():
            raise SettingsError([f"{command} under torchrun: only train is shared by processes"], "start it without")


def _register() -> None:
    from loraloom.cli import (
        class_images,
        dataset,
        demo,
        doctor,
        generate,
        grid,
        jobs,
        library,
        plan,
        recipes,
        runs,
        settings,
        studio,
        sweep,
        teach,
        tokens,
        train,
        weight_tools,
        weights,
    )

    app.command("studio")(studio.studio)
    app.command("demo")(demo.demo)
    app.command("doctor")(doctor.doctor)
    dataset.app.command("class-images")(class_images.class_images)
    app.add_typer(dataset.app, name="dataset")
    app.command("teach")(teach.teach)
    app.command("plan")(plan.plan)
    app.command("train")(train.train)
    app.command("runs")(runs.runs)
    app.command("pause")(runs.pause)
    app.command("resume")(runs.resume)
    app.command("stop")(runs.stop)
    app.command("save")(runs.save)
    app.command("preview")(runs.preview)
    app.add_typer(jobs.app, name="jobs")
    app.command("work")(jobs.work)
    app.command("sweep")(sweep.sweep)
    app.command("generate")(generate.generate)
    app.command("grid")(grid.grid)
    app.command("tokens")(tokens.tokens)
    app.command("merge")(weights.merge)
    app.command("merge-checkpoints")(weight_tools.merge_checkpoints)
    app.command("convert")(weight_tools.convert)
    app.command("extract")(weight_tools.extract)
    app.command("resize")(weight_tools.resize)
    app.command("inspect")(weights.inspect)
    app.command("metadata")(weight_tools.metadata)
    app.add_typer(library.app, name="library")
    app.command("import")(recipes.import_recipe)
    app.command("settings")(settings.settings)


_register()


def main() -> None:
    """Entry point of the ``loraloom`` command."""
    set_thread_defaults()
    forgive_output()
    # --debug is allowed anywhere, also after the command, where people add it to a line that has just failed.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    from loraloom.studio.stopping import interrupt_on_signals

    with report_threads(arguments), interrupt_on_signals():
        code = _exit_code(arguments, debug="--debug" in sys.argv)
    raise SystemExit(code)


def _exit_code(arguments: list[str], *, debug: bool) -> int:
    """Run the command. 0: all went well, 1: an error, 2: wrong usage, 70: a fault, 128 + n: left by signal n."""
    try:
        app(args=arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
        return code or _with_its_output(arguments)
    except _PassedError as passed:
        error: BaseException = passed.error
    except KeyboardInterrupt as early:  # while the commands are put together
        error = early
    except Exception as other:  # noqa: BLE001 (the last net)
        error = other
    if isinstance(error, KeyboardInterrupt):
        show_interruption(_command(arguments))
        return 128 + getattr(error, "number", signal.SIGINT)
    if debug:
        raise error
    if (said := explained(error)) is not None:
        show_failure(said)
        return 1
    show_unforeseen(error, arguments)
    return UNFORESEEN


def _with_its_output(arguments: list[str]) -> int:
    """0, but 1 where the result of a command was its text, and that was lost on a full disk."""
    lost = lost_output()
    if lost is None:
        return 0
    reason = getattr(lost, "strerror", None) or str(lost)
    if _command(arguments) in _WORKS:
        show_failure(LoraloomError(f"part of the output is lost: {reason}", "the work itself is done"))
        return 0
    show_failure(LoraloomError(f"the output is lost: {reason}", "print it to another disk"))
    return 1


_WORKS = frozenset(
    {
        "demo",
        "class-images",
        "teach",
        "train",
        "resume",
        "pause",
        "stop",
        "save",
        "preview",
        "sweep",
        "generate",
        "grid",
    }
    | {"merge", "merge-checkpoints", "convert", "extract", "resize", "scan", "forget"}
    | {"work", "hold", "release", "move", "cancel", "retry", "stop-after"}
)
"""Commands whose result is in files; what they print is only about it."""


def _command(arguments: list[str]) -> str:
    """The name of the command that was given, without that of its group."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    return words[1] if len(words) > 1 and words[0] in ("dataset", "library", "jobs") else words[0] if words else ""


if __name__ == "__main__":
    main()
