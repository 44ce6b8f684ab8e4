"""What an audit found, as records that print and become JSON, and in words.

Which to use: `Audit` is what `kullback.tokens.audit` returns; `Finding` is what the loss descends
on- or off-policy, `Row` the figures of one world; `verdict` and `notes` put them into words.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from kullback.core import json_value
from kullback.tokens import limits

from .matching import REVERSE

__all__ = ["Audit", "Finding", "Likeness", "Row", "descent", "notes", "percent", "verdict"]


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near a field of gradients is to a divergence's: ‖field − s·∇D‖/‖s·∇D‖ and the cosine.

    Of a field that is zero but for rounding the error is 1 and the cosine 0.

    Example:
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

    Attributes:
        vocabulary: How many tokens there are.
        length: How many tokens a sequence has.
        distance: "near" or "far", of policy and reference.
        on_policy: Whether the policy draws the sequences.
        kl: KL(policy‖ref) of whole sequences, in nats.
        value: The loss's expected value.
        bias: ‖E[g]/s − ∇D‖/‖∇D‖ for the divergence D that the finding names, s its factor.
        noise: √E‖g/s − E[g]/s‖²/‖∇D‖ of one batch, None where no divergence is named.
        best_noise: That of the least noisy unbiased estimator that we know, from one sequence, None
            where we know none.
        dead_tokens: The share of sampled tokens with a gradient of exactly zero though policy and
            reference differ at them.
        dead_sequences: The share of sequences with no gradient at all.
        dead_where_ref: The share of such tokens among those the reference would have written.
        not_finite: The share of sequences with inf or NaN.
        comparisons: How near the expected gradient is to KL either way and to JSD(½).
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

    Attributes:
        on_policy: Whether the policy draws the sequences.
        kind: "exact" (a multiple of one divergence's gradient in every world), "sum" (of several),
            "near" (exact only where policy and reference are near), "zero" (nothing on average),
            "near zero" (that where they are near), "none" (of the list; then `descends` is the
            closest) or "not finite".
        descends: The divergence or sum.
        level: "token" or "sequence".
        error: The largest relative error over all worlds.
        cosine: The smallest cosine over all worlds.
        near_error: The largest error over worlds where policy and reference are near.
        scale: By length T, the loss's gradient as a multiple.
        ascends: Whether the sign is the wrong way round.
        gradient_of: For kind "none", of what the field is a gradient at all: of some function of
            "sequences", of "tokens" only, or of "nothing"; "unknown" where gradients are rounded
            too coarsely to tell, as in half precision.
        value: The divergence that the *value* of the loss is, on average, or "".
    """

    on_policy: bool
    kind: str
    descends: str = ""
    level: str = ""
    error: float = 1.0
    cosine: float = 0.0
    near_error: float = 1.0
    scale: dict[int, float] = field(default_factory=dict)
    ascends: bool = False
    gradient_of: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """The report of an audit: a verdict in words, what is behind it, and figures of every world.

    `print(audit)` is the verdict; `to_json()` everything, ready for `json.dumps`.

    Attributes:
        name: The loss's name.
        form: As audited; so are credit, importance and batch.
        credit: Whose score a token's penalty multiplies.
        importance: How penalties are weighted off-policy.
        batch: Sequences at a time.
        arguments: Parameter name to what was passed.
        on_policy: What the loss descends on-policy.
        off_policy: What it descends off-policy.
        rows: The figures, one record a world.
        response: Pairs of log policy/ref of a token and how hard the loss pushes its
            log-probability there.
        lengths: Relative error in a world whose sequences have different lengths, None where not
            looked at.
        padding: Whether padding is pushed too.
        verdict: What is descended, in words.
        notes: What a user should know, a sentence each.
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
        return tuple((low, high) for low, high in zones if high - low >= limits.DEAD_ZONE)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; figures that are not finite become strings."""
        fields: dict[str, Any] = json_value(asdict(self))
        return {"format": 1, "unit": "nats", **fields, "dead_zones": json_value(self.dead_zones)}


LEVELS = {
    "token": ", token by token",
    "sequence": ", of whole sequences",
    "token, policy's prefixes": ", token by token, at prefixes as the policy would draw them",
    "token, ref's prefixes": ", token by token, at prefixes as the reference would draw them",
}


