"""The audit names what a loss descends: our own k1, k2, k3 and the formulas of other libraries."""

import functools
import json

import pytest
import torch

from kullback.core import ArgumentTypeError, ArgumentValueError
from kullback.tokens import audit
from kullback.tokens.auditing.matching import TARGETS, best_estimator, gradient
from kullback.tokens.auditing.worlds import Caller, gradient_of, worlds
from tokens import peer_losses as peers

REVERSE, FORWARD = "KL(policy‖ref)", "KL(ref‖policy)"
DIFFERENCE = f"{REVERSE} − {FORWARD}"
SQUARE = "½E[log²(policy/ref)]"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(finding):
    """What a test compares: kind, name and level, with a minus where it ascends."""
    sign = "minus " if finding.ascends else ""
    return finding.kind, f"{sign}{finding.descends}", finding.level


EXACT_TOKEN = ("exact", REVERSE, "token")
EXACT_SEQUENCE = ("exact", REVERSE, "sequence")
FORWARD_TOKEN = ("exact", FORWARD, "token")

SLOW = ("[w] k1", "w k2", "k3+", "log π [k3]", "GKD 0.2", "OpenRLHF k3", "MiniLLM, normalised")
SLOW = (*SLOW, "k1, sequence", "k1, unweighted", "k3, to go")


def with_slow(names):
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


LOSSES = {
    "k1": (peers.k1, ("zero", "", ""), ("exact", "minus KL(behaviour‖policy)", "token")),
    "k2": (peers.k2, EXACT_TOKEN, None),
    "k3": (peers.k3, FORWARD_TOKEN, None),
    "w k1": (peers.weighted(peers.k1, detached=False), EXACT_TOKEN, EXACT_TOKEN),
    "w k2": (
        peers.weighted(peers.k2, detached=False),
        ("exact", SQUARE, "token"),
        ("exact", SQUARE, "token"),
    ),
    "w k3": (peers.weighted(peers.k3, detached=False), EXACT_TOKEN, EXACT_TOKEN),
    "[w] k1": (peers.weighted(peers.k1, detached=True), ("zero", "", ""), ("zero", "", "")),
    "[w] k2": (peers.weighted(peers.k2, detached=True), EXACT_TOKEN, EXACT_TOKEN),
    "[w] k3": (peers.weighted(peers.k3, detached=True), FORWARD_TOKEN, FORWARD_TOKEN),
    "log π [k1]": (peers.score_times(peers.k1, detached=True), EXACT_TOKEN, None),
    "log π [k3]": (peers.score_times(peers.k3, detached=True), ("sum", DIFFERENCE, "token"), None),
    "k3+": (peers.straight_through, EXACT_TOKEN, None),
    "GRPO": (peers.grpo_term(corrected=False), FORWARD_TOKEN, None),
    "GRPO corrected": (peers.grpo_term(corrected=True), EXACT_TOKEN, EXACT_TOKEN),
    "GKD 0": (peers.gkd(0.0), FORWARD_TOKEN, FORWARD_TOKEN),
    "GKD 0.5": (peers.gkd(0.5), ("exact", "JSD(½)", "token"), ("exact", "JSD(½)", "token")),
    "GKD 0.2": (peers.gkd(0.2), ("exact", "JSD(0.2)", "token"), ("exact", "JSD(0.2)", "token")),
    "GKD 1": (peers.gkd(1.0), EXACT_TOKEN, EXACT_TOKEN),
    "MiniLLM": (peers.minillm(normalised=False), EXACT_SEQUENCE, None),
    "MiniLLM, normalised": (peers.minillm(normalised=True), None, None),
    "OpenRLHF k1": (
        peers.openrlhf("k1"),
        ("near zero", "", ""),
        ("near", "minus KL(behaviour‖policy)", "token"),
    ),
    "OpenRLHF k2": (peers.openrlhf("k2"), ("near", REVERSE, "token"), None),
    "OpenRLHF k3": (peers.openrlhf("k3"), ("near", FORWARD, "token"), None),
    "verl low_var_kl": (peers.verl_low_var_kl, ("near", FORWARD, "token"), None),
}


