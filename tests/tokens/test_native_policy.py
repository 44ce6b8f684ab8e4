"""The sweep in C does what the plain form does, and leaves to it what it cannot do."""

import contextlib
import itertools
import math

import pytest
import torch

from kullback.tokens.losses import native_policy, policy_kl_loss
from kullback.tokens.losses.policy_kl import TrustRegion

SHAPE = (16, 700)  # not a multiple of the loop's blocks
MASKS = {
    "all": None,
    "lengths": torch.arange(700) < torch.tensor([0, 1, 699, 700] * 4)[:, None],
    "scattered": torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.6,
}

pytestmark = pytest.mark.skipif(
    native_policy._function() is None, reason="no C compiler: the plain form does it all"
)


@pytest.fixture
def plain(monkeypatch):
    """Return a caller of the plain form."""

    def call(**arguments):
        with monkeypatch.context() as patch:
            patch.setattr(native_policy, "_function", lambda: None)
            return policy_kl_loss(**arguments)

    return call


@pytest.fixture
def counted(monkeypatch):
    """Return a list that gets True for every sweep that was made, False for every one refused."""
    found, real = [], native_policy.sweep

    def counting(*arguments, **names):
        result = real(*arguments, **names)
        found.append(result is not None)
        return result

    monkeypatch.setattr("kullback.tokens.losses.policy_terms.sweep", counting)
    return found


def drawn(spread=0.3, seed=0, shape=SHAPE):
    """Return log-probabilities: none above 0, E[reference/current] = 1 = E[current/behaviour]."""
    generator = torch.Generator().manual_seed(seed)
    current = -5 * torch.rand(shape, generator=generator)
    reference, behaviour = (
        (current + sd * torch.randn(shape, generator=generator) + shift).clamp_max(-1e-3)
        for sd, shift in ((spread, -(spread**2) / 2), (0.5 * spread, spread**2 / 8))
    )
    return {
        "log_current": current.requires_grad_(),
        "log_reference": reference,
        "log_behaviour": behaviour,
    }


def slope(kl, logs):
    return torch.autograd.grad(kl.loss, logs["log_current"])[0]


@pytest.mark.sweep(7)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", 0.4])
@pytest.mark.parametrize("normalise", ["sequence", "batch", "token", "sequence_mean"])
def test_it_is_the_plain_form_in_float64(mask, off_policy, estimator, normalise, plain, counted):
    logs = drawn()
    names = {"mask": MASKS[mask], "estimator": estimator, "normalise": normalise}
    if not off_policy:
        del logs["log_behaviour"]
    found = policy_kl_loss(**logs, **names)
    assert counted == [True]
    wide = {name: log.detach().double() for name, log in logs.items()}
    wide["log_current"].requires_grad_()
    truth = plain(**wide, **names)
    # float32 rounds each term by some ulps of the largest number in it, |log r| ≤ 2 here: 2^-22
    assert found.loss.item() == pytest.approx(truth.loss.item(), rel=1e-5)
    torch.testing.assert_close(found.terms.double(), truth.terms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        slope(found, logs).double(), slope(truth, wide), rtol=1e-5, atol=1e-9
    )
    torch.testing.assert_close(
        found.drawn.log_ratio.double(), truth.drawn.log_ratio, rtol=0, atol=1e-6
    )
    for report in ("divergence", "tokens", "sequences"):
        assert getattr(found, report) == getattr(truth, report)
    assert found.effective_sample_size == pytest.approx(truth.effective_sample_size, rel=1e-5)
    assert found.estimate(found.estimator).value == pytest.approx(found.loss.item(), rel=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_cuts_act_where_they_say(mask, plain, counted):
    logs, mask = drawn(spread=1.0), MASKS[mask]
    names = {"mask": mask, "truncate": 1.3, "trust_region": (0.7, 1.4)}
    found, truth = policy_kl_loss(**logs, **names), plain(**logs, **names)
    assert counted[0] is True
    assert found.trust_region == truth.trust_region != TrustRegion(0, 0, found.tokens)
    assert found.share_truncated == truth.share_truncated > 0
    assert found.truncation_bias().value == truth.truncation_bias().value
    torch.testing.assert_close(found.loss, truth.loss, rtol=1e-5, atol=0)
    ours, theirs = slope(found, logs), slope(truth, logs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
    assert torch.equal(ours == 0, theirs == 0)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
def test_close_policies_keep_the_digits_of_every_term(spread, counted):
    generator = torch.Generator().manual_seed(0)
    x = spread * (2 * torch.rand(SHAPE, generator=generator) - 1)
    x = ((x * 2**24).round() / 2**24).float()  # so that log π + x is exact
    kl = policy_kl_loss(log_current=torch.full(SHAPE, -0.5), log_reference=x - 0.5)
    truth = sum(x.double() ** n / math.factorial(n) for n in range(2, 12))
    assert counted == [True] and ((kl.terms - truth).abs() <= 4e-7 * truth).all()


def test_log_ratios_of_any_size_it_takes(counted):
    x = torch.zeros(SHAPE)
    x[5:7] = (torch.linspace(-79, 79, 1400) * 2**16).round().reshape(2, 700) / 2**16
    current = -79 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    current[5:7] = -x[5:7].clamp_min(0) - 0.625  # no log-probability is above 0
    kl = policy_kl_loss(log_current=current, log_reference=current + x, on_mismatch="ignore")
    x = kl.drawn.log_ratio
    truth = torch.expm1(x.double()) - x.double()
    # x is exact; the exponent, in two parts, leaves some ulps
    assert counted == [True] and ((kl.terms - truth).abs() <= 2e-6 * truth).all()


@pytest.mark.sweep(5)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 90.0])
@pytest.mark.parametrize("name", ["log_current", "log_reference", "log_behaviour"])
def test_what_is_out_of_the_ordinary_is_left_to_the_plain_form(bad, name, plain, counted):
    logs = {key: log.detach() for key, log in drawn().items()}
    logs[name][3, 650] = bad
    logs["log_current"].requires_grad_()
    with (
        pytest.raises(ValueError, match=rf"{name}: .*at \[3, 650\]")
        if (
            bad != -math.inf or name != "log_current"  # π = 0 at a token from μ: weight 0
        )
        else contextlib.nullcontext()
    ):
        policy_kl_loss(**logs)
    given = {"missing": "keep", "on_mismatch": "ignore"}
    found, truth = policy_kl_loss(**logs, **given), plain(**logs, **given)
    assert counted[:2] == [False, False]
    torch.testing.assert_close(found.loss, truth.loss, rtol=0, atol=0, equal_nan=True)
    pair = slope(found, logs), slope(truth, logs)
    torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)
    hidden = torch.ones(SHAPE, dtype=torch.bool)
    hidden[3, 650] = False  # masked, it may hold anything, and the sweep does it
    masked = policy_kl_loss(**logs, mask=hidden)
    assert counted[-1] is True and slope(masked, logs)[3, 650] == 0
    assert math.isfinite(masked.loss.item())


