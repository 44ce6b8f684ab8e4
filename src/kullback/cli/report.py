"""`kullback report`: rebuild a run's page."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .session import prepare

__all__ = ["report"]


def report(run: Annotated[Path, Parameter(help="A run directory.")], /) -> None:
    """Write RUN/report.html again from what the run directory holds, and print its path."""
    prepare()
    from kullback import report as pages

    sys.stdout.write(f"{pages.write(run)}\n")
