"""``python -m loraloom`` is the ``loraloom`` command."""

import os
import signal
import sys

# Ctrl-C while the modules are being loaded ends the program as it ends any other, without a traceback.
# `main` then listens for it. In the background a shell ignores it for the program, and so it stays.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Python looks for modules in the current folder first, and a folder of strangers' files may hold a torch.py. The
# installed command does not look there, and neither does this: a class of your own must be installed or in PYTHONPATH.
if not sys.flags.safe_path and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():  # noqa: PTH100, PTH109
    del sys.path[0]

from loraloom.cli.main import main

if __name__ == "__main__":
    main()
