"""What an audit found: dataclasses that print, and go to JSON and back to nothing.

Which to use: `Audit` is what `kullback.tokens.audit` returns; `Finding` is what the loss descends
on- or off-policy, `Row` the figures of one world.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Audit", "Finding", "Likeness", "Row"]


@dataclass(frozen=True, slots=True)
class Likeness:
    """How a field of gradients lies to a divergence's: ‖field − s·∇D‖/‖s·∇D‖ and the cosine.

    >>> Likeness("KL(policy‖ref)", "token", 0.5, 0.9).level
    'token'
    """

    divergence: str
    level: str
    error: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Row:
    """One world: how near the expected gradient is to each divergence's, and how noisy one draw is.

    kl: KL(policy‖ref) of whole sequences there, in nats. value: the loss's expected value.
    bias: ‖E[g]/s − ∇D‖/‖∇D‖ for the divergence D that the finding names, s its factor. noise:
    √E‖g/s − E[g]/s‖²/‖∇D‖ of one batch, None where no divergence is named; best_noise: that of
    the least noisy unbiased estimator that we know, from one sequence, None where we know none.
    dead_tokens: the share of sampled tokens with a gradient of exactly zero though policy and
    reference differ at them; dead_sequences: of sequences with no gradient at all;
    dead_where_ref: of the tokens that the reference would have written. not_finite: the share of
    sequences with inf or NaN.
    """

    vocabulary: int
    length: int
    distance: str
    on_policy: bool
    kl: float
    value: float
    bias: float
    noise: float | None
    best_noise: float | None
    dead_tokens: float
    dead_sequences: float
    dead_where_ref: float
    not_finite: float
    comparisons: tuple[Likeness, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a loss descends in one regime.

    kind: "exact" (a multiple of one divergence's gradient in every world), "sum" (of several),
    "near" (exact only where policy and reference are near), "zero" (nothing on average), "near
    zero" (that where they are near), "none" (of the list; then `descends` is the closest) or "not
    finite". descends: the divergence or sum;
    level: "token" or "sequence". error, cosine: the worst over all worlds; near_error over those
    where policy and reference are near. scale: by length T, the loss's gradient as a multiple.
    ascends: the sign is the wrong way round. gradient_of: for kind "none", of
    what the field is a gradient at all: of some function of "sequences", of "tokens" only, or of
    "nothing". value: the divergence that the
    *value* of the loss is, on average, or "".
    """

    on_policy: bool
    kind: str
    descends: str
    level: str
    error: float
    cosine: float
    near_error: float
    scale: dict[int, float]
    ascends: bool
    gradient_of: str
    value: str


@dataclass(frozen=True, slots=True)
class Audit:
    """The report of an audit: a verdict in words, what is behind it, and figures of every world.

    name: of the loss. form, credit, importance, batch: as audited. arguments: parameter name to
    what was passed. on_policy, off_policy: the findings. rows: one a world. response: pairs of
    log policy/ref of a token and how hard the loss pushes its log-probability there. lengths:
    relative error in a world whose sequences have different lengths, None where not looked at.
    padding: whether padding is pushed too. notes: what a user should know, a sentence each.

    `print(audit)` is the verdict; `to_json()` everything, ready for `json.dumps`.
    """

    name: str
    form: str
    credit: str
    importance: str
    batch: int
    arguments: dict[str, str]
    on_policy: Finding
    off_policy: Finding
    rows: tuple[Row, ...]
    response: tuple[tuple[float, float], ...]
    lengths: float | None
    padding: bool
    verdict: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return self.verdict

    @property
    def findings(self) -> tuple[Finding, Finding]:
        """Both findings, on-policy first."""
        return self.on_policy, self.off_policy

    @property
    def dead_zones(self) -> tuple[tuple[float, float], ...]:
        """Ranges of log policy/ref, 0.5 nats wide or wider, in which a token is not pushed at all.

        Only up to 24 nats either way, where ranges end because the look ends.
        """
        zones: list[list[float]] = []
        still = False
        for x, push in self.response:
            if push == 0.0 and still:
                zones[-1][1] = x
            elif push == 0.0:
                zones.append([x, x])
            still = push == 0.0
        return tuple((low, high) for low, high in zones if high - low >= 0.5)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; figures that are not finite become strings."""
        fields: dict[str, Any] = _plain(asdict(self))
        return {"format": 1, "unit": "nats", **fields, "dead_zones": _plain(self.dead_zones)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value
