"""Kinds of data and the likelihoods that fit them: names only, no torch."""

from kullback.core import require

__all__ = ["KINDS", "LIKELIHOODS", "choose"]

KINDS = ("binary", "8-bit", "levels", "continuous")

LIKELIHOODS = {
    "bernoulli": ("binary",),
    "logistics": ("8-bit", "levels"),
    "categorical": ("8-bit", "levels"),
    "gaussian": ("continuous",),
}
_REASONS = {
    "binary": ("bernoulli", "the data are 0 and 1"),
    "8-bit": ("logistics", "the data are 8-bit levels"),
    "levels": ("logistics", "the data are equally spaced levels"),
    "continuous": ("gaussian", "the data are continuous"),
}


def choose(kind: str, name: str = "auto") -> tuple[str, str]:
    """Pick a likelihood for data of a kind and say why, or refuse one that does not fit.

    kind: "binary", "8-bit", "levels" or "continuous". name: one of `LIKELIHOODS` or "auto".
    Returns (name, reason). Errors: ValueError where the pair is not a likelihood, with the reason.

    >>> choose("8-bit")
    ('logistics', 'the data are 8-bit levels')
    """
    require(
        name == "auto" or name in LIKELIHOODS,
        "likelihood",
        f"auto or one of {[*LIKELIHOODS]}",
        name,
    )
    best, reason = _REASONS[kind]
    if name == "auto":
        return best, reason
    why = {
        ("8-bit", "bernoulli"): "grey levels are not outcomes of a coin; pass binarize='dynamic' "
        "to make them so, or likelihood='logistics'",
        ("8-bit", "gaussian"): "a continuous density on 8-bit levels has no maximum (the error "
        "goes to 0, the density to infinity), so its figure would mean nothing; use 'logistics'",
        (
            "levels",
            "gaussian",
        ): "a continuous density on levels has no maximum; use 'logistics', or "
        "read the data with levels='none'",
        ("binary", "gaussian"): "a continuous density on bits has no maximum; use 'bernoulli'",
    }.get((kind, name), f"use {best!r}")
    require(kind in LIKELIHOODS[name], "likelihood", f"one that fits {kind} data", repr(name), why)
    return name, "as asked"
