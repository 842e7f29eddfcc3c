"""How an error is shown: a problem and a hint, never a traceback."""

from __future__ import annotations

from loraloom.errors import LoraloomError

__all__ = ["show_failure"]


def show_failure(error: LoraloomError) -> None:
    """Print an error's problem and hint to stderr, a line each. What a file made of it cannot steer the terminal."""
    from rich.console import Console

    from loraloom.plain_data import printable

    problem, hint = ("\n".join(map(printable, text.split("\n"))) for text in (error.problem, error.hint))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(problem, markup=False)
    if hint:
        console.print("hint:", style="cyan", end="  ")
        console.print(hint, markup=False)
