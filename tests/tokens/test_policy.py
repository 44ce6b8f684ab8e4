"""Policy losses in worlds that can be listed: expectations are sums, equality is at 1e-10."""

import math

import pytest
import torch

from kullback.core import ArgumentValueError
from kullback.sampled import effective_sample_size, log_ratio, log_ratio_terms
from kullback.tokens.losses import policy_kl_loss, rao_blackwell_kl_loss
from kullback.tokens.losses.policy_kl import TrustRegion
from tokens.worlds import World

F64, F32 = torch.float64, torch.float32
EXACT = 1e-10  # relative; enumeration in float64 leaves 1e-15
WORLDS = {
    "one token of 4": World(4, 1, seed=1),
    "3 tokens of 3, ending early": World(3, 3, seed=2, ends=True),
    "4 tokens of 2": World(2, 4, seed=3),
    "far and stale": World(3, 2, seed=4, far=3.0, stale=2.0),
}
DIRECTIONS, LEVELS = ("reverse", "forward"), ("token", "sequence")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def relative(found, truth):
    return ((found - truth).norm() / truth.norm()).item()


def random_logs(*shape, seed=0, dtype=F64, spread=0.3):
    """Return log-probabilities: none above 0, E[reference/current] = 1 = E[current/behaviour]."""
    generator = torch.Generator().manual_seed(seed)
    current = (torch.randn(*shape, generator=generator, dtype=F64) - 3).clamp_max(-1.5)
    near = [
        current + spread * torch.randn(*shape, generator=generator, dtype=F64) + shift
        for shift in (-(spread**2) / 2, spread**2 / 2)
    ]
    return [log.to(dtype) for log in (current, *near)]


# What every loss promises: its value and its gradient are, on average, those of the divergence.


