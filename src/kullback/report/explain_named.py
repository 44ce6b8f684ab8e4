"""Explanations of entropies and divergences of named distributions, and of the estimators.

Which to use: `explain_named` for the formula and the numbers in both directions;
`explain_estimators` for k1, k2, k3 and the best λ with their biases (MATH 5).
"""

import math
from typing import Any

import torch
from torch.distributions import Distribution

from kullback.core import ArgumentTypeError, Estimate
from kullback.exact import mixture_kl_bounds
from kullback.sampled import Support, divergences

from .divergence_plot import NAMES, NUMBERS, estimators
from .explain_tables import DIRECTIONS, SUM, log_sign
from .limits import EQUAL_BITS
from .text_layout import UNITS, aligned, measured_text, number, value_text

__all__ = ["explain_estimators", "explain_named"]

TERMS = {
    "k1": ("−log r", "unbiased; terms of both signs, so a large variance"),
    "k2": ("½ (log r)²", "biased: its mean is ½ E[log² r], near KL when P ≈ Q"),
    "k3": ("(r − 1) − log r", "unbiased, no term below 0; large variance if r has a heavy tail"),
    "best": ("−log r + λ (r − 1)", "unbiased (cross-fitted); λ = λ*, the λ of least variance"),
}


def explain_named(
    quantity: str, p: Distribution, q: Distribution | None = None, *, unit: str, **how: Any
) -> str:
    """Explain "entropy", "cross-entropy", "kl" or "js" of torch distributions, in `unit`.

    Args:
        quantity: One of the four names.
        p: P.
        q: Q; None for the entropy.
        unit: "nats" or "bits".
        **how: `draws` and `seed` for the numbers that have no closed form.

    Returns:
        The text.

    Example:
        >>> text = explain_named("entropy", torch.distributions.Normal(0.0, 1.0), unit="nats")
        >>> "H(P) = −E_P[ln p(x)] = 1.4189 nats" in text
        True
    """
    if q is None:
        return "\n".join(_entropy(p, unit, how))
    return "\n".join(_js(p, q, unit, how) if quantity == "js" else _pair(p, q, unit, how))


def explain_estimators(
    p: Distribution, q: Distribution, *, unit: str, draws: int, seed: int, exact: float | None
) -> str:
    """Explain k1, k2, k3 and the best λ with what each gives on the same draws from p.

    Args:
        p: P.
        q: Q.
        unit: "nats" or "bits".
        draws: Samples from P, the same for every estimator.
        seed: Of the samples.
        exact: KL(p‖q) in nats where it is known.

    Returns:
        The text, with the λ* that the samples give (MATH 5.5).

    Example:
        >>> p, q = (torch.distributions.Normal(torch.tensor(m), 1.0) for m in (0.0, 1.0))
        >>> text = explain_estimators(p, q, unit="nats", draws=100, seed=0, exact=0.5)
        >>> text.splitlines()[0]
        'The estimators, on the same 100 draws x from P, r = q(x)/p(x), E_P[r] = 1'
    """
    count = min(draws, NUMBERS)
    seeded = torch.Generator().manual_seed(seed)
    each = estimators(p, q, draws=count, generator=seeded)
    known = Support.of(p, q)
    mean = f"{1 + float(known.gap):.3g}" if bool(known.centred) else "M, not known"
    mean = mean if mean in ("1", "M, not known") else f"M = {mean}"
    rows = [["", "mean of", f"value, {unit}", ""]]
    for name, estimate in each.items():
        value = float(estimate.value) / UNITS[unit]
        error = float(estimate.standard_error) / UNITS[unit]
        term, words = TERMS[name]
        shown = Estimate(value, error, count, unit="", no_error=estimate.no_error).brief
        term = term.replace("− 1)", "− M)") if mean != "1" else term  # M: the mean of r, above
        rows.append([NAMES[name], term, shown, words])
    if exact is not None:
        rows.append(["exact", "", number(exact / UNITS[unit]), "no draws needed"])
    return "\n".join(
        [
            f"The estimators, on the same {count:,} draws x from P, r = q(x)/p(x), E_P[r] = {mean}",
            *(f"  {line}" for line in aligned(rows, left=(0, 1, 2, 3))),
            f"  {_best(each)}",
            "  ± is one standard error; k2's bias is not part of it.",
            "  k3 and λ use E_P[r], which is Q's mass on the support of P. Where Q has the heavier",
            "  tails, few samples show the large r: use k1 then.",
        ]
    )


