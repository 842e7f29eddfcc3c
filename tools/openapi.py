"""Prints the description of the server's API as JSON: what the page's client types are made from.

Usage: python tools/openapi.py [FILE]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def description() -> dict[str, Any]:
    """The OpenAPI description of a server as it is started without options."""
    from loraloom.studio.home import Home
    from loraloom.web.app import make_app
    from loraloom.web.security import Access

    with tempfile.TemporaryDirectory() as folder:
        home = Home.open(Path(folder))
        try:
            return make_app(home, access=Access()).openapi()
        finally:
            home.close()


if __name__ == "__main__":
    text = json.dumps(description(), indent=1, ensure_ascii=False) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