@pytest.mark.sweep(22)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("on_policy", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("estimator", ["k1", "k3", 0.4, "exact", "rao-blackwell"])
def test_value_and_gradient_are_those_of_the_divergence(
    world, direction, level, on_policy, estimator
):
    here = WORLDS[world]
    names = {"direction": direction, "level": level}

    def loss_of(pick, logs):
        exact = here.exact(direction)[pick]
        if estimator == "rao-blackwell":
            return rao_blackwell_kl_loss(exact, **logs, **names).loss
        if estimator == "exact":
            return policy_kl_loss(**logs, **names, exact_kl=exact).loss
        return policy_kl_loss(**logs, **names, estimator=estimator).loss

    value, gradient = here.expect(loss_of, on_policy=on_policy)
    truth = here.truth(direction, level, on_policy=on_policy)
    assert value.item() == pytest.approx(truth.item(), rel=EXACT)
    assert relative(gradient, here.gradient(truth)) < EXACT


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("on_policy", [True, False], ids=["on", "off"])
def test_the_value_of_k2_and_the_gradient_of_the_divergence(direction, on_policy):
    here = WORLDS["far and stale"]
    value, gradient = here.expect(
        lambda _, logs: policy_kl_loss(**logs, direction=direction, estimator="k2").loss,
        on_policy=on_policy,
    )
    pi, ref, mu = (here.of_tokens(table).detach() for table in here.tables())
    p, base = (pi if direction == "reverse" else ref), (pi if on_policy else mu)
    terms = (p - base).exp() * 0.5 * (pi - ref) ** 2
    assert value.item() == pytest.approx((base.sum(-1).exp() @ terms.sum(-1)).item(), rel=EXACT)
    truth = here.truth(direction, "token", on_policy=on_policy)
    assert relative(gradient, here.gradient(truth)) < EXACT


@pytest.mark.slow
@pytest.mark.sweep(8)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("on_policy", [True, False], ids=["on", "off"])
def test_the_best_lambda_is_cross_fitted_and_keeps_both_exact(direction, level, on_policy):
    here = World(2, 2, seed=5, ends=True)
    names = {"direction": direction, "level": level, "estimator": "best"}
    value, gradient = here.expect(
        lambda _, logs: policy_kl_loss(**logs, **names).loss, on_policy=on_policy, rows=4
    )
    truth = here.truth(direction, level, on_policy=on_policy)
    assert value.item() == pytest.approx(truth.item(), rel=EXACT)
    assert relative(gradient, here.gradient(truth)) < EXACT


def test_directions_and_levels_differ_from_each_other():
    here = WORLDS["3 tokens of 3, ending early"]
    gradients = [
        here.gradient(here.truth(direction, level, on_policy=True))
        for direction in DIRECTIONS
        for level in LEVELS
    ]
    gaps = [relative(a, b) for i, a in enumerate(gradients) for b in gradients[:i]]
    assert min(gaps) > 0.05


# Normalisation.


def naive(terms, mask, normalise):
    terms = torch.where(mask, terms, 0.0)
    lengths = mask.sum(-1)
    if normalise == "batch":
        return terms.sum()
    if normalise == "sequence":
        return terms.sum() / len(terms)
    if normalise == "token":
        return terms.sum() / lengths.sum()
    return (terms.sum(-1) / lengths).mean()


@pytest.mark.parametrize("normalise", ["sequence", "batch", "token", "sequence_mean"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_normalisations_are_the_plain_formulas(normalise, direction):
    current, reference, _ = random_logs(5, 7)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 6])[:, None]
    current.requires_grad_()
    kl = policy_kl_loss(
        log_current=current,
        log_reference=reference,
        mask=mask,
        normalise=normalise,
        direction=direction,
    )
    r = (reference - current).exp()
    plain = r - 1 - r.log() if direction == "reverse" else r * r.log() - r + 1
    torch.testing.assert_close(kl.loss, naive(plain, mask, normalise), rtol=1e-14, atol=0)
    slope = torch.autograd.grad(kl.loss, current)[0]
    pull = -r.log() if direction == "reverse" else 1 - r
    expected = torch.autograd.grad(naive(pull.detach() * current, mask, normalise), current)[0]
    torch.testing.assert_close(slope, expected, rtol=1e-13, atol=1e-17)
    same = kl.estimate("k3")
    assert same.value == pytest.approx(kl.loss.item(), rel=1e-13)
    assert same.unit == {"sequence": "nats/sequence", "batch": "nats/batch"}.get(
        normalise, "nats/token"
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_lengths_that_are_drawn_bias_only_the_normalisations_that_divide_by_them(rows):
    here = World(2, 2, seed=6, ends=True)
    truth = here.gradient(here.truth("reverse", "token", on_policy=True))

    def error(normalise):
        _, gradient = here.expect(
            lambda _, logs: policy_kl_loss(**logs, normalise=normalise).loss,
            on_policy=True,
            rows=rows,
        )
        return relative(gradient / gradient.norm(), truth / truth.norm())

    assert error("sequence") < EXACT and error("batch") < EXACT
    assert error("token") > 0.01 and error("sequence_mean") > 0.01


@pytest.mark.slow
def test_the_bias_of_normalising_by_tokens_falls_with_sequences_and_the_others_does_not():
    here = World(2, 2, seed=6, ends=True)
    truth = here.gradient(here.truth("reverse", "token", on_policy=True))
    lengths = (here.chances(here.tables()[0]) @ here.mask.sum(-1).double()).detach()

    def error(normalise, rows):
        _, gradient = here.expect(
            lambda _, logs: policy_kl_loss(**logs, normalise=normalise).loss,
            on_policy=True,
            rows=rows,
        )
        return relative(gradient, truth / lengths)

    by_token = [error("token", rows) for rows in (2, 4, 6)]
    assert by_token[1] < 0.65 * by_token[0] and by_token[2] < 0.75 * by_token[1]
    assert error("sequence_mean", 1) == pytest.approx(error("sequence_mean", 3), rel=1e-9)


# Masks, zeros and infinities.


@pytest.mark.sweep(3)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_what_is_masked_may_hold_anything(direction, level, garbage):
    mask = torch.arange(6) < torch.tensor([6, 2, 0, 4])[:, None]
    mask[0, 2] = False  # a token in the middle that the policy did not draw
    results = []
    for filling in (0.0, garbage):
        logs = [torch.where(mask, log, filling) for log in random_logs(4, 6)]
        logs[0].requires_grad_()
        names = ("log_current", "log_reference", "log_behaviour")
        exact = torch.where(mask, random_logs(4, 6)[0].abs(), filling).requires_grad_()
        known = dict(zip(names, logs, strict=True)) | {"mask": mask}
        found = policy_kl_loss(**known, direction=direction, level=level, truncate=1.2)
        second = rao_blackwell_kl_loss(exact, **known, direction=direction, level=level)
        slopes = torch.autograd.grad(found.loss + second.loss, [logs[0], exact])
        assert all((slope[~mask] == 0).all() for slope in slopes)
        results.append([found.loss.detach(), second.loss.detach(), *slopes, found.terms])
        results[-1] += [found.estimate().value, found.effective_sample_size, found.sequences]
        results[-1] += [found.truncation_bias().value, found.share_truncated, found.tokens]
    for plain, spoilt in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(plain), torch.as_tensor(spoilt))
    assert results[0][-1] == 11 and found.sequences == 3


def test_nothing_that_counts_gives_zero_and_no_estimate():
    current, reference, _ = random_logs(2, 3)
    current.requires_grad_()
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for normalise in ("sequence", "batch", "token", "sequence_mean"):
        kl = policy_kl_loss(
            log_current=current, log_reference=reference, mask=mask, normalise=normalise
        )
        kl.loss.backward()
        assert kl.loss.item() == 0 and (current.grad == 0).all() and kl.tokens == 0
        with pytest.raises(ValueError, match="at least 2"):
            kl.estimate("k1")


def test_a_token_without_reference_mass_is_infinitely_far():
    current = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    reference = torch.tensor([[-1.0, -math.inf]])
    with pytest.raises(
        ValueError, match=r"log_reference: .* got inf: at \[0, 1\] \(1 of 2 positions\)"
    ):
        policy_kl_loss(log_current=current, log_reference=reference)
    kl = policy_kl_loss(log_current=current, log_reference=reference, missing="keep")
    kl.loss.backward()
    assert kl.loss.item() == math.inf and current.grad.tolist() == [[0.0, math.inf]]
    # from the reference's side that token does not exist: its KL is finite, its gradient too
    forward = policy_kl_loss(log_current=current, log_reference=reference, direction="forward")
    assert torch.autograd.grad(forward.loss, current)[0].tolist() == [[0.0, 1.0]]
    assert forward.loss.item() == 1.0 and forward.estimate.__self__ is forward


@pytest.mark.sweep(2)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("lacking", "on_policy"),
    [("reference", True), ("reference", False), ("current", False)],  # π draws nothing it lacks
)
def test_zero_probabilities_leave_both_exact(level, lacking, on_policy):
    here = World(3, 2, seed=7)
    if lacking == "reference":
        direction, here.reference = (
            "forward",
            here.reference.index_fill(-1, torch.tensor([1]), -math.inf),
        )
    else:
        direction = "reverse"
        gone = torch.zeros_like(here.logits).index_fill_(-1, torch.tensor([1]), -math.inf)
        here.tables = lambda: (
            (here.logits + gone).log_softmax(-1),
            here.reference.log_softmax(-1),
            here.behaviour.log_softmax(-1),
        )
    pi, ref, mu = here.tables()
    p, q = (pi, ref) if direction == "reverse" else (ref, pi)
    present = p > -math.inf
    rows = torch.where(present, p.exp() * (p.masked_fill(~present, 0.0) - q), 0.0).sum(-1)
    whole = here.chances(pi.detach() if on_policy else mu)
    if level == "sequence":
        whole = here.chances(p)
        whole = whole if direction == "reverse" else whole.detach()
    truth = (whole[:, None] * rows[here.prefixes]).sum()
    slope = here.gradient(truth)
    for estimator in ("k1", "k3"):
        names = {"direction": direction, "level": level, "estimator": estimator}
        value, gradient = expect_here(here, names, on_policy=on_policy)
        assert value.item() == pytest.approx(truth.item(), rel=EXACT)
        assert relative(gradient, slope) < EXACT