def _best(each: dict[str, Estimate]) -> str:
    """Say which λ* the samples gave: with cross-fitting one for each half of them."""
    formula = "λ* = Cov(log r, r) / Var(r) (MATH 5.5)"
    k1, k2 = float(each["k1"].value), float(each["k2"].value)
    if math.isclose(k2, 0.5 * k1**2, rel_tol=EQUAL_BITS):  # the mean of squares is the squared mean
        return f"{formula}: r is constant, so every λ gives the same value."
    how = each["best"].how
    if how.startswith("k1"):
        return f"{formula}: λ = 0 is used ({how})."
    return f"{formula}, estimated from the samples: {how.replace('best λ', 'λ*')}."


def _seeded(how: dict[str, Any]) -> dict[str, Any]:
    """Turn `draws` and `seed` into the arguments of a measurement, with a fresh generator."""
    generator = torch.Generator().manual_seed(how.get("seed", 0))
    return {"draws": how.get("draws", 10_000), "generator": generator}


def _entropy(p: Distribution, unit: str, how: dict[str, Any]) -> list[str]:
    log, value = log_sign(unit), measured_text(divergences.entropy(p, **_seeded(how)), unit)
    lines = [
        "What it is",
        f"  entropy: H(P) = −E_P[{log} p(x)] = {value}",
    ]
    if p.support.is_discrete:  # type: ignore[union-attr]
        return [*lines, "  It is the mean code length of the best code for samples from P."]
    return [*lines, *_DIFFERENTIAL]


def _pair(p: Distribution, q: Distribution, unit: str, how: dict[str, Any]) -> list[str]:
    log = log_sign(unit)

    def both(function: Any) -> list[str]:
        return [value_text(function(a, b, **_seeded(how)), unit) for a, b in ((p, q), (q, p))]

    rows = [
        ["", "KL(P‖Q)", "KL(Q‖P)"],
        ["first, second", "P, Q", "Q, P"],
        ["entropy of the first", *both(lambda a, _, **k: divergences.entropy(a, **k))],
        ["cross-entropy", *both(divergences.cross_entropy)],
        ["KL, the extra", *both(divergences.kl)],
        *(list(row) for row in DIRECTIONS),
    ]
    formulas = [
        ["entropy", f"H(P) = −E_P[{log} p]", "mean code length of the best code for P"],
        [
            "cross-entropy",
            f"H(P, Q) = −E_P[{log} q]",
            "mean code length when samples from P are coded for Q",
        ],
        [
            "KL divergence",
            f"KL(P‖Q) = H(P, Q) − H(P) = E_P[{log} p/q]",
            "the extra code length",
        ],
    ]
    discrete = bool(p.support.is_discrete)  # type: ignore[union-attr]
    return [
        "What it is (P: where the samples come from; Q: the model)",
        *(f"  {line}" for line in aligned(formulas, left=(0, 1, 2))),
        *([] if discrete else _DIFFERENTIAL),
        "",
        "The two directions",
        *(f"  {line}" for line in aligned(rows, left=(0, 1, 2))),
        "  (with ± from draws, the others closed forms)",
        *SUM,
        *_bounds(p, q, unit),
    ]


def _js(p: Distribution, q: Distribution, unit: str, how: dict[str, Any]) -> list[str]:
    value, top = (
        measured_text(divergences.js(p, q, **_seeded(how)), unit),
        number(UNITS["bits"] / UNITS[unit]),
    )
    back = [measured_text(divergences.kl(a, b, **_seeded(how)), unit) for a, b in ((p, q), (q, p))]
    return [
        "What it is: the mean of two KL divergences, each to the average M = ½P + ½Q",
        f"  JS(P, Q) = ½ KL(P‖M) + ½ KL(Q‖M) = {value}",
        f"  It is symmetric and at most {top} {unit}: the mutual information between one",
        "  sample and the fair coin that chose between P and Q.",
        f"  KL(P‖Q) = {back[0]}",
        f"  KL(Q‖P) = {back[1]}",
    ]


def _bounds(p: Distribution, q: Distribution, unit: str) -> list[str]:
    """Give the proved bounds between Gaussian mixtures, where they say more than the value."""
    mixtures = any(isinstance(d, torch.distributions.MixtureSameFamily) for d in (p, q))
    try:
        both = [mixture_kl_bounds(p, q), mixture_kl_bounds(q, p)] if mixtures else []
    except ArgumentTypeError:
        return []
    names = ("KL(P‖Q)", "KL(Q‖P)")
    return [
        f"  proved: {number(float(low) / UNITS[unit])} ≤ {name} ≤ "
        f"{number(float(high) / UNITS[unit])} {unit}"
        for name, (low, high) in zip(names, both, strict=False)
    ]


_DIFFERENTIAL = (
    "  For densities H depends on the unit of x, may be negative, and is no code length;",
    "  their difference, KL, does not depend on it and means the same as between tables.",
)
