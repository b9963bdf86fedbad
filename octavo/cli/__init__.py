"""The command line. One file per verb: parse, one call of the API, show."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `octavo` script."""
    from octavo.cli.app import run

    sys.exit(run(sys.argv[1:]))