@pytest.mark.sweep(12)
@pytest.mark.parametrize("name", with_slow(LOSSES))
def test_losses_are_named(name):
    loss, on_policy, off_policy = LOSSES[name]
    report = audit(loss, form="loss")
    dead = max(row.dead_tokens for row in report.rows)
    assert (dead > 0) == ("get no gradient" in " ".join(report.notes))
    single = [row for row in report.rows if row.length == 1]  # where a token is the sequence
    assert {c.level for row in single for c in row.comparisons} == {"token"}
    for expected, finding in ((on_policy, report.on_policy), (off_policy, report.off_policy)):
        if expected is None:
            assert finding.kind == "none", finding
            assert finding.error > 0.05
        else:
            assert found(finding) == expected
            if expected[0] == "exact":
                assert finding.error < 1e-9


def test_k2_is_a_gradient_of_single_tokens_and_not_of_sequences():
    assert gradient_of(Caller(peers.k2), on_policy=True) == "tokens"
    assert gradient_of(Caller(peers.k2), on_policy=False) == "sequences"


PENALTIES = {
    "k1, token": (peers.k1, "token", "token", EXACT_TOKEN, EXACT_TOKEN),
    "k1, to go": (peers.k1, "to-go", "sequence", EXACT_SEQUENCE, EXACT_SEQUENCE),
    "k1, sequence": (peers.k1, "sequence", "sequence", EXACT_SEQUENCE, EXACT_SEQUENCE),
    "k1, unweighted": (peers.k1, "to-go", "none", EXACT_SEQUENCE, None),
    "k2, token": (peers.k2, "token", "none", ("sum", f"{SQUARE} − {REVERSE}", "token"), None),
    "k3, token": (peers.k3, "token", "none", ("sum", DIFFERENCE, "token"), None),
    "k3, to go": (peers.k3, "to-go", "none", None, None),
    "OpenRLHF k1": (peers.openrlhf("k1"), "to-go", "none", ("near", REVERSE, "sequence"), None),
}


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", with_slow(PENALTIES))
def test_penalties_are_named(name):
    penalty, credit, importance, on_policy, off_policy = PENALTIES[name]
    report = audit(penalty, form="penalty", credit=credit, importance=importance)
    for expected, finding in ((on_policy, report.on_policy), (off_policy, report.off_policy)):
        assert finding.kind == "none" if expected is None else found(finding) == expected


@pytest.mark.slow
def test_best_estimators_are_unbiased_and_rarely_noisier():
    """The Rao-Blackwell estimators that noise is compared with have the right expectation."""
    for world in worlds():
        for target in TARGETS:
            found = best_estimator(target, world)
            if found is None or ("behaviour" in target.name and world.on_policy):
                continue
            mean = torch.einsum("n,nrv->rv", world.probabilities(world.behaviour), found)
            truth = gradient(target, world)
            assert float((mean - truth).norm()) <= 1e-12 * max(1.0, float(truth.norm())) * 30


@pytest.mark.slow
def test_noise_of_k2_is_above_the_best():
    report = audit(peers.k2)
    for row in report.rows:
        if row.on_policy:
            assert row.noise > row.best_noise >= 0


@pytest.mark.slow
def test_clamps_are_counted():
    report = audit(peers.verl_low_var_kl)
    far = [row for row in report.rows if row.distance == "far"]
    assert max(row.dead_tokens for row in far) > 0.05
    assert max(row.dead_where_ref for row in far) > 0.3
    assert max(row.dead_tokens for row in report.rows if row.distance == "near") == 0
    below, above = report.dead_zones
    assert below[1] == pytest.approx(-2.611, abs=0.011)  # e^x − x − 1 = 10 at x = 2.6109
    assert above[0] == pytest.approx(11.0, abs=0.011)  # and at x = −11
    assert "no gradient" in " ".join(report.notes)


@pytest.mark.slow
def test_lengths_and_padding():
    def careless(logp, ref_logp, mask):
        return peers.k2(logp, ref_logp).mean() + 0 * mask.sum()

    assert audit(careless).padding
    report = audit(peers.grpo_term(corrected=True))
    assert not report.padding
    assert report.lengths > 0.01  # divided by each sequence's own length


@pytest.mark.slow
def test_a_leave_one_out_baseline_needs_two_sequences():
    """RLOO: k1 of whole sequences, less that of the other: unbiased, seen only in batches of 2."""

    def penalty(logp, ref_logp):
        whole = peers.k1(logp, ref_logp).sum(-1)
        return whole - (whole.sum() - whole) / max(1, len(whole) - 1)

    report = audit(penalty, credit="sequence", batch=2)
    assert found(report.on_policy) == EXACT_SEQUENCE
    assert {row.length for row in report.rows} >= {1, 2}