def expect_here(here, names, *, on_policy):
    pi, ref, mu = here.tables()
    chance = here.chances(pi if on_policy else mu).detach()
    total, slope = torch.zeros((), dtype=F64), torch.zeros(here.logits.numel(), dtype=F64)
    for world in (chance > 0).nonzero().flatten().tolist():
        pi = here.tables()[0]
        loss = policy_kl_loss(
            log_current=here.of_tokens(pi)[[world]],
            log_reference=here.of_tokens(ref)[[world]].detach(),
            log_behaviour=None if on_policy else here.of_tokens(mu)[[world]].detach(),
            **names,
        ).loss
        total = total + chance[world] * loss.detach()
        slope = slope + chance[world] * here.gradient(loss)
    return total, slope


def test_float32_and_bfloat16_follow_float64():
    logs64 = random_logs(8, 50)
    names = ("log_current", "log_reference", "log_behaviour")
    for dtype in (F32, torch.bfloat16):
        rounded = [log.to(dtype) for log in logs64]
        rounded[0].requires_grad_()
        kl = policy_kl_loss(**dict(zip(names, rounded, strict=True)))
        truth = policy_kl_loss(
            **{name: log.detach().double() for name, log in zip(names, rounded, strict=True)}
        )
        slope = torch.autograd.grad(kl.loss, rounded[0])[0]
        assert slope.dtype == dtype and kl.loss.dtype == F32
        # float32 work on what came: logs near 5 have ulps of 5e-7, ratios of 0.3 ± 5e-7
        assert kl.loss.item() == pytest.approx(truth.loss.item(), rel=1e-5)