def test_strides_and_types_it_takes_and_those_it_leaves(counted):
    logs = drawn(shape=(16, 1400))
    every = {name: log.detach()[:, 300:1000] for name, log in logs.items()}
    policy_kl_loss(**every)
    policy_kl_loss(**{name: log.double() for name, log in every.items()})
    policy_kl_loss(**{name: log.bfloat16() for name, log in every.items()})
    policy_kl_loss(**{name: log.T for name, log in every.items()})
    policy_kl_loss(**{name: log[:2, :50] for name, log in every.items()})
    policy_kl_loss(**every | {"log_reference": every["log_reference"].double()})
    assert counted == [True, False, False, False, False, False]
    rows = {name: log.contiguous() for name, log in every.items()}
    assert torch.equal(policy_kl_loss(**every).loss, policy_kl_loss(**rows).loss)


def test_a_cut_beyond_float32_never_cuts(counted):
    logs = drawn()
    kl = policy_kl_loss(**logs, truncate=1e300)
    assert counted == [True] and kl.share_truncated == 0
    assert torch.equal(kl.loss, policy_kl_loss(**logs).loss)


def test_function_transforms_get_the_plain_form():
    logs = drawn()
    current, reference = logs["log_current"].detach(), logs["log_reference"]

    def loss(current):
        return policy_kl_loss(log_current=current, log_reference=reference).loss

    found = torch.func.grad(loss)(current)
    torch.testing.assert_close(found, (current - reference) / len(current))


@pytest.mark.parametrize("scaled", [1.0, -2.5])
def test_the_gradient_is_linear_in_what_comes_from_above(scaled):
    logs = drawn()
    kl = policy_kl_loss(**logs, normalise="token")
    once = slope(kl, logs) if scaled == 1.0 else None
    kl = policy_kl_loss(**logs, normalise="token")
    found = torch.autograd.grad(scaled * kl.loss, logs["log_current"])[0]
    plain = slope(policy_kl_loss(**logs, normalise="token"), logs)
    torch.testing.assert_close(found, scaled * plain, rtol=1e-6, atol=0)
    assert once is None or torch.equal(once, plain)


def test_mixed_types_are_worked_out_in_the_widest(plain):
    logs = drawn()
    mask = MASKS["scattered"]
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    for kind in itertools.permutations(kinds):
        mixed = {
            name: log.detach().to(dtype)
            for (name, log), dtype in zip(logs.items(), kind, strict=True)
        }
        found = policy_kl_loss(**mixed, mask=mask)
        wide = plain(**{name: log.double() for name, log in mixed.items()}, mask=mask)
        assert found.loss.item() == pytest.approx(wide.loss.item(), rel=1e-12)
