"""KL as a penalty on rewards, in worlds that can be listed."""

import pytest
import torch

from kullback.tokens.losses import kl_penalties, kl_penalty_to_go, policy_kl_loss, reward_to_go
from tokens.worlds import World

F64, EXACT = torch.float64, 1e-10
HERE = World(3, 3, seed=2, ends=True)


def by_score(penalty_of, *, on_policy=True):
    """Return the expected `Σ_t penalty_t · ∇ log π_t`."""

    def loss_of(pick, logs):
        detached = {k: v if v is None else v.detach() for k, v in logs.items()}
        current = torch.where(logs["mask"], logs["log_current"], 0.0)
        return (penalty_of(pick, detached) * current).sum()

    return HERE.expect(loss_of, on_policy=on_policy)[1]


def truth():
    return HERE.gradient(HERE.truth("reverse", "sequence", on_policy=True))


def close(found, expected):
    return ((found - expected).norm() / expected.norm()).item() < EXACT


@pytest.mark.sweep(3)
@pytest.mark.parametrize("on_policy", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("estimator", ["k1", "k3", 0.7, "exact"])
def test_penalties_to_go_have_the_whole_gradient_of_the_sequence_kl(estimator, on_policy):
    exact = HERE.exact("reverse").detach()

    def penalty(pick, logs):
        if estimator == "exact":
            return kl_penalty_to_go(**logs, exact_kl=exact[pick])
        return kl_penalty_to_go(**logs, estimator=estimator)

    assert close(by_score(penalty, on_policy=on_policy), truth())


def test_penalties_summed_to_go_have_it_too_and_unsummed_do_not():
    def penalties(_, logs):
        logs.pop("log_behaviour")
        return kl_penalties(**logs)

    whole = by_score(lambda pick, logs: reward_to_go(penalties(pick, logs), mask=logs["mask"]))
    assert close(whole, truth())
    alone = by_score(penalties)
    assert not close(alone, truth())
    assert close(alone, HERE.gradient(HERE.truth("reverse", "token", on_policy=True)))


def test_the_sum_of_penalties_has_the_mean_of_the_divergence():
    pi, ref, _ = (HERE.of_tokens(table).detach() for table in HERE.tables())
    sums = kl_penalties(log_current=pi, log_reference=ref, mask=HERE.mask).sum(-1)
    found = (HERE.chances(HERE.tables()[0]) @ sums).item()
    expected = HERE.truth("reverse", "sequence", on_policy=True).item()
    assert found == pytest.approx(expected, rel=EXACT)


def test_to_go_is_the_slope_of_the_sequence_loss():
    pi, ref, mu = (HERE.of_tokens(table).detach() for table in HERE.tables())
    logs = {"log_reference": ref, "log_behaviour": mu, "mask": HERE.mask}
    current = pi.clone().requires_grad_()
    kl = policy_kl_loss(log_current=current, **logs, level="sequence", normalise="batch")
    slope = torch.autograd.grad(kl.loss, current)[0]
    torch.testing.assert_close(kl_penalty_to_go(log_current=pi, **logs), slope, rtol=0, atol=0)


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.01])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_reward_to_go_is_the_plain_loop(discount, length):
    generator = torch.Generator().manual_seed(length)
    rewards = torch.randn(3, length, generator=generator, dtype=F64).requires_grad_()
    mask = torch.arange(length) < torch.tensor([length, 1, 3])[:, None]
    expected, total = [], torch.zeros(3, dtype=F64)
    for place in reversed(range(length)):
        total = torch.where(mask[:, place], rewards[:, place], 0.0) + discount * total
        expected.insert(0, total)
    expected = torch.where(mask, torch.stack(expected, -1), 0.0)
    found = reward_to_go(rewards, mask=mask, discount=discount)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
    slopes = [torch.autograd.grad(x.square().sum(), rewards)[0] for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-13, atol=1e-14)


def test_what_is_masked_may_hold_anything():
    pi, ref, mu = (HERE.of_tokens(table).detach() for table in HERE.tables())
    spoilt = [x.masked_fill(~HERE.mask, torch.nan) for x in (pi, ref, mu)]
    names = ("log_current", "log_reference", "log_behaviour")
    found = [
        kl_penalty_to_go(**dict(zip(names, logs, strict=True)), mask=HERE.mask)
        for logs in ((pi, ref, mu), spoilt)
    ]
    assert torch.equal(*found) and (found[0][~HERE.mask] == 0).all()
    assert reward_to_go(spoilt[0], mask=HERE.mask).isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: reward_to_go(x, discount=0.0), "discount: expected a number above 0"),
        (lambda x: reward_to_go(x[0]), r"rewards: expected a floating-point tensor \[batch"),
        (lambda x: kl_penalties(log_current=x, log_reference=x[:1]), "log_reference: expected"),
        (
            lambda x: kl_penalty_to_go(log_current=x, log_reference=x, estimator="k2"),
            "estimator: expected 'k1', 'k3'",
        ),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2, 3))