@pytest.mark.parametrize(("dtype", "digits"), [(F64, 1e-13), (F32, 1e-6)])
@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_close_policies_keep_their_digits(dtype, digits, spread):
    generator = torch.Generator().manual_seed(0)
    log_r = spread * (2 * torch.rand(4, 50, generator=generator, dtype=F64) - 1)
    log_r = ((log_r * 2**24).round() / 2**24).to(dtype)  # so that log π + log r is exact
    current = torch.full_like(log_r, -0.5)
    kl = policy_kl_loss(log_current=current, log_reference=current + log_r)
    x = log_r.double()
    truth = (x**2 / 2 + x**3 / 6 + x**4 / 24 + x**5 / 120 + x**6 / 720).sum(-1).mean()
    assert kl.loss.item() == pytest.approx(truth.item(), rel=digits)
    assert (kl.terms >= 0).all()


def test_equal_policies_have_no_divergence_and_no_gradient():
    current, _, behaviour = random_logs(3, 4, dtype=F32)
    current.requires_grad_()
    for direction in DIRECTIONS:
        for level in LEVELS:
            kl = policy_kl_loss(
                log_current=current,
                log_reference=current.detach(),
                log_behaviour=behaviour,
                direction=direction,
                level=level,
            )
            slope = torch.autograd.grad(kl.loss, current)[0]
            assert kl.loss.item() == 0 and (slope == 0).all()


# Reports: error bars, weights, truncation, trust region.


def test_the_error_bar_is_over_sequences():
    current, reference, behaviour = random_logs(40, 9)
    kl = policy_kl_loss(
        log_current=current, log_reference=reference, log_behaviour=behaviour, estimator="k1"
    )
    rows = ((current - behaviour).exp() * (current - reference)).sum(-1)
    found = kl.estimate()
    assert found.draws == 40 and found.bias == "none"
    assert found.value == pytest.approx(rows.mean().item(), rel=1e-12)
    assert found.standard_error == pytest.approx(rows.std().item() / math.sqrt(40), rel=1e-12)
    batch = policy_kl_loss(log_current=current, log_reference=reference, normalise="batch")
    one = policy_kl_loss(log_current=current, log_reference=reference).estimate()
    assert batch.estimate().standard_error == pytest.approx(40 * one.standard_error, rel=1e-12)


