"""``python -m loraloom`` is the ``loraloom`` command."""

import os
import sys

# Python puts the present folder first where modules are looked for, and a folder of strangers' files may hold a torch.py.
# The command itself is not looked for there either, so a class of one's own is installed, or lies in PYTHONPATH.
if not sys.flags.safe_path and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():  # noqa: PTH100, PTH109
    del sys.path[0]

from loraloom.cli.main import main

if __name__ == "__main__":
    main()