def percent(share: float) -> str:
    """Print a share in percent: 0 and 100 only when they are that; three digits at most.

    >>> percent(0.527), percent(0.0004), percent(0.0)
    ('53 %', '0.04 %', '0 %')
    """
    if share != share or share > limits.MOST_PERCENT:
        return f"{share:.3g} times"
    if share == 0 or share >= limits.TWO_DIGITS:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %"


def descent(finding: Finding) -> str:
    """Say what a loss descends in one regime, as the end of a sentence that begins with 'it'.

    Args:
        finding: What was found in the regime.

    Returns:
        Words without a full stop.

    Example:
        >>> descent(Finding(on_policy=True, kind="zero"))
        'descends nothing: its expected gradient is zero'
    """
    way = "ASCENDS" if finding.ascends else "descends"
    named = f"{finding.descends}{LEVELS.get(finding.level, '')}"
    if finding.kind == "zero":
        return "descends nothing: its expected gradient is zero"
    if finding.kind == "near zero":
        return "descends nothing while policy and reference are near, and far apart no divergence"
    if finding.kind == "not finite":
        return "has gradients that are not finite"
    if finding.kind in ("exact", "sum"):
        return f"{way} {named}"
    off = f"{percent(finding.error)} off, cosine {finding.cosine:.2f}, at the worst"
    if finding.kind == "near":
        return f"{way} {named}, while policy and reference are near; far apart it does not ({off})"
    start = {
        "sequences": "descends no divergence in the list",
        "tokens": "descends, token by token, no divergence in the list",
        "unknown": "descends no divergence in the list up to its rounding, which is coarse "
        "(half precision?)",
    }.get(finding.gradient_of, "follows a field that is the gradient of no function")
    return f"{start}; closest is {'minus ' if finding.ascends else ''}{named} ({off})"


def verdict(on_policy: Finding, off_policy: Finding) -> str:
    """Return the verdict: what is descended on- and off-policy, and what the value is instead."""
    first, second = descent(on_policy), descent(off_policy)
    if first == second:
        text = f"On- and off-policy it {first}."
    else:
        text = f"On-policy it {first}. Off-policy it {second}."
    if on_policy.value and on_policy.kind != "not finite":
        if on_policy.kind == "exact" and on_policy.descends == on_policy.value:
            return text
        text += f" Its value on-policy is {on_policy.value}; its gradient is not that one's."
    return text


def notes(found: Audit) -> tuple[str, ...]:
    """Say what else a user should know, a sentence each."""
    sentences = []
    if any(_partial(one) for one in found.findings):
        sentences.append(
            "token by token, what a token does to the prefixes that follow it is not counted; "
            "k1 as a penalty with reward-to-go counts it"
        )
    if found.dead_zones:
        where = ", or ".join(_range(low, high) for low, high in found.dead_zones)
        sentences.append(f"a token gets no gradient at all where log policy/ref is {where}")
    dead = max(row.dead_tokens for row in found.rows)
    dead_ref = max(row.dead_where_ref for row in found.rows)
    if dead > 0:
        sentences.append(
            f"in the worst world {percent(dead)} of the sampled tokens, and {percent(dead_ref)} of "
            "those the reference would write, get no gradient though the policies differ there"
        )
    if found.padding:
        sentences.append("padding is pushed too: the mask does not reach everything")
    if found.lengths is not None and found.lengths > limits.EXACT_MATCH:
        sentences.append(
            f"with sequences of different lengths, one at a time, it is {percent(found.lengths)} "
            "off: a mean over each sequence's own tokens weighs those of short sequences more"
        )
    if not {"mask", "bool_mask", "labels"} & set(found.arguments.values()):
        sentences.append("it takes no mask: looked at in sequences of one length only")
    return tuple(sentences)


def _partial(one: Finding) -> bool:
    """Whether a finding is KL(policy‖ref) without what the tokens lead to."""
    return one.kind in ("exact", "near") and (one.descends, one.level) == (REVERSE, "token")


def _range(low: float, high: float) -> str:
    end = limits.FURTHEST_PUSH
    if low <= -end:
        return f"below {high:.1f}"
    return f"above {low:.1f}" if high >= end else f"between {low:.1f} and {high:.1f}"
