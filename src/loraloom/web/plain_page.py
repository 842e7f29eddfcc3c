"""The few pages that are there without the page's build: the way in, and what to do where it is missing. No script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from starlette.responses import HTMLResponse

__all__ = ["STYLE", "plain_page"]

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 34rem; margin: 12vh auto; padding: 0 1.5rem; }
h1 { font-size: 1.4rem; font-weight: 600; }
input, button { font: inherit; padding: .5rem .75rem; border-radius: .4rem; border: 1px solid GrayText; }
button { cursor: pointer; }
.problem { font-weight: 600; }
"""
_PASSWORD = """<form method="post" action="/login"><p><label for="password">Password</label></p>
<p><input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Come in</button></p></form>"""
_AGAIN = '<meta http-equiv="refresh" content="0">'


def plain_page(
    title: str,
    lines: Sequence[str],
    *,
    problem: str = "",
    asks_password: bool = False,
    again: bool = False,
    status: int = 200,
) -> HTMLResponse:
    """A page of a few sentences. ``again``: the browser asks once more by itself."""
    body = "".join(f"<p>{escape(line)}</p>" for line in lines)
    said = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/plain.css">'
        f"{_AGAIN if again else ''}</head><body><main><h1>{escape(title)}</h1>{said}{body}"
        f"{_PASSWORD if asks_password else ''}</main></body></html>",
        status,
    )
