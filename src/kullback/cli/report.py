"""`kullback report`: rebuild a run's page."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .session import prepare
from .streams import write

__all__ = ["report"]


def report(run: Annotated[Path, Parameter(help="A run directory.")], /) -> None:
    """Write RUN/report.html again from what the run directory holds, and print its path."""
    prepare()
    from kullback import report as pages

    write(f"{pages.write(run)}\n")
