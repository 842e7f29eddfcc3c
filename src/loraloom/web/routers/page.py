"""The page itself: the files of its build, and its one document at every address that is none of the API's."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from loraloom.file_names import entry_of
from loraloom.web.plain_page import plain_page

__all__ = ["PAGE", "router"]

PAGE = Path(__file__).parents[1] / "page"
"""The committed build: ``index.html``, and files that carry a checksum in their names in ``assets/``."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
_FOR_EVER = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


@router.get("/assets/{name}")
def asset(name: str) -> Response:
    """A file of the build whose name changes with its content."""
    return _file(entry_of(PAGE / "assets", name), _FOR_EVER)


@router.get("/{path:path}")
def page(path: str) -> Response:
    """A file beside the document, or the document: which page is shown is for the browser to know."""
    if path.startswith("api/"):
        raise HTTPException(404)
    if "/" not in path and Path(path).suffix in _TYPES:
        return _file(entry_of(PAGE, path), "no-cache")
    if not (PAGE / "index.html").is_file():
        lines = [
            "The server works, but this installation came without the page: a copy of the sources needs it built once.",
            "In the folder web/ of the sources: npm ci, then npm run build. Then reload this page.",
        ]
        return plain_page("Loraloom", lines, problem="The page is not there.", status=404)
    return _file(PAGE / "index.html", "no-cache")


def _file(path: Path | None, kept: str) -> Response:
    if path is None or path.suffix not in _TYPES or not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"cache-control": kept})
