"""The verdict of an audit in words, and the notes that belong to it.

Which to use: `verdict`, `notes`.
"""

from .findings import Audit, Finding
from .matching import EXACT
from .targets import REVERSE

__all__ = ["descent", "notes", "percent", "verdict"]

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
    if share != share or share > 9.995:
        return f"{share:.3g} times"
    if share == 0 or share >= 0.01:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %"


def descent(finding: Finding) -> str:
    """Say what a loss descends in one regime, as the end of a sentence that begins with 'it'.

    >>> one = Finding(True, "zero", "", "", 1.0, 0.0, 1.0, {}, False, "", "")
    >>> descent(one)
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
    }.get(finding.gradient_of, "follows a field that is the gradient of nothing")
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
    said = []
    if any(_partial(one) for one in found.findings):
        said.append(
            "token by token, what a token does to the prefixes that follow it is not counted; "
            "k1 as a penalty with reward-to-go counts it"
        )
    if found.dead_zones:
        where = ", or ".join(_range(*zone) for zone in found.dead_zones)
        said.append(f"a token gets no gradient at all where log policy/ref is {where}")
    dead = max(row.dead_tokens for row in found.rows)
    dead_ref = max(row.dead_where_ref for row in found.rows)
    if dead > 0:
        said.append(
            f"in the worst world {percent(dead)} of the sampled tokens, and {percent(dead_ref)} of "
            "those the reference would write, get no gradient though the policies differ there"
        )
    if found.padding:
        said.append("padding is pushed too: the mask does not reach everything")
    if found.lengths is not None and found.lengths > EXACT:
        said.append(
            f"with sequences of different lengths, one at a time, it is {percent(found.lengths)} "
            "off: a mean over each sequence's own tokens weighs those of short sequences more"
        )
    if not {"mask", "bool_mask", "labels"} & set(found.arguments.values()):
        said.append("it takes no mask: looked at in sequences of one length only")
    return tuple(said)


def _partial(one: Finding) -> bool:
    """Whether a finding is KL(policy‖ref) without what the tokens lead to."""
    return one.kind in ("exact", "near") and (one.descends, one.level) == (REVERSE, "token")


def _range(low: float, high: float) -> str:
    if low <= -23.9:
        return f"below {high:.1f}"
    return f"above {low:.1f}" if high >= 23.9 else f"between {low:.1f} and {high:.1f}"
