"""How an error is shown: a problem and a hint, never a traceback."""

from __future__ import annotations

from loraloom.errors import LoraloomError

__all__ = ["show_failure"]


def show_failure(error: LoraloomError) -> None:
    """Print an error's problem and hint to stderr, a line each."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(error.problem, markup=False)
    if error.hint:
        console.print("hint:", style="cyan", end="  ")
        console.print(error.hint, markup=False)