@pytest.mark.parametrize("normalise", ["sequence", "batch", "token", "sequence_mean"])
@pytest.mark.parametrize("estimator", ["k1", "k3", "exact"])
def test_groups_of_sequences_are_the_draws(normalise, estimator):
    """The error of a ratio over groups by hand; groups of one sequence change nothing."""
    generator = torch.Generator().manual_seed(3)
    current, reference = -0.5 - torch.rand(2, 24, 5, generator=generator, dtype=F64)
    mask = torch.arange(5) < torch.randint(1, 6, (24, 1), generator=generator)
    mask[3] = False
    exact = torch.rand(24, 5, generator=generator, dtype=F64) if estimator == "exact" else None
    kl = policy_kl_loss(
        log_current=current,
        log_reference=reference,
        mask=mask,
        normalise=normalise,
        exact_kl=exact,
    )
    plain, own = kl.estimate(estimator), kl.estimate(estimator, groups=torch.arange(24) * 7 - 3)
    assert own.value == pytest.approx(plain.value, rel=1e-12)
    assert own.standard_error == pytest.approx(plain.standard_error, rel=1e-12)
    groups = torch.randperm(24, generator=generator) % 6
    found = kl.estimate(estimator, groups=groups)
    away = reference - current
    terms = {"k1": -away, "k3": away.exp() - 1 - away, "exact": exact}[estimator]
    sums, lengths = torch.where(mask, terms, 0.0).sum(1), mask.sum(1).double()
    sums = sums / lengths.clamp(min=1) if normalise == "sequence_mean" else sums
    sizes = lengths if normalise == "token" else (lengths > 0).double()
    totals, counts = (torch.zeros(6, dtype=F64).index_add(0, groups, x) for x in (sums, sizes))
    value = totals.sum() / counts.sum()
    error = 6**0.5 * ((totals - value * counts) / counts.mean()).std() / 6
    times = 23 if normalise == "batch" else 1
    assert found.value == pytest.approx(times * float(value), rel=1e-12)
    assert found.standard_error == pytest.approx(times * float(error), rel=1e-12)
    for wrong in (groups[:-1], groups.double(), torch.zeros_like(groups)):
        with pytest.raises(ArgumentValueError, match=r"^groups: expected"):
            kl.estimate(estimator, groups=wrong)


def test_on_policy_a_sequence_of_one_token_is_a_draw_of_log_ratio():
    current, reference, _ = random_logs(60, 1)
    kl = policy_kl_loss(log_current=current, log_reference=reference)
    for estimator in ("k1", "k2", "k3", 0.3, "best"):
        full = estimator not in ("k1", "k2")
        truth = log_ratio(current[:, 0], reference[:, 0], estimator=estimator, full_support=full)
        found = kl.estimate(estimator)
        assert found.value == pytest.approx(truth.value, rel=1e-12)
        assert found.standard_error == pytest.approx(truth.standard_error, rel=1e-9)
        assert (found.bias, found.why, found.warnings) == (truth.bias, truth.why, truth.warnings)
    best = policy_kl_loss(log_current=current, log_reference=reference, estimator="best")
    assert best.loss.item() == pytest.approx(best.estimate("best").value, rel=1e-12)


def test_per_token_over_unequal_lengths_is_a_ratio_with_its_error():
    current, reference, _ = random_logs(30, 8)
    lengths = 1 + torch.arange(30) % 8
    mask = torch.arange(8) < lengths[:, None]
    kl = policy_kl_loss(log_current=current, log_reference=reference, mask=mask, normalise="token")
    terms = log_ratio_terms(current, reference, estimator="k3")
    rows = torch.where(mask, terms, 0.0).sum(-1)
    value = rows.sum() / lengths.sum()
    influence = (rows - value * lengths) / lengths.double().mean()
    error = (influence.square().sum() / (30 * 29)).sqrt().item()
    found = kl.estimate("k3")
    assert found.value == pytest.approx(value.item(), rel=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-9) and found.bias == "unknown"
    exact = policy_kl_loss(
        log_current=current, log_reference=reference, mask=mask, normalise="token", exact_kl=terms
    )
    again = exact.estimate()
    assert again.value == pytest.approx(value.item(), rel=1e-12)
    assert again.standard_error == pytest.approx(error, rel=1e-9) and again.bias == "unknown"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_cut_that_never_cuts_changes_nothing(direction, level):
    current, reference, behaviour = random_logs(6, 5)
    current.requires_grad_()
    logs = {"log_current": current, "log_reference": reference, "log_behaviour": behaviour}
    slopes = []
    for truncate in (None, 1e9):
        kl = policy_kl_loss(**logs, direction=direction, level=level, truncate=truncate)
        slopes += [kl.loss.detach(), torch.autograd.grad(kl.loss, current)[0]]
        assert kl.share_truncated == 0 and kl.estimate().bias == "none"
        bias = kl.truncation_bias()
        assert (bias.value, bias.standard_error) == (0, 0)
    torch.testing.assert_close(slopes[0], slopes[2], rtol=1e-13, atol=0)
    torch.testing.assert_close(slopes[1], slopes[3], rtol=1e-11, atol=1e-15)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_truncation_reports_how_often_and_with_which_bias(direction, level):
    here = WORLDS["far and stale"]
    truth = here.truth(direction, level, on_policy=False)
    names = {"direction": direction, "level": level, "truncate": 1.1}
    biases, shares = [], []

    def loss_of(_, logs):
        one = policy_kl_loss(**logs, **names)
        two = policy_kl_loss(
            **{k: v if v is None else v.repeat(2, 1) for k, v in logs.items()}, **names
        )
        biases.append(two.truncation_bias().value)
        shares.append(two.share_truncated)
        assert two.share_truncated == 0 or two.estimate().bias == "unknown"
        return one.loss

    value, _ = here.expect(loss_of, on_policy=False)
    chance = here.chances(here.tables()[2])
    bias = (chance @ torch.tensor(biases, dtype=F64)).item()
    assert bias == pytest.approx((value - truth).item(), rel=1e-9)
    pi, ref, mu = (here.of_tokens(table).detach() for table in here.tables())
    weight = (pi if direction == "reverse" else ref) - mu
    weight = weight.cumsum(-1).exp() if level == "sequence" else weight.exp()
    assert shares == pytest.approx((weight > 1.1).double().mean(-1).tolist())


