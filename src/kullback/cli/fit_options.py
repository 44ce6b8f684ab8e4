"""The options of `kullback fit`; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kullback.core import require

from .numerals import Whole
from .session import check_new

__all__ = ["FitOptions"]

MOST_HELD = 200_000_000  # 1.6 GB an array
MOST_DRAWS = 1_000_000  # the verdict's own limits do not improve beyond


@dataclass(kw_only=True)
class FitOptions:
    """How to fit and how to show it."""

    family: Annotated[
        str,
        Parameter(help="auto, mean_field, full_rank, low_rank, student_t, mixture or flow."),
    ] = "auto"
    direction: Annotated[
        Literal["reverse", "forward", "both"],
        Parameter(help="reverse KL(q‖p), forward KL(p‖q), or both exactly (1 or 2 dimensions)."),
    ] = "reverse"
    components: Annotated[
        Whole, Parameter(help="Gaussians in the mixture that --direction both shows.")
    ] = 2
    dim: Annotated[
        Whole | None, Parameter(help="Dimension of z, where the file has no `parameters`.")
    ] = None
    draws: Annotated[Whole, Parameter(help="Samples of q, on which the verdict rests.")] = 4000
    seed: Annotated[Whole, Parameter(help="Of everything random.")] = 0
    resample: Annotated[
        bool, Parameter(help="Correct the table by importance weights.", negative="")
    ] = False
    reference: Annotated[
        Path | None,
        Parameter(help="Draws of the truth (.csv or .npy) to hold q to, in table and plot."),
    ] = None
    plot: Annotated[Path | None, Parameter(help="Draw it to this .svg file.")] = None
    out: Annotated[Path | None, Parameter(help="Keep draws, summary and verdict here.")] = None
    force: Annotated[bool, Parameter(help="Replace existing files.", negative="")] = False
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        require(self.draws >= 100, "--draws", "at least 100", self.draws)
        most = f"at most {MOST_DRAWS:,}"
        require(self.draws <= MOST_DRAWS, "--draws", most, f"{self.draws:,}", "--draws 1e5")
        require(0 <= self.seed < 2**63, "--seed", "an integer from 0 to 2^63 - 1", self.seed)
        require(self.dim is None or self.dim >= 1, "--dim", "at least 1", self.dim)
        wide = MOST_HELD // 100
        require((self.dim or 1) <= wide, "--dim", f"at most {wide:,}", f"{self.dim or 1:,}")
        held = (self.dim or 1) * self.draws  # numbers in memory, several times over
        few = f"{MOST_HELD:,} numbers in memory at most"
        got = f"{held:,} (--dim times --draws)"
        require(held <= MOST_HELD, "--draws", few, got, f"--draws {MOST_HELD // (self.dim or 1)}")
        require(self.components >= 1, "--components", "at least 1", self.components)
        both = self.direction == "both"
        require(not (both and self.out), "--out", "one direction", "both")
        require(not (both and self.family != "auto"), "--family", "one direction", "both")
        require(not (both and self.reference), "--reference", "one direction", "both")
        if self.plot is not None:
            check_new("--plot", self.plot, ".svg", force=self.force)
        if self.out is not None:
            folder = not self.out.exists() or self.out.is_dir()
            require(folder, "--out", "a folder", str(self.out))
            new = self.force or not (self.out / "fit.json").exists()
            require(new, "--out", "a folder without a fit", str(self.out), "--force")
