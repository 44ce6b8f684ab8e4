"""`kullback logprobs`: KL from logged log-probabilities of tokens, checked first."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kullback.core import printable

from .options import GateOptions, Real, Shared, about, exit_code
from .session import check_new, log, prepare, print_json, say, write

__all__ = ["logprobs"]


@dataclass(kw_only=True)
class LogProbOptions(GateOptions):
    """Which columns stand for what, what is asked, and what fails."""

    p: Annotated[str | None, about("Column of log p, or a file of one model's answers.")] = None
    q: Annotated[
        list[str] | None, about("Column of log q, or a file; repeatable: compared in pairs.")
    ] = None
    drawn_from: Annotated[
        Literal["p", "q", "behaviour", "data"],
        about("Whose draws the tokens are; data: nobody's, log-likelihoods are compared."),
    ] = "p"
    by: Annotated[list[str] | None, about("Columns to group by, such as step.")] = None
    behaviour: Annotated[
        str | None, about("Column of the log-probabilities that the tokens were drawn by.")
    ] = None
    entropy: Annotated[
        str | None, about("Column of the entropy of what drew the tokens, a check.")
    ] = None
    mask: Annotated[list[str] | None, about("Columns that are true where a token counts.")] = None
    sequence: Annotated[list[str] | None, about("Columns that name a sequence together.")] = None
    prompt: Annotated[str | None, about("Column of the prompt that sequences share.")] = None
    position: Annotated[str | None, about("Column of a token's position in its sequence.")] = None
    policy_version: Annotated[str | None, about("Column of the policy's version.")] = None
    length: Annotated[str | None, about("Column of how many tokens of a sequence count.")] = None
    missing: Annotated[
        Literal["refuse", "skip"], about("Tokens without a log-probability: refuse, or skip.")
    ] = "refuse"
    clip: Annotated[Real, about("The ratio is clipped outside 1 ± this.")] = 0.2
    engine: Annotated[
        str | None, about("duckdb (in this process), spark, or a connection string.")
    ] = None
    json: Annotated[bool, about("Print one JSON object.")] = False
    html: Annotated[Path | None, about("Write a page with pictures to this .html file.")] = None
    force: Annotated[bool, about("Replace an existing file.")] = False

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        self.check_gate()
        if self.html is not None:
            check_new("--html", self.html, ".html", force=self.force)

    def arguments(self) -> dict[str, Any]:
        """Return what `kullback.lm.logprobs` is given."""
        same = ("p", "drawn_from", "behaviour", "entropy", "prompt", "position", "length")
        lists = ("q", "by", "mask", "sequence")
        given = {name: getattr(self, name) for name in (*same, "missing", "clip", "engine")}
        given |= {name: getattr(self, name) or () for name in lists}
        return given | {"version": self.policy_version, "details": self.html is not None}


def logprobs(
    *tables: Annotated[
        str, Parameter(help="Parquet, CSV or JSON lines: files, folders, patterns; or tables.")
    ],
    options: Annotated[LogProbOptions | None, Parameter(name="*")] = None,
    shared: Shared = None,
) -> int:
    """KL(P‖Q) from logged log-probabilities of tokens, a trainer's against a sampler's for example.

    Checks come first: values that are no log-probabilities, a late column, truncated sampling,
    another temperature, half precision, mixed versions. Then k1, k2, k3 and the best λ, a token and
    a sequence, with errors clustered by prompt or sequence.
    """
    prepare(shared)
    options = options or LogProbOptions()
    options.check()
    from kullback import lm
    from kullback import report as reports

    report = lm.logprobs(*tables, **options.arguments())
    log(f"read {report.source}")
    gate = options.gate(report)
    if options.json:
        print_json(report.to_dict() | {"gate": gate and asdict(gate)})
    else:
        write(printable(reports.logprobs_text(report)))
    if options.html is not None:
        reports.write_logprobs(report, options.html)
        say(f"page: {options.html}")
    return exit_code(gate)