def test_a_trust_region_says_how_often_it_acted():
    current, reference, behaviour = random_logs(6, 5)
    current.requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]
    logs = {"log_current": current, "log_reference": reference, "log_behaviour": behaviour}
    free = policy_kl_loss(**logs, mask=mask)
    kl = policy_kl_loss(**logs, mask=mask, trust_region=(0.8, 1.25))
    ratio = (current - behaviour).exp()
    below, above = (mask & (ratio < 0.8)), (mask & (ratio > 1.25))
    assert kl.trust_region == TrustRegion(int(below.sum()), int(above.sum()), 20)
    assert 0 < kl.trust_region.share < 1 and free.trust_region is None
    assert torch.equal(kl.loss.detach(), free.loss.detach())
    slope, all_of_it = (torch.autograd.grad(each.loss, current)[0] for each in (kl, free))
    outside = below | above
    assert (slope[outside] == 0).all() and torch.equal(slope[~outside], all_of_it[~outside])


@pytest.mark.parametrize("level", LEVELS)
def test_effective_sample_size_is_kongs(level):
    current, reference, behaviour = random_logs(6, 5)
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 0])[:, None]
    logs = {"log_current": current, "log_reference": reference, "mask": mask, "level": level}
    step = torch.where(mask, current - behaviour, 0.0)
    weights = step.sum(-1)[:5] if level == "sequence" else step[mask]
    found = policy_kl_loss(**logs, log_behaviour=behaviour).effective_sample_size
    assert found == pytest.approx(effective_sample_size(weights).item(), rel=1e-12)
    assert policy_kl_loss(**logs).effective_sample_size == (5 if level == "sequence" else 15)


def test_the_divergence_is_said_in_words():
    current, reference, _ = random_logs(2, 2)
    kl = policy_kl_loss(
        log_current=current, log_reference=reference, direction="forward", level="sequence"
    )
    assert kl.divergence == "KL(reference ‖ policy) of whole sequences, nats/sequence"


# Rao-Blackwell: how much it scatters.


@pytest.mark.slow
def test_at_one_token_the_exact_kl_never_scatters_more():
    for seed in range(20):
        here = World(4, 1, seed=seed, far=0.1 + 0.2 * seed)
        for direction in DIRECTIONS:
            spreads = {}
            for estimator in ("k1", "k3", "rao-blackwell"):
                spreads[estimator] = spread(here, estimator, direction)
            for estimator in ("k1", "k3"):
                for exact, sampled in zip(
                    spreads["rao-blackwell"], spreads[estimator], strict=True
                ):
                    assert exact <= sampled + 1e-12


