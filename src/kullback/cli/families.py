"""Named distributions: `normal(0, 1)` and `0.5*normal(-2, 1) + 0.5*normal(2, 1)`, read by hand.

The text is matched piece by piece; nothing in it is ever run.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentValueError, require
from kullback.core.checks import message

__all__ = ["FAMILIES", "Family", "parse"]


class Family(NamedTuple):
    """A family: its class, how it is written, and whether several of it can be mixed."""

    make: Any
    usage: str
    mixes: bool = True


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a mixture as written: its weight, family name and parameters."""

    weight: float
    name: str
    parameters: dict[str, Any]


FAMILIES = {
    "bernoulli": Family(families.Bernoulli, "bernoulli(probs in 0..1)"),
    "beta": Family(families.Beta, "beta(concentration1 > 0, concentration0 > 0)"),
    "binomial": Family(
        families.Binomial, "binomial(total_count = 0, 1, ..., probs in 0..1)", mixes=False
    ),
    "categorical": Family(None, "categorical(p1, p2, ...), which sum to 1", mixes=False),
    "cauchy": Family(families.Cauchy, "cauchy(loc, scale > 0)"),
    "dirichlet": Family(families.Dirichlet, "dirichlet(c1, c2, ...), each > 0", mixes=False),
    "exponential": Family(families.Exponential, "exponential(rate > 0)"),
    "gamma": Family(families.Gamma, "gamma(concentration > 0, rate > 0)"),
    "geometric": Family(families.Geometric, "geometric(probs in 0..1), counting failures"),
    "laplace": Family(families.Laplace, "laplace(loc, scale > 0)"),
    "lognormal": Family(families.LogNormal, "lognormal(loc, scale > 0), those of log x"),
    "normal": Family(families.Normal, "normal(loc, scale > 0)"),
    "poisson": Family(families.Poisson, "poisson(rate > 0)"),
    "student_t": Family(families.StudentT, "student_t(df > 0, loc = 0, scale = 1)"),
    "uniform": Family(families.Uniform, "uniform(low, high > low)", mixes=False),
}
LISTS = {"categorical": "probs", "dirichlet": "concentration"}
DEFAULTS = {"student_t": {"loc": 0.0, "scale": 1.0}}

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TERM = re.compile(rf"\s*(?:({NUMBER})\s*\*\s*)?([A-Za-z_]\w*)\s*\(([^()]*)\)\s*")
ARGUMENT = re.compile(rf"\s*(?:([A-Za-z_]\w*)\s*=\s*)?({NUMBER})\s*")


def parse(text: str, *, name: str = "P", normalise: bool = False) -> Any:
    """Turn a name with numbers into a torch distribution, or a table for `categorical`; float64.

    text: `family(number, key=number)`, or a mixture of one family, `w*family(…) + w*family(…)`,
    whose weights sum to 1 unless `normalise`.
    Errors: `ArgumentValueError` that lists the known families, shows how one is written, or says
    which part cannot be read.

    >>> parse("normal(0, scale=2)").scale
    tensor(2., dtype=torch.float64)
    """
    terms = _terms(text, name)
    if terms[0].name == "categorical":
        return terms[0].parameters["probs"]
    made = terms[0].parameters
    if len(terms) > 1:
        made = {key: torch.stack([term.parameters[key] for term in terms]) for key in made}
    family = FAMILIES[terms[0].name]
    try:
        distribution = family.make(**made, validate_args=True)
    except ValueError as error:
        raise ArgumentValueError(message(name, family.usage, repr(text))) from error
    if len(terms) == 1:
        return distribution
    weights = torch.tensor([term.weight for term in terms], dtype=torch.float64)
    total = float(weights.sum())
    good = bool((weights > 0).all()) and (normalise or abs(total - 1) <= 1e-6)
    require(good, name, "weights above 0 that sum to 1", f"a sum of {total:g}", "--normalise")
    return families.MixtureSameFamily(families.Categorical(weights), distribution)


def _terms(text: str, name: str) -> list[Term]:
    """Read `term + term + …`, all of one family that can be mixed."""
    terms, place = [], 0
    while True:
        found = TERM.match(text, place)
        if found is None:
            _refuse(text, place, name)
        weight, family, arguments = found.groups()
        terms.append(_term(family, arguments, name, weight))
        place = found.end()
        if place == len(text):
            break
        if text[place] != "+":
            _refuse(text, place, name)
        place += 1
    single = len(terms) == 1
    lone = not single or terms[0].weight == 1
    require(lone, name, "weights that sum to 1", f"a single {terms[0].weight:g}*…", "w*… + w*…")
    known = {term.name for term in terms}
    require(single or len(known) == 1, name, "a mixture of one family", " and ".join(sorted(known)))
    mixable = single or FAMILIES[terms[0].name].mixes
    able = ", ".join(key for key, family in FAMILIES.items() if family.mixes)
    require(mixable, name, f"a mixture of one of {able}", terms[0].name)
    return terms


def _refuse(text: str, place: int, name: str) -> NoReturn:
    got = f"{text[place:].strip()!r}" if place < len(text) else "nothing"
    where = f" after {text[:place]!r}" if place else ""
    expected = f"family(number, ...), such as normal(0,1){where}"
    raise ArgumentValueError(message(name, expected, got))


def _term(family: str, arguments: str, name: str, weight: str | None) -> Term:
    key = family.lower()
    if key not in FAMILIES:
        near = difflib.get_close_matches(key, FAMILIES, n=1, cutoff=0.5)
        hint = f"did you mean {FAMILIES[near[0]].usage}?" if near else ""
        expected = f"one of {', '.join(FAMILIES)}"
        raise ArgumentValueError(message(name, expected, repr(family), hint))
    values = _arguments(key, arguments, name)
    return Term(1.0 if weight is None else float(weight), key, values)


def _arguments(family: str, text: str, name: str) -> dict[str, Tensor]:
    """Match numbers to parameters, by place and then by name."""
    usage = FAMILIES[family].usage
    given: list[tuple[str | None, float]] = []
    for part in text.split(",") if text.strip() else []:
        found = ARGUMENT.fullmatch(part)
        require(found is not None, name, f"{usage} with plain numbers", repr(part.strip()))
        if found is not None:
            given.append((found[1], float(found[2])))
    if family in LISTS:
        plain = len(given) >= 2 and all(key is None for key, _ in given)
        require(plain, name, usage, f"{family}({text})")
        return {LISTS[family]: torch.tensor([value for _, value in given], dtype=torch.float64)}
    known = re.findall(r"[(,]\s*([a-z]\w*)", usage.split(")")[0])
    values = dict(DEFAULTS.get(family, {}))
    taken = set()
    for place, (key, value) in enumerate(given):
        slot = key or (known[place] if place < len(known) else "")
        require(slot in known and slot not in taken, name, usage, f"{family}({text})")
        taken.add(slot)
        values[slot] = value
    require(set(values) == set(known), name, usage, f"{family}({text})")
    return {key: torch.tensor(values[key], dtype=torch.float64) for key in known}
