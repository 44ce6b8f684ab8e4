"""Named distributions: `normal(0, 1)` and `0.5*normal(-2, 1) + 0.5*normal(2, 1)`, read by hand.

The text is matched piece by piece; nothing in it is ever run. `FAMILIES` lists what there is,
`SPELLINGS` the other names of a family, `KEYS` the other names of its parameters.
"""

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributions as families
from torch import Tensor

from kullback.core import ArgumentValueError, message, require
from kullback.exact import InverseGaussian

from .typed_numbers import number, short, split_list, sums_to_one

__all__ = ["FAMILIES", "Family", "describe", "family_of", "parse"]


class Family(NamedTuple):
    """A family: its class, how it is written, and whether several of it can be mixed."""

    make: Any
    usage: str
    mixes: bool = True

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in order, as the class names them."""
        return tuple(re.findall(r"[(,]\s*([a-z]\w*)", self.usage.split(")")[0]))


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
    "chi2": Family(families.Chi2, "chi2(df > 0)"),
    "continuous_bernoulli": Family(
        families.ContinuousBernoulli, "continuous_bernoulli(probs above 0 and below 1)"
    ),
    "dirichlet": Family(families.Dirichlet, "dirichlet(c1, c2, ...), each > 0", mixes=False),
    "exponential": Family(families.Exponential, "exponential(rate > 0)"),
    "gamma": Family(families.Gamma, "gamma(concentration > 0, rate > 0)"),
    "generalized_pareto": Family(
        families.GeneralizedPareto,
        "generalized_pareto(loc, scale > 0, concentration)",
        mixes=False,
    ),
    "geometric": Family(families.Geometric, "geometric(probs in 0..1), counting failures"),
    "gumbel": Family(families.Gumbel, "gumbel(loc, scale > 0)"),
    "halfcauchy": Family(families.HalfCauchy, "halfcauchy(scale > 0)"),
    "halfnormal": Family(families.HalfNormal, "halfnormal(scale > 0)"),
    "inverse_gamma": Family(families.InverseGamma, "inverse_gamma(concentration > 0, rate > 0)"),
    "inverse_gaussian": Family(InverseGaussian, "inverse_gaussian(loc > 0, concentration > 0)"),
    "kumaraswamy": Family(
        families.Kumaraswamy, "kumaraswamy(concentration1 > 0, concentration0 > 0)"
    ),
    "laplace": Family(families.Laplace, "laplace(loc, scale > 0)"),
    "lognormal": Family(families.LogNormal, "lognormal(loc, scale > 0), those of log x"),
    "multivariate_normal": Family(
        families.MultivariateNormal,
        "multivariate_normal(loc, covariance_matrix), as in mvn([0,0], [[1,0.5],[0.5,1]])",
    ),
    "negative_binomial": Family(
        families.NegativeBinomial,
        "negative_binomial(total_count > 0, probs in 0..1), of mean "
        "total_count*probs/(1 - probs): probs is 1 - p of SciPy's nbinom(n, p)",
        mixes=False,
    ),
    "normal": Family(families.Normal, "normal(loc, scale > 0)"),
    "pareto": Family(families.Pareto, "pareto(scale > 0, alpha > 0)", mixes=False),
    "poisson": Family(families.Poisson, "poisson(rate > 0)"),
    "student_t": Family(families.StudentT, "student_t(df > 0, loc = 0, scale = 1)"),
    "uniform": Family(families.Uniform, "uniform(low, high > low)", mixes=False),
    "von_mises": Family(families.VonMises, "von_mises(loc, concentration > 0)"),
    "weibull": Family(families.Weibull, "weibull(scale > 0, concentration > 0)"),
}
LISTS = {"categorical": "probs", "dirichlet": "concentration"}
DEFAULTS = {"student_t": {"loc": 0.0, "scale": 1.0}}

# other names, without underscores and in small letters
SPELLINGS = {
    **{name.replace("_", ""): name for name in FAMILIES},
    **dict.fromkeys(("n", "norm", "gauss", "gaussian"), "normal"),
    **dict.fromkeys(("exp", "expon"), "exponential"),
    **dict.fromkeys(("u", "unif"), "uniform"),
    **dict.fromkeys(("t", "student"), "student_t"),
    **dict.fromkeys(("poi", "pois"), "poisson"),
    **dict.fromkeys(("bin", "binom"), "binomial"),
    **dict.fromkeys(("ber", "bern"), "bernoulli"),
    **dict.fromkeys(("geo", "geom"), "geometric"),
    **dict.fromkeys(("cat", "discrete"), "categorical"),
    **dict.fromkeys(("dir",), "dirichlet"),
    **dict.fromkeys(("lognorm",), "lognormal"),
    **dict.fromkeys(("halfnorm",), "halfnormal"),
    **dict.fromkeys(("invgamma",), "inverse_gamma"),
    **dict.fromkeys(("invgauss", "wald"), "inverse_gaussian"),
    **dict.fromkeys(("nb", "nbinom", "negbin", "negbinomial"), "negative_binomial"),
    **dict.fromkeys(("chisq", "chisquare", "chisquared"), "chi2"),
    **dict.fromkeys(("vonmises",), "von_mises"),
    **dict.fromkeys(("gpd", "genpareto", "generalisedpareto"), "generalized_pareto"),
    **dict.fromkeys(("mvn", "mvnormal", "multinormal"), "multivariate_normal"),
}


def _unchanged(value: Tensor) -> Tensor:
    return value


Key = tuple[str, Callable[[Tensor], Tensor]]
_same: Callable[[Tensor], Tensor] = _unchanged
_LOC: dict[str, Key] = dict.fromkeys(("mu", "mean", "m", "μ"), ("loc", _same))
_SCALE: dict[str, Key] = {
    **dict.fromkeys(("sd", "std", "sigma", "stddev", "s", "σ"), ("scale", _same)),
    **dict.fromkeys(("var", "variance"), ("scale", torch.sqrt)),
}
_RATE: dict[str, Key] = dict.fromkeys(("lam", "lambda", "λ"), ("rate", _same))
_SHAPE: dict[str, Key] = dict.fromkeys(("shape", "alpha", "a", "k", "α"), ("concentration", _same))
_BETA: dict[str, Key] = {
    **dict.fromkeys(("alpha", "a", "α"), ("concentration1", _same)),
    **dict.fromkeys(("beta", "b", "β"), ("concentration0", _same)),
}
_PROBS: dict[str, Key] = dict.fromkeys(("p", "prob"), ("probs", _same))
_DF: dict[str, Key] = dict.fromkeys(("nu", "dof", "ν"), ("df", _same))
# other names of parameters and what turns their value into the family's own
KEYS: dict[str, dict[str, Key]] = {
    "bernoulli": _PROBS,
    "beta": _BETA,
    "binomial": _PROBS | {"n": ("total_count", _same)},
    "cauchy": {"gamma": ("scale", _same), "γ": ("scale", _same), "x0": ("loc", _same)},
    "chi2": _DF,
    "continuous_bernoulli": _PROBS,
    "exponential": _RATE | {"scale": ("rate", torch.reciprocal)},
    "gamma": _SHAPE
    | {"beta": ("rate", _same), "β": ("rate", _same)}
    | {"scale": ("rate", torch.reciprocal), "theta": ("rate", torch.reciprocal)},
    "generalized_pareto": {"xi": ("concentration", _same), "ξ": ("concentration", _same)},
    "geometric": _PROBS,
    "halfnormal": {key: _SCALE[key] for key in ("sigma", "σ")},
    "inverse_gamma": _SHAPE
    | {"beta": ("rate", _same), "β": ("rate", _same), "scale": ("rate", _same)},
    "inverse_gaussian": {"mu": ("loc", _same), "lambda": ("concentration", _same)},
    "kumaraswamy": _BETA,
    "laplace": {"b": ("scale", _same), "mu": ("loc", _same), "μ": ("loc", _same)},
    "lognormal": {key: (_LOC | _SCALE)[key] for key in ("mu", "sigma", "s", "μ", "σ")},
    "multivariate_normal": _LOC,
    "negative_binomial": {"n": ("total_count", _same), "r": ("total_count", _same)},
    "normal": _LOC | _SCALE,
    "pareto": {"x_m": ("scale", _same), "a": ("alpha", _same), "α": ("alpha", _same)},
    "poisson": _RATE | {"mu": ("rate", _same), "mean": ("rate", _same)},
    "student_t": _DF | {key: (_LOC | _SCALE)[key] for key in ("mu", "sigma", "μ", "σ")},
    "uniform": {
        **dict.fromkeys(("a", "min", "lower"), ("low", _same)),
        **dict.fromkeys(("b", "max", "upper"), ("high", _same)),
    },
    "von_mises": {
        **dict.fromkeys(("mu", "μ"), ("loc", _same)),
        **dict.fromkeys(("kappa", "κ"), ("concentration", _same)),
    },
    "weibull": {
        **dict.fromkeys(("shape", "k", "c"), ("concentration", _same)),
        **dict.fromkeys(("lambda", "λ"), ("scale", _same)),
    },
}

WEIGHT = re.compile(r"\s*([^*·×(]+?)\s*[*·×]\s*")
NAME = re.compile(r"\s*([^\W\d][\w-]*)\s*\(")
ARGUMENT = re.compile(r"(?:([^\W\d]\w*)\s*[=:]\s*)?(.+)", re.DOTALL)


def parse(
    text: str, *, name: str = "P", normalise: bool = False, remedy: str = "--normalise"
) -> Any:
    """Turn a name with numbers into a torch distribution, or a table for `categorical`; float64.

    Args:
        text: `family(number, key=number)`, or a mixture of one family, `w*family(…) +
            w*family(…)`, whose weights sum to 1 unless `normalise`. Families and parameters have
            their usual other names (`SPELLINGS`, `KEYS`); the second number of a normal is its
            standard deviation.
        name: The argument's name in messages.
        normalise: Whether to divide the weights of a mixture by their sum.
        remedy: How the caller asks for that, for the message.

    Returns:
        A torch distribution, or a table `[outcomes]`.

    Raises:
        ValueError: Listing the known families, showing how one is written, or saying which part
            cannot be read.

    Example:
        >>> parse("normal(0, scale=2)").scale
        tensor(2., dtype=torch.float64)
        >>> parse("N(0, var=4)").scale
        tensor(2., dtype=torch.float64)
    """
    terms = _terms(text, name)
    if terms[0].name == "categorical":
        return terms[0].parameters["probs"]
    made = terms[0].parameters
    family = FAMILIES[terms[0].name]
    if len(terms) > 1:
        sizes = {tuple(value.shape) for term in terms for value in [*term.parameters.values()][:1]}
        require(len(sizes) == 1, name, "a mixture of one dimension", "several")
        made = {key: torch.stack([term.parameters[key] for term in terms]) for key in made}
    try:
        distribution = family.make(**made, validate_args=True)
    except ValueError as error:
        raise ArgumentValueError(message(name, family.usage, short(text))) from error
    if terms[0].name == "continuous_bernoulli":  # torch moves others by 2^-52: another law
        kept = torch.equal(distribution.probs, made["probs"])
        require(kept, name, family.usage, f"{short(text)}, nearer to 0 or 1 than 2^-52")
    if len(terms) == 1:
        return distribution
    weights = torch.tensor([term.weight for term in terms], dtype=torch.float64)
    total = float(weights.sum())
    good = bool((weights > 0).all()) and (normalise or sums_to_one(weights.tolist()))
    require(good, name, "weights above 0 that sum to 1", f"a sum of {total:g}", remedy)
    return families.MixtureSameFamily(families.Categorical(weights), distribution)


def family_of(text: str) -> str | None:
    """Return the family that a name stands for, or None.

    Args:
        text: A name as typed; case, hyphens and underscores do not matter.

    Returns:
        The key in `FAMILIES`, or None.

    Example:
        >>> family_of("Gaussian"), family_of("Student-t"), family_of("weird")
        ('normal', 'student_t', None)
    """
    key = text.strip().lower().replace("_", "").replace("-", "")
    return SPELLINGS.get(key)


def describe(text: str) -> str | None:
    """Say as what a text was read where it is not written in full: family and parameters.

    Args:
        text: What `parse` reads.

    Returns:
        The family and its parameters by name, or None where the text says as much.

    Example:
        >>> describe("N(0, 4)")
        'normal(loc 0, scale 4)'
        >>> describe("normal(0, 4)") is None
        True
    """
    terms = _terms(text, "P")
    written = re.findall(r"([^\W\d][\w-]*)\s*\(", text)
    keys = re.findall(r"([^\W\d]\w*)\s*[=:]", text)
    full = set(written) <= set(FAMILIES) and set(keys) <= set(FAMILIES[terms[0].name].parameters)
    parts = []
    for term in terms:
        inside = ", ".join(f"{key} {_shown(value)}" for key, value in term.parameters.items())
        weight = f"{term.weight:.6g}*" if len(terms) > 1 else ""
        parts.append(f"{weight}{term.name}({inside})")
    return None if full else " + ".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.tolist()
    return f"{value:.6g}" if isinstance(value, float) else f"[{', '.join(map(_shown, value))}]"


def _terms(text: str, name: str) -> list[Term]:
    """Read `term + term + …`, all of one family that can be mixed."""
    terms, place = [], 0
    while True:
        weight = WEIGHT.match(text, place)
        found = NAME.match(text, weight.end() if weight else place)
        end = -1 if found is None else _close(text, found.end() - 1)
        size = 1.0 if weight is None else number(weight[1])
        if found is None or end < 0 or size is None or not math.isfinite(size):
            _refuse(text, place, name)
        terms.append(_term(found[1], text[found.end() : end], name, size))
        place = end + 1 + len(text[end + 1 :]) - len(text[end + 1 :].lstrip())
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


def _close(text: str, place: int) -> int:
    """Return the place of the bracket that closes the one at `place`, or −1."""
    depth = 0
    for at in range(place, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return at
    return -1


def _refuse(text: str, place: int, name: str) -> NoReturn:
    got = short(text[place:].strip()) if place < len(text) else "nothing"
    where = f" after {short(text[:place])}" if place else ""
    expected = f"family(number, ...), such as normal(0,1){where}"
    raise ArgumentValueError(message(name, expected, got))


def _term(family: str, arguments: str, name: str, weight: float) -> Term:
    known = family_of(family)
    if known is None:
        near = difflib.get_close_matches(family.lower(), FAMILIES, n=1, cutoff=0.5)
        hint = f"did you mean {FAMILIES[near[0]].usage}?" if near else ""
        expected = f"one of {', '.join(FAMILIES)}"
        raise ArgumentValueError(message(name, expected, short(family), hint))
    given = _given(known, arguments, name)
    lists = any(isinstance(value, list) for _, value in given)
    known = "multivariate_normal" if known == "normal" and lists else known
    if known == "multivariate_normal":
        return Term(weight, known, _gaussian(given, name))
    if known in LISTS:
        return Term(weight, known, _list(known, given, name))
    usage = FAMILIES[known].usage
    require(not lists, name, usage, f"{family}({arguments})")
    return Term(weight, known, _numbers(known, given, name, f"{family}({arguments})"))


def _given(family: str, text: str, name: str) -> list[tuple[str | None, Any]]:
    """Read `value, key=value, …`; a value is a number or a list of them, in brackets."""
    usage = FAMILIES[family].usage
    parts = split_list(text) if text.strip() else []
    require(parts is not None, name, f"{usage} with plain numbers", short(text))
    given = []
    for part in parts or []:
        found = ARGUMENT.fullmatch(part)
        value = None if found is None else _value(found[2])
        hint = "sd=2 or var=4" if family == "normal" and set(part) & set("^²*") else ""
        finite = value is not None and _finite(value)
        expected = f"{usage} with {'plain' if value is None else 'finite'} numbers"
        require(finite, name, expected, short(part), hint)
        given.append((found[1] if found else None, value))
    return given


def _value(text: str, depth: int = 2) -> Any:
    """Read a number, or a list of numbers or lists; None for anything else."""
    text = text.strip()
    if not depth and text[:1] in ("[", "("):
        return None
    if not text.startswith(("[", "(")):
        return number(text)
    parts = split_list(text[1:-1]) if _close(text, 0) == len(text) - 1 else None
    values = None if parts is None else [_value(part, depth - 1) for part in parts]
    return None if values is None or None in values else values


def _finite(value: Any) -> bool:
    return all(map(_finite, value)) if isinstance(value, list) else math.isfinite(value)


def _list(family: str, given: list[tuple[str | None, Any]], name: str) -> dict[str, Any]:
    """Read the numbers of a family that takes any number of them, in brackets or not."""
    values = [value for _, value in given]
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    keys = {key for key, _ in given} <= {None, LISTS[family]}
    plain = keys and len(values) >= 2 and all(isinstance(value, float) for value in values)
    got = f"{family}({', '.join(map(_shown, values))})"
    require(plain, name, FAMILIES[family].usage, got)
    return {LISTS[family]: torch.tensor(values, dtype=torch.float64)}


def _numbers(
    family: str, given: list[tuple[str | None, Any]], name: str, text: str
) -> dict[str, Tensor]:
    """Match numbers to parameters, by place and then by name."""
    known, other = FAMILIES[family].parameters, KEYS.get(family, {})
    values: dict[str, Any] = dict(DEFAULTS.get(family, {}))
    taken = set()
    for place, (key, value) in enumerate(given):
        slot = key or (known[place] if place < len(known) else "")
        change = _same
        if slot not in known:
            slot, change = other.get(slot, other.get(slot.lower(), ("", _same)))
        require(slot in known and slot not in taken, name, FAMILIES[family].usage, text)
        taken.add(slot)
        values[slot] = float(change(torch.tensor(value, dtype=torch.float64)))
        require(math.isfinite(values[slot]), name, FAMILIES[family].usage, text)
    require(set(values) == set(known), name, FAMILIES[family].usage, text)
    return {key: torch.tensor(values[key], dtype=torch.float64) for key in known}


_MATRICES = {
    **dict.fromkeys(("cov", "covariance", "sigma", "Σ"), "covariance_matrix"),
    **dict.fromkeys(("precision",), "precision_matrix"),
    **dict.fromkeys(("chol", "cholesky", "tril"), "scale_tril"),
    **{name: name for name in ("covariance_matrix", "precision_matrix", "scale_tril")},
}


def _gaussian(given: list[tuple[str | None, Any]], name: str) -> dict[str, Tensor]:
    """Read a mean and a matrix, or standard deviations `sd=[…]` or variances `var=[…]`."""
    usage = FAMILIES["multivariate_normal"].usage
    require(len(given) == 2, name, usage, f"{len(given)} arguments")
    (loc_key, loc), (key, spread) = given
    right = loc_key is None or loc_key == "loc" or loc_key in _LOC
    require(right and _shape(loc) in {(n,) for n in range(1, 1000)}, name, usage, "another mean")
    mean, size = torch.tensor(loc, dtype=torch.float64), len(loc)
    shape = _shape(spread)
    if key in ("sd", "std", "scale", "var", "variance"):
        fits = shape in ((), (size,))
        require(fits, name, f"{key} of {size} numbers", f"shape {list(shape or ())}")
        both = torch.tensor(spread, dtype=torch.float64).expand(size)
        require(bool((both > 0).all()), name, f"{key} above 0", _shown(both))
        return {"loc": mean, "covariance_matrix": torch.diag(both if "var" in key else both**2)}
    kind = _MATRICES.get(key or "cov", "")
    hint = "sd=[...] or var=[...] for independent coordinates" if shape != (size, size) else ""
    fits = bool(kind) and shape == (size, size)
    require(fits, name, f"{usage}: a {size} x {size} matrix", f"shape {list(shape or ())}", hint)
    return {"loc": mean, "covariance_matrix": _covariance(kind, spread, name)}


def _covariance(kind: str, rows: Any, name: str) -> Tensor:
    """Turn a covariance, a precision or a lower triangle into a covariance, `[d, d]`."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    if kind == "scale_tril":
        lower = bool((matrix.triu(1) == 0).all() and (matrix.diagonal() > 0).all())
        require(lower, name, "a lower triangle with a diagonal above 0", _shown(matrix))
        return matrix @ matrix.mT
    require(matrix.equal(matrix.mT), name, "a symmetric matrix", _shown(matrix))
    root, bad = torch.linalg.cholesky_ex(matrix)
    require(not int(bad), name, "a positive definite matrix", _shown(matrix))
    return matrix if kind == "covariance_matrix" else torch.cholesky_inverse(root)


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of nested lists, None for ragged ones."""
    if not isinstance(value, list):
        return ()
    inner = {_shape(one) for one in value}
    return None if len(inner) != 1 or None in inner else (len(value), *(inner.pop() or ()))
