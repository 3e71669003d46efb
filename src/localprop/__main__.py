"""Runs `python -m localprop`."""

import sys

from localprop.cli import main

if __name__ == "__main__":
    sys.exit(main())
