"""``python -m loraloom`` is the ``loraloom`` command."""

import os
import sys

# Python looks for modules in the present folder first, and a folder of strangers' files may hold a torch.py.
# The installed command does not look there, so it is the same here: a class of one's own is installed or in PYTHONPATH.
if not sys.flags.safe_path and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():  # noqa: PTH100, PTH109
    del sys.path[0]

from loraloom.cli.main import main

if __name__ == "__main__":
    main()
