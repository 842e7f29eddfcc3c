"""The command line: one command group a file; errors are printed as a problem and a hint, never a traceback."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import loraloom
from loraloom.cli.failures import show_failure
from loraloom.errors import LoraloomError, SettingsError

__all__ = ["app", "main"]

app = typer.Typer(
    name="loraloom",
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
    from loraloom.studio.training import launched_together, one_voice

    if launched_together() > 1:
        with one_voice():
            raise SettingsError([f"{command} under torchrun: only train is shared by processes"], "start it without")


def _register() -> None:
    from loraloom.cli import (
        class_images,
        dataset,
        demo,
        generate,
        grid,
        library,
        plan,
        recipes,
        runs,
        settings,
        sweep,
        tokens,
        train,
        weight_tools,
        weights,
    )

    app.command("demo")(demo.demo)
    dataset.app.command("class-images")(class_images.class_images)
    app.add_typer(dataset.app, name="dataset")
    app.command("plan")(plan.plan)
    app.command("train")(train.train)
    app.command("runs")(runs.runs)
    app.command("pause")(runs.pause)
    app.command("resume")(runs.resume)
    app.command("stop")(runs.stop)
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
    # Idle OpenMP threads sleep instead of spinning: on a machine that also does something else, spinning made small
    # models five times slower. It is read when torch is loaded, so it must be set before; a person's own value stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Else MKL takes fewer threads when the machine is busy, adds up in another order, and no run is like the other.
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    os.environ.setdefault("MKL_CBWR", "AUTO")
    # --debug is allowed anywhere, also behind the command, where people add it to a line that has just failed.
    debug = "--debug" in sys.argv
    try:
        app(args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except LoraloomError as error:
        if debug:
            raise
        show_failure(error)
        raise SystemExit(1) from None
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        show_failure(LoraloomError(f"{where}{error.strerror or error}", "--debug shows where this happened"))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
