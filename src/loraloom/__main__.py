"""``python -m loraloom`` is the ``loraloom`` command."""

from loraloom.cli.main import main

if __name__ == "__main__":
    main()
