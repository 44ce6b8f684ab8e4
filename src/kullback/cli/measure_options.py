"""The arguments and options of `entropy`, `cross-entropy`, `kl` and `js`; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kullback.core import require

from .numerals import Whole
from .session import check_new

__all__ = ["MeasureOptions", "Options", "P", "Q"]

FORMS = (
    "0.5,0.25,0.25 (also 1/2,1/4,1/4 and 50%,25%,25%), a .csv, .json or .npy file, - for standard "
    "input, or a name: normal(0,1), N(0,1), t(5), mvn([0,0],[[1,.5],[.5,1]])."
)
MOST_DRAWS = 10_000_000  # 2 to 10 s and 1 GB at most; the error is then 1/3000 of one sample's

P = Annotated[str, Parameter(help=f"The distribution P: {FORMS}")]
Q = Annotated[str, Parameter(help="The distribution Q, in the same form.")]


@dataclass(kw_only=True)
class MeasureOptions:
    """How to measure and how to show it."""

    unit: Annotated[Literal["nats", "bits"], Parameter(help="nats or bits.")] = "nats"
    normalise: Annotated[
        bool, Parameter(help="Counts, percentages: divide by their sum.", negative="")
    ] = False
    weights: Annotated[
        bool,
        Parameter(
            help="Divide by the sum also where the numbers look like raw observations.", negative=""
        ),
    ] = False
    log: Annotated[
        bool,
        Parameter(
            help="Tables hold natural logarithms; logits with --normalise as well.", negative=""
        ),
    ] = False
    draws: Annotated[Whole, Parameter(help="Samples, where there is no exact way.")] = 10_000
    seed: Annotated[Whole, Parameter(help="Of the random samples.")] = 0
    explain: Annotated[
        bool, Parameter(help="Write out formula, numbers and what they mean.", negative="")
    ] = False
    plot: Annotated[Path | None, Parameter(help="Draw it to this .svg file.")] = None
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        require(self.draws >= 4, "--draws", "at least 4", self.draws)
        most = f"at most {MOST_DRAWS:,}"
        require(self.draws <= MOST_DRAWS, "--draws", most, f"{self.draws:,}", "--draws 1e6")
        require(0 <= self.seed < 2**63, "--seed", "an integer from 0 to 2^63 - 1", self.seed)
        if self.plot is not None:
            check_new("--plot", self.plot, ".svg", force=self.force)


Options = Annotated[MeasureOptions | None, Parameter(name="*")]
