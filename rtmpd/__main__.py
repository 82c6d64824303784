"""Runs the command as ``python -m rtmpd``."""

import sys

from rtmpd.cli import main

if __name__ == "__main__":
    sys.exit(main())