@pytest.mark.slow
def test_what_is_returned_goes_to_json():
    report = audit(peers.k3)
    fields = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert fields["on_policy"]["descends"] == FORWARD
    assert fields["verdict"] == str(report) == report.verdict
    assert len(fields["rows"]) == 16
    assert "Its value on-policy is KL(policy‖ref)" in report.verdict


@pytest.mark.slow
def test_objects_tuples_and_partials_are_understood():
    def both(power, logp, ref_logp):
        return (0.5 * (logp - ref_logp) ** power, {"logged": 1})

    report = audit(functools.partial(both, 2))
    assert report.name == "both"
    assert found(report.on_policy) == EXACT_TOKEN
    assert audit(lambda x, ref: (x - ref) ** 2, names={"x": "logp", "ref": "ref_logp"}).name


def test_gradients_that_are_not_finite_are_said():
    report = audit(lambda logp, ref_logp: (logp - ref_logp).sqrt())
    assert report.on_policy.kind == "not finite"
    assert max(row.not_finite for row in report.rows) > 0
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.slow
def test_half_precision_is_not_taken_for_the_gradient_of_no_function():
    """Gradients that jump have no derivative to look at; float32's are resolved."""

    def kl(logits, ref_logits, dtype=torch.bfloat16):
        p, q = (x.to(dtype).float().log_softmax(-1) for x in (logits, ref_logits))
        return (p.exp() * (p - q)).sum(-1)

    finding = audit(kl).on_policy
    assert (finding.kind, finding.gradient_of, finding.descends) == ("none", "unknown", REVERSE)
    assert "up to its rounding" in audit(kl).verdict
    assert found(audit(functools.partial(kl, dtype=torch.float32)).on_policy) == EXACT_TOKEN

    def renyi(logits, ref_logits):
        p, q = (x.float().log_softmax(-1) for x in (logits, ref_logits))
        return -(0.3 * p + 0.7 * q).logsumexp(-1)

    assert audit(renyi).on_policy.gradient_of == "tokens"


def test_a_dictionary_of_outputs_is_understood():
    report = audit(lambda logp, ref_logp: {"loss": peers.k2(logp, ref_logp).mean(), "kl": 1.0})
    assert found(report.on_policy) == EXACT_TOKEN


def dropped(logp, ref_logp):
    return torch.nn.functional.dropout(logp - ref_logp, 0.5) ** 2


def counting(logp, ref_logp):
    counting.calls = getattr(counting, "calls", 0) + 1
    return counting.calls * (logp - ref_logp) ** 2


def raises(logp, ref_logp):
    raise ZeroDivisionError


WRONG = {
    "not a callable": (3, {}, ArgumentValueError, "loss: expected a callable"),
    "unknown": (lambda logp, dog: logp, {}, ArgumentValueError, "'dog'"),
    "no policy": (lambda ref_logp: ref_logp, {}, ArgumentValueError, "for the policy"),
    "detached": (lambda logp: logp.detach(), {}, ArgumentValueError, "a constant"),
    "a number": (lambda logp: 3.0, {}, ArgumentTypeError, "a tensor as result"),
    "shape": (lambda logp: logp.new_zeros(7) * logp.sum(), {}, ArgumentValueError, r"\[7\]"),
    "form": (peers.k1, {"form": "gain"}, ArgumentValueError, "form"),
    "credit": (peers.k1, {"credit": "all"}, ArgumentValueError, "credit"),
    "importance": (peers.k1, {"importance": "full"}, ArgumentValueError, "importance"),
    "batch": (peers.k1, {"batch": 0}, ArgumentValueError, "batch"),
    "role": (lambda x: x, {"names": {"x": "cat"}}, ArgumentValueError, "'cat'"),
    "dropout": (dropped, {}, ArgumentValueError, "the same value and gradient"),
    "a state": (counting, {}, ArgumentValueError, "the same value and gradient"),
    "its own error": (raises, {}, ZeroDivisionError, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    loss, how, error, said = WRONG[name]
    with pytest.raises(error, match=said) as caught:
        audit(loss, **how)
    if name == "its own error":
        assert "called with logp float64 [1, 1]" in caught.value.__notes__[0]