def conditioned():
    # π is the reference, given that a certain thing does not happen: log π/π_ref of the sequence is
    # one number, k1 never errs, and the exact KLs at the prefixes vary
    here = World(2, 2, seed=0)
    odds, rest = 1 / (1 + math.e), math.exp(-1)
    reference = [[odds, 1 - odds], [0.5, 0.5], [1 - rest, rest]]
    here.reference = torch.tensor(reference, dtype=F64).log()
    policy = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1e-12, 1 - 1e-12]], dtype=F64)
    here.logits = policy.log().requires_grad_()
    return here


def draws_of(here, estimator, level, place=None):
    """Return values `[worlds, 1]` and gradients `[worlds, n]`, of one place or all; chances."""

    def loss_of(pick, logs):
        if place is not None:
            logs["mask"] = logs["mask"] & (torch.arange(here.length) == place)
        if estimator == "rao-blackwell":
            return rao_blackwell_kl_loss(here.exact("reverse")[pick], **logs, level=level).loss
        return policy_kl_loss(**logs, level=level, estimator=estimator).loss

    values, slopes, chance = here.every(loss_of, on_policy=True)
    return (values[:, None], slopes), chance


def covariance(chance, x, y):
    return (chance @ ((x - chance @ x) * (y - chance @ y))).sum().item()


LAWFUL = [World(3, 3, seed=seed, far=0.2 + 0.3 * seed) for seed in range(6)] + [conditioned()]


@pytest.mark.slow
@pytest.mark.sweep(7)
@pytest.mark.parametrize("here", LAWFUL)
def test_at_every_position_the_exact_kl_never_scatters_more(here):
    for place in range(here.length):
        exact, chance = draws_of(here, "rao-blackwell", "token", place)
        for estimator in ("k1", "k3", 0.5):
            sampled, _ = draws_of(here, estimator, "token", place)
            for some, other in zip(exact, sampled, strict=True):
                most = covariance(chance, other, other)
                assert covariance(chance, some, some) <= most * (1 + 1e-9) + 1e-12


@pytest.mark.sweep(3)
@pytest.mark.parametrize("here", LAWFUL)
def test_over_sequences_the_best_multiple_never_scatters_more_than_either(here):
    exact, chance = draws_of(here, "rao-blackwell", "sequence")
    sampled, _ = draws_of(here, "k1", "sequence")
    for some, other in zip(exact, sampled, strict=True):
        rest = other - some
        own, whole = covariance(chance, some, some), covariance(chance, other, other)
        share = covariance(chance, some, rest) / covariance(chance, rest, rest)
        best = some - share * rest
        least = covariance(chance, best, best)
        assert least <= min(own, whole) * (1 + 1e-9) + 1e-12
        torch.testing.assert_close(chance @ best, chance @ some, rtol=1e-9, atol=1e-12)


def spread(here, estimator, direction="reverse"):
    def loss_of(pick, logs):
        names = {"direction": direction, "level": "sequence"}
        if estimator == "rao-blackwell":
            return rao_blackwell_kl_loss(here.exact(direction)[pick], **logs, **names).loss
        return policy_kl_loss(**logs, **names, estimator=estimator).loss

    values, slopes, chance = here.every(loss_of, on_policy=True)
    return [(chance @ (x - chance @ x) ** 2).sum().item() for x in (values, slopes)]


def test_over_two_tokens_it_may_scatter_more_and_the_best_of_both_does_not():
    here = conditioned()
    assert spread(here, "k1")[0] < 1e-6 < 0.2 < spread(here, "rao-blackwell")[0]
    generator = torch.Generator().manual_seed(0)
    picks = torch.multinomial(
        here.chances(here.tables()[0]).detach(), 200, True, generator=generator
    )
    pi, ref, _ = (here.of_tokens(table).detach()[picks] for table in here.tables())
    kl = policy_kl_loss(
        log_current=pi, log_reference=ref, exact_kl=here.exact("reverse").detach()[picks]
    )
    assert kl.estimate("best").standard_error < 0.01 * kl.estimate("exact").standard_error
    assert kl.estimate().value == kl.estimate("exact").value
    truth = here.truth("reverse", "sequence", on_policy=True).item()
    assert kl.estimate("best").value == pytest.approx(truth, abs=1e-9)


# Errors say what was expected.


