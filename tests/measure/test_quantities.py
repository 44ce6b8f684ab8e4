"""Every kind of P and Q gives the number of the tensor path; wrong kinds are told what to do."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions as d

import kullback as kb
from kullback.cli.main import main
from kullback.exact import tables
from kullback.sampled.distributions import log_density

P, Q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
KINDS = {
    "list": list,
    "tuple": tuple,
    "dictionary": lambda x: dict(zip("abc", x, strict=True)),
    "text": lambda x: ", ".join(map(str, x)),
    "text in percent": lambda x: " ".join(f"{100 * each}%" for each in x),
    "text with names": lambda x: (
        "{" + ",".join(f"{n}:{v}" for n, v in zip("abc", x, strict=True)) + "}"
    ),
    "categorical": lambda x: f"categorical({','.join(map(str, x))})",
    "float64": np.array,
    "other byte order": lambda x: np.array(x, dtype=">f8"),
    "negative stride": lambda x: np.array(x[::-1])[::-1],
    "read-only": lambda x: np.broadcast_to(np.array(x), (3,)),
    "fractions": lambda x: [Fraction(each) for each in x],
    "tensor": lambda x: torch.tensor(x, dtype=torch.float64),
    "list of tensors": lambda x: [torch.tensor(each, dtype=torch.float64) for each in x],
}
TABLES = {
    "kl": tables.kl,
    "js": tables.js,
    "jeffreys": tables.jeffreys,
    "cross_entropy": tables.cross_entropy,
}


def tensors():
    return (torch.tensor(x, dtype=torch.float64) for x in (P, Q))


@pytest.mark.parametrize("quantity", TABLES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_number(quantity, kind):
    found = getattr(kb, quantity)(KINDS[kind](P), KINDS[kind](Q))
    assert float(found) == float(TABLES[quantity](*tensors()))
    assert (found.exact, found.unit, found.shape) == (True, "nats", ())
    assert (found.standard_error, found.warnings, found.no_error) == (0.0, (), "")
    assert isinstance(found, kb.Measured)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_renyi_of_every_kind(kind):
    p, q = tensors()
    assert float(kb.entropy(KINDS[kind](P))) == float(tables.entropy(p))
    found = kb.renyi(KINDS[kind](P), KINDS[kind](Q), alpha=2)
    assert float(found) == float(tables.renyi(p, q, alpha=2))


def test_kinds_can_be_mixed():
    for first in KINDS.values():
        assert float(kb.kl(first(P), Q)) == float(kb.kl(P, first(Q))) == float(kb.kl(P, Q))


def test_float32_keeps_its_dtype_and_whole_numbers_become_float64():
    half = np.array([0.5, 0.5], dtype=np.float32)
    assert kb.kl(half, half).value.dtype == torch.float32
    assert kb.kl([1, 0], np.array([1, 0])).value.dtype == torch.float64


def test_names_are_matched():
    assert float(kb.kl({"a": 0.9, "b": 0.1}, {"b": 0.1, "a": 0.9})) == 0.0
    assert float(kb.kl({"a": 0.9, "b": 0.1}, "{b: 0.1, a: 0.9}")) == 0.0


class Index:
    def __init__(self, names):
        self.names = names

    def tolist(self):
        return list(self.names)


class Series:
    """What is used of a pandas Series: its index and its values."""

    def __init__(self, values, names):
        self.values, self.index = np.array(values), Index(names)

    def to_numpy(self):
        return self.values

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_an_index_is_matched_and_needs_no_pandas():
    assert float(kb.kl(Series(P, "abc"), Series(Q[::-1], "cba"))) == float(kb.kl(P, Q))
    with pytest.raises(ValueError, match=r"p and q: expected the same outcomes; got c, d in only"):
        kb.kl(Series(P, "abc"), Series(Q, "abd"))
    with pytest.raises(ValueError, match="each outcome once"):
        kb.kl(Series(P, "abb"), Series(Q, "bba"))


def test_pandas():
    pd = pytest.importorskip("pandas")
    first, second = pd.Series(P, index=[*"abc"]), pd.Series(Q, index=[*"abc"])
    assert float(kb.kl(first, second.iloc[::-1])) == float(kb.kl(P, Q))
    rows = pd.DataFrame([P, Q], columns=[*"abc"], index=["x", "y"])
    turned = rows[[*"cab"]].iloc[::-1]
    assert kb.kl(rows, turned).value.tolist() == [0.0, 0.0]
    assert kb.kl(rows, second[[*"cba"]]).value.tolist() == [float(kb.kl(P, Q)), 0.0]
    counts = pd.crosstab(pd.Series([0, 0, 1, 1]), pd.Series([0, 0, 1, 1]))
    assert float(kb.mutual_information(counts, normalise=True).bits()) == pytest.approx(1.0)


def test_mutual_information_of_lists():
    joint = [[0.4, 0.1], [0.1, 0.4]]
    truth = sum(x * math.log(x / 0.25) for row in joint for x in row)
    assert float(kb.mutual_information(joint)) == pytest.approx(truth, rel=1e-14)
    assert kb.mutual_information(np.array([joint] * 3)).shape == (3,)


@pytest.mark.parametrize("form", ["log_probs", "logits"])
def test_the_form_of_tables(form):
    shift = 3.0 if form == "logits" else 0.0
    logs = [[math.log(x) + shift for x in row] for row in (P, Q)]
    assert float(kb.kl(*logs, form=form)) == pytest.approx(float(kb.kl(P, Q)), rel=1e-14)


def test_counts_with_normalise():
    assert float(kb.kl([2, 1, 1], [1, 2, 1], normalise=True)) == float(kb.kl(P, Q))


FROZEN = {
    "beta": (stats.beta(2, 3), d.Beta(2.0, 3.0)),
    "cauchy": (stats.cauchy(1, 2), d.Cauchy(1.0, 2.0)),
    "chi2": (stats.chi2(3), d.Chi2(3.0)),
    "chi2 with a scale": (stats.chi2(4, scale=2), d.Gamma(2.0, 0.25)),
    "expon": (stats.expon(scale=4), d.Exponential(0.25)),
    "gamma": (stats.gamma(2, scale=4), d.Gamma(2.0, 0.25)),
    "genpareto": (stats.genpareto(0.5, 1, 2), d.GeneralizedPareto(1.0, 2.0, 0.5)),
    "gumbel_r": (stats.gumbel_r(1, 2), d.Gumbel(1.0, 2.0)),
    "halfcauchy": (stats.halfcauchy(scale=2), d.HalfCauchy(2.0)),
    "halfnorm": (stats.halfnorm(scale=2), d.HalfNormal(2.0)),
    "invgamma": (stats.invgamma(3, scale=2), d.InverseGamma(3.0, 2.0)),
    "invgauss": (stats.invgauss(0.5, scale=4), kb.exact.InverseGaussian(2.0, 4.0)),
    "laplace": (stats.laplace(1, scale=2), d.Laplace(1.0, 2.0)),
    "lognorm": (stats.lognorm(0.5, scale=math.e), d.LogNormal(1.0, 0.5)),
    "norm": (stats.norm(1, 2), d.Normal(1.0, 2.0)),
    "norm by name": (stats.norm(scale=2, loc=1), d.Normal(1.0, 2.0)),
    "pareto": (stats.pareto(3, scale=2), d.Pareto(2.0, 3.0)),
    "t": (stats.t(5, 1, 2), d.StudentT(5.0, 1.0, 2.0)),
    "uniform": (stats.uniform(1, 2), d.Uniform(1.0, 3.0)),
    "vonmises": (stats.vonmises(2, 1), d.VonMises(1.0, 2.0)),
    "weibull_min": (stats.weibull_min(3, scale=2), d.Weibull(2.0, 3.0)),
    "bernoulli": (stats.bernoulli(0.3), d.Bernoulli(0.3)),
    "binom": (stats.binom(5, 0.3), d.Binomial(5, torch.tensor(0.3))),
    "nbinom": (stats.nbinom(3, 0.25), d.NegativeBinomial(3.0, 0.75)),
    "poisson": (stats.poisson(2), d.Poisson(2.0)),
}


@pytest.mark.parametrize("family", FROZEN)
def test_frozen_families_of_scipy_are_torch_ones(family):
    frozen, law = FROZEN[family]
    given = kb.measure.read_one(frozen)
    x = torch.tensor(np.unique(frozen.ppf(np.linspace(0.05, 0.95, 9))))
    score = getattr(frozen, "logpmf", None) or frozen.logpdf
    assert type(given.value) is type(law)
    close = 2e-7 if family == "vonmises" else 1e-9  # torch's Bessel polynomials: Abramowitz 9.8
    found = log_density(given.distribution, x).numpy()
    assert found == pytest.approx(score(x.numpy()), rel=close)
    if family == "nbinom":
        return  # no closed form between different counts; equal here, and a sum
    assert float(kb.kl(frozen, law)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "q", "shift"),
    [
        (stats.gamma(2), stats.gamma(3), 1.5),
        (stats.geom(0.3), stats.geom(0.5), 2),
        (stats.weibull_min(2, scale=3), stats.weibull_min(3), -1.0),
    ],
)
def test_a_shift_that_both_share_changes_nothing(p, q, shift):
    first, second = (x.dist(*x.args, **x.kwds, loc=shift) for x in (p, q))
    assert float(kb.kl(first, second)) == float(kb.kl(p, q))
    assert kb.kl(p, q).exact
    assert float(kb.entropy(first)) == float(kb.entropy(p))


def test_shifts_that_differ():
    p, q = stats.expon(loc=1.0), stats.expon(scale=2.0)
    assert float(kb.kl(q, p)) == math.inf
    found = kb.kl(p, q, generator=torch.Generator().manual_seed(0))
    truth = math.log(2) - 1 + (1 + 1) / 2  # E_p[log 2 − (x − 1) + x/2]
    assert abs(float(found) - truth) <= 4.5 * found.standard_error


def test_other_families_of_scipy_are_sampled():
    p, q = stats.logistic(0.5, 1), stats.norm(0, 2)
    truth = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -60, 60)[0]
    seeded = (torch.Generator().manual_seed(0) for _ in range(2))
    found, again = (kb.kl(p, q, generator=seed) for seed in seeded)
    assert not found.exact
    assert float(found) == float(again)
    assert abs(float(found) - truth) <= 4.5 * found.standard_error
    entropy = kb.entropy(p, generator=torch.Generator().manual_seed(0))
    assert abs(float(entropy) - 2.0) <= 4.5 * entropy.standard_error  # log s + 2


def test_batches_of_scipy_distributions():
    assert kb.kl(stats.norm([0, 1, 2], 1), "N(0,1)").value.tolist() == [0.0, 0.5, 2.0]
    assert kb.js(stats.logistic([0, 1, 2], 1), stats.norm(0, 1), draws=100).shape == (3,)


def test_vectors_of_scipy():
    eye = np.eye(2)
    p, q = stats.multivariate_normal([0, 0], eye), stats.multivariate_normal([1, 0], eye)
    assert float(kb.kl(p, q)) == 0.5
    wide = stats.multivariate_t([0, 0], eye, df=9)
    found = kb.kl(p, wide, generator=torch.Generator().manual_seed(0))
    assert 0 < float(found) < 0.2
    assert kb.entropy(stats.dirichlet([1.0, 1.0, 1.0])).exact


def test_counts_and_matrices_of_scipy():
    coins = kb.entropy(stats.multinomial(3, [0.5, 0.5]), generator=torch.Generator().manual_seed(0))
    truth = 0.25 * math.log(8) + 0.75 * math.log(8 / 3)
    assert coins.shape == ()
    assert abs(float(coins) - truth) <= 4.5 * coins.standard_error
    law, seed = stats.wishart(4, np.eye(2)), torch.Generator().manual_seed(0)
    found = kb.entropy(law, draws=400, generator=seed)
    assert found.shape == ()
    assert abs(float(found) - law.entropy()) <= 4.5 * found.standard_error


def test_atoms_off_the_integers():
    p = stats.rv_discrete(values=([0.5, 1.5], [0.25, 0.75]))()
    q = stats.rv_discrete(values=([0.5, 1.5], [0.75, 0.25]))()
    found = kb.kl(p, q, generator=torch.Generator().manual_seed(0))
    assert abs(float(found) - 0.5 * math.log(3)) <= 4.5 * found.standard_error


@pytest.mark.parametrize(
    ("verb", "p", "q"),
    [
        ("kl", "0.5,0.25,0.25", "1/4 1/2 25%"),
        ("kl", "N(0,1)", "laplace(0, 1)"),
        ("kl", "N(0, var=4)", "0.5*N(-2,1) + 0.5*N(2,1)"),
        ("js", "{a:0.9,b:0.1}", "{b:0.5,a:0.5}"),
        ("js", "poisson(3)", "geom(0.5)"),
        ("cross-entropy", "t(5)", "N(0,1)"),
        ("entropy", "gamma(2, 3)", None),
    ],
)
def test_text_is_what_the_command_reads(verb, p, q, capsys):
    texts = [text for text in (p, q) if text]
    with pytest.raises(SystemExit):
        main([verb, *texts, "--json", "--seed", "7", "--draws", "1000"])
    printed = json.loads(capsys.readouterr().out)
    function = getattr(kb, verb.replace("-", "_"))
    found = function(*texts, draws=1000, generator=torch.Generator().manual_seed(7))
    assert float(found) == printed["value"]


def test_gradients_flow():
    p = torch.tensor(P, dtype=torch.float64, requires_grad=True)
    kb.kl(p, Q).bits().value.backward()
    q = torch.tensor(Q, dtype=torch.float64)
    again = p.detach().clone().requires_grad_()
    tables.kl(again, q).backward()
    assert p.grad.tolist() == pytest.approx((again.grad / math.log(2)).tolist(), rel=1e-12)
    loc = torch.tensor(0.0, requires_grad=True)
    kb.kl(d.Normal(loc, 1.0), "N(1,1)").value.backward()
    assert loc.grad == -1.0
    logits = [torch.tensor(0.0, requires_grad=True), torch.tensor(1.0)]
    kb.entropy(logits, form="logits").value.backward()
    assert logits[0].grad.abs() > 0


@pytest.mark.parametrize("rows", [P, [P], [P] * 3, [P] * 9])
def test_a_value_with_a_gradient_prints(rows):
    found = kb.entropy(torch.tensor(rows, requires_grad=True))
    assert found.value.requires_grad
    assert "1.03972" in str(found)
    assert "grad" not in str(found) + repr(found)
    if len(rows) == 1 or rows is P:
        assert float(found) == pytest.approx(1.5 * math.log(2), rel=1e-7)


def test_jeffreys_of_distributions():
    assert float(kb.jeffreys("N(0,1)", "N(1,2)")) == pytest.approx(
        float(kb.kl("N(0,1)", "N(1,2)")) + float(kb.kl("N(1,2)", "N(0,1)")), rel=1e-14
    )
    assert float(kb.jeffreys("N(0,1)", "cauchy(0,1)")) == math.inf
    found = kb.jeffreys("t(5)", "laplace(0,1)", generator=torch.Generator().manual_seed(0))
    t, laplace = stats.t(5), stats.laplace()
    gap = lambda x: (t.pdf(x) - laplace.pdf(x)) * (t.logpdf(x) - laplace.logpdf(x))  # noqa: E731
    truth = 2 * integrate.quad(gap, 0, 200)[0]
    assert abs(float(found) - truth) <= 4.5 * found.standard_error


def test_renyi_of_distributions():
    assert float(kb.renyi("N(0,1)", "N(1,1)", alpha=3)) == 1.5
    assert float(kb.renyi("N(0,1)", "N(1,1)", alpha=1)) == 0.5
    with pytest.raises(TypeError, match=r"renyi has a closed form; got \(StudentT, Laplace\)"):
        kb.renyi("t(5)", "laplace(0,1)", alpha=2)


def test_units():
    found = kb.entropy([0.5, 0.5]).bits()
    assert (float(found), found.unit, found.nats().unit) == (1.0, "bits", "nats")
    sampled = kb.kl("t(5)", "laplace(0,1)", draws=100)
    assert sampled.bits().standard_error == pytest.approx(sampled.standard_error / math.log(2))
    assert sampled.bits().estimate.unit == "bits"
    assert sampled.bits().bits() == sampled.bits()


@pytest.mark.parametrize("shape", [(7,), (64, 100), (3, 0)])
def test_a_batch_prints_in_a_line(shape):
    seed = torch.Generator().manual_seed(0)
    p, q = (torch.rand(*shape, 5, generator=seed).softmax(-1) for _ in range(2))
    found = kb.Measured(torch.zeros(shape), "test") if 0 in shape else kb.kl(p, q)
    for text in (str(found), repr(found)):
        assert len(text) < 120
        assert text.count("\n") == 0
        assert str(list(shape)) in text


def test_a_sampled_batch_prints_in_a_line():
    law = d.StudentT(torch.full((40,), 5.0))
    found = kb.kl(law, d.Laplace(0.0, 1.0), draws=1000)
    assert all(len(line) < 250 for line in str(found).split("\n"))
    assert str(found).startswith("[40] values from 0.0")
    assert "tensor" not in str(found) + repr(found)
    few = kb.js(d.Normal(torch.zeros(2), 1.0), d.Laplace(0.0, 1.0), draws=1000)
    assert str(few).startswith("[0.0")
    assert str(few).count("±") == 2


def test_float_of_a_batch_is_refused():
    with pytest.raises(ValueError, match="a single number; got a batch"):
        float(kb.entropy([[0.5, 0.5], [1.0, 0.0]]))


NAN, TABLE = math.nan, "p: expected a table"
WRONG = {
    "a table and a distribution": (P, "N(0,1)", TypeError, "p and q: expected two tables or two"),
    "a distribution and a table": (stats.norm(), P, TypeError, "got a distribution and a table"),
    "no distribution": ("foo", P, ValueError, "p: expected text such as"),
    "a family alone": ("N(0,1)", "normal", ValueError, r"q: .*normal\(loc, scale > 0\)"),
    "an unknown family": ("nromal(0,1)", "N(0,1)", ValueError, "did you mean normal"),
    "a parameter out of range": ("N(0,1)", "N(0,-1)", ValueError, "q: expected normal"),
    "weights": ("2*N(0,1)+N(3,1)", "N(0,1)", ValueError, "a sum of 3. Try: normalise=True"),
    "a file": ("p.csv", P, ValueError, "numpy.loadtxt"),
    "nothing": (None, P, TypeError, TABLE),
    "a set": ({0.5}, P, TypeError, "got set"),
    "words": (["a"], P, TypeError, TABLE),
    "complex": ([1j], P, TypeError, TABLE),
    "booleans": ([True, False], P, TypeError, "got bool values"),
    "a number": (0.5, 0.5, ValueError, r"a single number. Try: \[x, 1 - x\]"),
    "ragged": ([[0.5], [0.5, 0.5]], P, ValueError, "ragged rows"),
    "ragged tensors": ([torch.ones(1), torch.ones(2)], P, ValueError, "ragged rows"),
    "None inside": ([0.5, None, 0.5], P, ValueError, "None among them"),
    "NaN": ([NAN, 0.5, 0.5], P, ValueError, "p: expected .* got nan"),
    "masked": (np.ma.array(P, mask=[0, 0, 1]), P, ValueError, "masked values"),
    "lengths": ([0.5, 0.5], P, ValueError, "the same outcomes"),
    "a sum": ([0.5, 0.6], [0.5, 0.5], ValueError, "sum to 1 .*Try: normalise=True"),
    "names": ({"a": 1.0}, {"b": 1.0}, ValueError, "a, b in only one of them"),
    "not frozen": (stats.norm, stats.norm(), ValueError, "a frozen distribution"),
    "not frozen vectors": (stats.multivariate_normal, P, ValueError, "a frozen distribution"),
    "scipy out of range": (stats.norm(0, -1), stats.norm(), ValueError, r"got norm\(0, -1\)"),
    "scipy without support": (stats.logistic(0, -1), stats.norm(), ValueError, "logistic"),
    "discrete and continuous": (stats.norm(), stats.poisson(2), ValueError, "both discrete or"),
    "vectors and numbers": ("mvn([0,0],[[1,0],[0,1]])", "N(0,1)", ValueError, "event shape"),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("function", [kb.kl, kb.js, kb.jeffreys, kb.cross_entropy])
def test_wrong_inputs(name, function):
    p, q, kind, words = WRONG[name]
    with pytest.raises(kind, match=words) as caught:
        function(p, q)
    assert isinstance(caught.value, kb.KullbackError)


def test_wrong_joint_tables():
    for joint, kind in (([0.5, 0.5], ValueError), ("0.5,0.5", TypeError), (None, TypeError)):
        with pytest.raises(kind, match="joint: expected a joint table"):
            kb.mutual_information(joint)


def test_form_beside_distributions_is_refused():
    with pytest.raises(ValueError, match="form: expected 'probs'"):
        kb.kl("N(0,1)", "N(1,1)", form="logits")


def test_batches_that_do_not_broadcast_are_refused_in_words():
    two, three = np.full((2, 4), 0.25), np.full((3, 4), 0.25)
    laws = [d.Normal(torch.zeros(n), 1.0) for n in (2, 3)]
    quantities = [kb.kl, kb.js, kb.jeffreys, kb.cross_entropy]
    quantities += [lambda p, q: kb.renyi(p, q, alpha=2)]
    for pair in ((two, three), laws):
        for quantity in quantities:
            with pytest.raises(
                ValueError, match=r"p and q: expected batch shapes .*\[2\] and \[3\]"
            ):
                quantity(*pair)
    assert kb.kl(two[:, None], three).shape == (2, 3)


def test_tensors_of_counts_and_sparse_tensors_are_tables():
    counts = torch.bincount(torch.tensor([0, 1, 1, 2]))
    assert float(kb.kl(counts, [0.25, 0.5, 0.25], normalise=True)) == 0.0
    sparse = torch.tensor([0.5, 0.0, 0.5]).to_sparse()
    assert float(kb.entropy(sparse)) == pytest.approx(math.log(2), rel=1e-6)
    with pytest.raises(ValueError, match="'meta'"):
        kb.entropy(torch.zeros(3, device="meta"))
    with pytest.raises(ValueError, match="fill or drop missing values"):
        kb.entropy([0.5, math.nan])


def test_pandas_samples_are_matched_by_name():
    pd = pytest.importorskip("pandas")
    seed = np.random.default_rng(0)
    log_p = pd.Series(-seed.exponential(size=200))
    log_q = log_p - 0.1 * seed.random(200)
    moved = log_q[::-1]
    assert float(kb.kl_from_log_probs(log_p, moved)) == float(kb.kl_from_log_probs(log_p, log_q))
    with pytest.raises(ValueError, match="log_p and log_q: expected the same names"):
        kb.kl_from_log_probs(log_p, log_q.set_axis(range(1, 201)))
    x, y = (pd.DataFrame(seed.normal([0, 5], size=(200, 2)), columns=list("ab")) for _ in "xy")
    found, other = kb.kl_from_draws(x, y), kb.kl_from_draws(x, y[["b", "a"]])
    assert float(found) == float(other)


def test_a_single_number_is_formatted_as_a_float_is():
    found = kb.kl(P, Q)
    assert (f"{found:.3f}", f"{found}") == (f"{float(found):.3f}", str(found))


@pytest.mark.parametrize("wrong", [stats.norm(0, -1), stats.beta(1, -2), stats.binom(5, 1.5)])
def test_scipy_parameters_are_checked_where_torchs_checks_are_off(wrong, monkeypatch):
    """Another package (zuko) may switch them off for the whole process."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    with pytest.raises(ValueError, match="parameters within the range"):
        kb.kl(wrong, stats.norm())
