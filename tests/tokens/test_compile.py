"""`torch.compile(fullgraph=True)` through divergences and losses: eager values and gradients."""

import warnings

import pytest
import torch

from kullback import tokens
from kullback.tokens.divergences import compiled as divergences
from kullback.tokens.losses import compiled as losses

pytestmark = pytest.mark.slow


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


P = some(3, 5, 4500) * 2
Q = P + 0.3 * some(3, 5, 4500, seed=1)
IDS, MASK = torch.arange(15).view(3, 5), some(3, 5, seed=2) < 0.7

DIVERGENCES = {
    "kl": lambda p, q: tokens.kl(p, q),
    "kl, masked, hot": lambda p, q: tokens.kl(p, q, mask=MASK, temperature=0.7),
    "kl, one row": lambda p, q: tokens.kl(p[0, 0], q),
    "js": lambda p, q: tokens.js(p, q, beta=0.3),
    "jeffreys": lambda p, q: tokens.jeffreys(p, q),
    "entropy": lambda p, q: tokens.entropy(q),
    "log_prob": lambda p, q: tokens.log_prob(q, IDS),
    "compare": lambda p, q: torch.stack(
        [value.float() for value in tokens.compare(p, q, ids=IDS, mask=MASK)]
    ),
    "distill_loss": lambda p, q: tokens.distill_loss(tokens.kl(p, q), mask=MASK),
}


def both(function, *given):
    inputs = [x.clone().requires_grad_() for x in given]
    value = function(*inputs)
    (value * torch.linspace(1, 2, value.numel()).view(value.shape)).sum().backward()
    return value.detach(), *(x.grad for x in inputs)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergences_in_one_graph(name, dtype):
    torch.compiler.reset()
    function, given = DIVERGENCES[name], (P.to(dtype), Q.to(dtype))
    found = both(torch.compile(function, fullgraph=True, backend="aot_eager"), *given)
    for mine, eager in zip(found, both(function, *given), strict=True):
        assert (mine is None and eager is None) or torch.equal(mine, eager)


def without(x, *places):
    """Return logits of which tokens at these places are −inf."""
    return x.index_fill(-1, torch.tensor(places), -torch.inf)


SMALL = some(3, 4, 90)
KINDS = {
    "two dtypes": (SMALL.bfloat16(), SMALL.flip(0)),
    "float64 and float16": (SMALL.double(), SMALL.flip(0).half()),
    "every other position": (some(3, 8, 90)[:, ::2], SMALL),
    "every other token": (some(3, 180, 4).transpose(1, 2)[..., ::2], SMALL),
    "one position": (SMALL[:1, :1], SMALL[1:2, 1:2]),
    "no batch": (SMALL[0, 0], SMALL[1, 1]),
    "one token": (SMALL[..., :1], SMALL[..., 1:2]),
    "both broadcast": (SMALL[:, :1], SMALL[0]),
    "−inf on both sides": (without(SMALL, 3, 88, 89), without(SMALL.flip(0), 3, 88, 89)),
    "−inf in p": (without(SMALL, 3, 89), SMALL.flip(0)),
    "−inf in q": (SMALL, without(SMALL.flip(0), 3, 89)),
    "no positions": (SMALL[:0], SMALL[:0]),
}


@pytest.mark.filterwarnings("ignore::kullback.tokens.PrecisionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_logits_in_one_graph(kind):
    torch.compiler.reset()
    p, q = KINDS[kind]

    def values_and_gradients(function):
        sides = [x.detach().requires_grad_() for x in (p, q)]
        value = function(*sides)
        value.where(value.isfinite(), 0.0 * value.detach()).nansum().backward()
        return value.detach(), *(x.grad for x in sides)

    found = values_and_gradients(torch.compile(tokens.kl, fullgraph=True, backend="aot_eager"))
    for mine, eager in zip(found, values_and_gradients(tokens.kl), strict=True):
        torch.testing.assert_close(mine, eager)


def test_rows_without_a_distribution_are_refused_there_too():
    torch.compiler.reset()
    function = torch.compile(DIVERGENCES["kl"], fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="at every position some finite logit"):
        function(P.clone().fill_(-torch.inf), Q)


CURRENT = -1.0 - some(6, 30).abs()
REFERENCE, BEHAVIOUR = (CURRENT + 0.1 * some(6, 30, seed=seed) for seed in (1, 2))
LOSSES = [
    {},
    {"direction": "forward"},
    {"log_behaviour": BEHAVIOUR, "truncate": 1.02},
    {"log_behaviour": BEHAVIOUR, "level": "sequence", "estimator": "k1"},
    {"estimator": 0.5, "mask": some(6, 30, seed=3) < 0.8, "normalise": "token"},
    {"log_behaviour": BEHAVIOUR, "trust_region": (0.9, 1.1)},
    {"estimator": "best"},
    {"exact_kl": some(6, 30, seed=4).abs()},
]


@pytest.mark.parametrize("options", LOSSES, ids=lambda options: ", ".join(options) or "plain")
def test_policy_loss_in_one_graph(options):
    torch.compiler.reset()

    def whole(current):
        return tokens.policy_kl_loss(
            log_current=current, log_reference=REFERENCE, on_mismatch="ignore", **options
        )

    def loss(current):
        return whole(current).loss

    found = both(torch.compile(loss, fullgraph=True, backend="aot_eager"), CURRENT)
    for mine, eager in zip(found, both(loss, CURRENT), strict=True):
        assert torch.equal(mine, eager)
    mine = torch.compile(whole, fullgraph=True, backend="aot_eager")(CURRENT)
    eager = whole(CURRENT)
    for estimator in ("k1", "k3"):
        assert repr(mine.estimate(estimator)) == repr(eager.estimate(estimator))
    assert mine.share_truncated == eager.share_truncated
    assert mine.trust_region == eager.trust_region


def test_the_operators_are_what_pytorch_expects():
    task = {"wants": "kl,js,log_prob", "temperature": 0.7, "beta": 0.5, "backend": "auto"}
    sides = [x[:, :, :99].contiguous().requires_grad_() for x in (P, Q)]
    torch.library.opcheck(divergences._measure, (*sides, IDS, MASK), task | {"nan": "refuse"})
    one = (sides[0], None, IDS, None)
    torch.library.opcheck(
        divergences._measure, one, task | {"nan": "pass", "wants": "entropy,log_prob"}
    )
    options = {"direction": "reverse", "level": "token", "normalise": "sequence"}
    options |= {"missing": "refuse", "on_mismatch": "ignore", "truncate": None}
    given = (CURRENT.clone().requires_grad_(), REFERENCE, BEHAVIOUR, None, None)
    torch.library.opcheck(losses._policy_kl, given, options | {"estimator": "k3", "log_limits": []})


def test_the_default_compiler_takes_it():
    torch.compiler.reset()
    warnings.simplefilter("ignore")  # PyTorch's own
    function = torch.compile(lambda p, q: tokens.kl(p * 2.0, q) + 1.0, fullgraph=True)
    try:
        found = function(P, Q)
    except RuntimeError as error:  # no C++ compiler for it
        pytest.skip(str(error)[:80])
    torch.testing.assert_close(found, tokens.kl(P * 2.0, Q) + 1.0)