CURRENT, REFERENCE, BEHAVIOUR = random_logs(2, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"log_current": [1.0]}, "log_current: expected Tensor"),
        ({"log_reference": REFERENCE[:1]}, r"log_reference: expected the shape \[2, 3\]"),
        ({"log_reference": REFERENCE.long()}, "log_reference: expected a floating-point"),
        ({"log_current": CURRENT[0]}, r"log_current: expected a floating-point tensor \[batch"),
        ({"mask": torch.ones(2, 3)}, r"mask: expected a bool tensor \[2, 3\]"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, "mask: expected a bool tensor"),
        ({"direction": "kl"}, "direction: expected 'reverse' or 'forward'"),
        ({"level": "word"}, "level: expected 'token' or 'sequence'"),
        ({"normalise": "mean"}, "normalise: expected one of sequence, batch"),
        ({"level": "sequence", "normalise": "token"}, "normalise: expected 'sequence' or 'batch'"),
        ({"estimator": "k4"}, "estimator: expected a number"),
        ({"estimator": "best"}, "log_current: expected at least 4 sequences"),
        ({"estimator": "k2", "level": "sequence"}, "estimator: expected an unbiased one"),
        ({"truncate": 2.0, "log_behaviour": None}, "truncate: expected None where draws"),
        ({"truncate": -1.0}, "truncate: expected a positive number"),
        ({"truncate": "2"}, "truncate: expected int or float; got str"),
        ({"direction": ["reverse"]}, "direction: expected 'reverse' or 'forward'"),
        ({"normalise": ["token"]}, "normalise: expected one of sequence, batch"),
        ({"estimator": math.nan}, "estimator: expected a number"),
        ({"trust_region": 0.2}, r"trust_region: expected \(low, high\)"),
        ({"trust_region": ("a", "b")}, r"trust_region: expected \(low, high\)"),
        ({"exact_kl": torch.zeros(2, 3, 4)}, "exact_kl: expected .* Try: kullback.tokens.kl"),
        ({"trust_region": (0.5, 2.0), "log_behaviour": None}, "trust_region: expected None"),
        ({"trust_region": (1.2, 2.0)}, "trust_region: expected"),
        ({"exact_kl": REFERENCE[:, :1]}, "exact_kl: expected the shape"),
    ],
)
def test_errors_name_the_argument_and_what_it_should_be(change, words):
    logs = {"log_current": CURRENT, "log_reference": REFERENCE, "log_behaviour": BEHAVIOUR}
    with pytest.raises((ValueError, TypeError), match=words):
        policy_kl_loss(**(logs | change))


def test_an_exact_kl_without_its_graph_would_lose_the_gradient():
    current = CURRENT.clone().requires_grad_()
    logs = {"log_current": current, "log_reference": REFERENCE}
    with pytest.raises(ValueError, match="exact_kl: expected a tensor with its graph"):
        rao_blackwell_kl_loss(torch.ones(2, 3, dtype=F64), **logs)
    with torch.no_grad():  # to measure, it needs none
        assert rao_blackwell_kl_loss(torch.ones(2, 3, dtype=F64), **logs).loss.item() == 3


def test_estimates_ask_for_what_they_need():
    one = policy_kl_loss(log_current=CURRENT[:1], log_reference=REFERENCE[:1])
    with pytest.raises(ValueError, match="log_current: expected at least 2 sequences"):
        one.estimate()
    kl = policy_kl_loss(log_current=CURRENT, log_reference=REFERENCE)
    with pytest.raises(ValueError, match="at least 4 sequences"):
        kl.estimate("best")
    with pytest.raises(ValueError, match="estimator: expected"):
        kl.estimate("exact")
    with pytest.raises(ValueError, match="estimator: expected a number"):
        kl.estimate("k9")


def test_a_policy_kl_prints_in_a_line():
    current, reference, _ = random_logs(500, 40)
    found = policy_kl_loss(log_current=current.requires_grad_(), log_reference=reference)
    text = str(found)
    assert text == repr(found)
    assert text.startswith(f"PolicyKL(loss {found.loss.item():.6g}: {found.divergence}; 20,000 tok")
    assert "of 500 sequences" in text
    assert "tensor" not in text
    assert len(text) < 250
    assert "\n" not in text
