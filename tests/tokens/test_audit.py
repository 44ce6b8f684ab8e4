"""The audit names what a loss descends: our own k1, k2, k3 and the formulas of other libraries."""

import pytest
import torch

from kullback.tokens import audit
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
    "OpenRLHF k1": (peers.openrlhf("k1"), ("zero", "", ""), None),
    "OpenRLHF k2": (peers.openrlhf("k2"), ("near", REVERSE, "token"), None),
    "OpenRLHF k3": (peers.openrlhf("k3"), ("near", FORWARD, "token"), None),
    "verl low_var_kl": (peers.verl_low_var_kl, ("near", FORWARD, "token"), None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_named(name):
    loss, on_policy, off_policy = LOSSES[name]
    report = audit(loss, form="loss")
    for expected, finding in ((on_policy, report.on_policy), (off_policy, report.off_policy)):
        if expected is None:
            assert finding.kind == "none", finding
            assert finding.error > 0.05
        else:
            assert found(finding) == expected
            if expected[0] == "exact":
                assert finding.error < 1e-9


PENALTIES = {
    "k1, token": (peers.k1, "token", "token", EXACT_TOKEN, EXACT_TOKEN),
    "k1, to go": (peers.k1, "to-go", "sequence", EXACT_SEQUENCE, EXACT_SEQUENCE),
    "k1, sequence": (peers.k1, "sequence", "sequence", EXACT_SEQUENCE, EXACT_SEQUENCE),
    "k1, unweighted": (peers.k1, "to-go", "none", EXACT_SEQUENCE, None),
    "k2, token": (peers.k2, "token", "none", ("sum", f"{SQUARE} − {REVERSE}", "token"), None),
    "k3, token": (peers.k3, "token", "none", ("sum", DIFFERENCE, "token"), None),
    "k3, to go": (peers.k3, "to-go", "none", None, None),
    "OpenRLHF k1": (peers.openrlhf("k1"), "to-go", "none", EXACT_SEQUENCE, None),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_named(name):
    penalty, credit, importance, on_policy, off_policy = PENALTIES[name]
    report = audit(penalty, form="penalty", credit=credit, importance=importance)
    for expected, finding in ((on_policy, report.on_policy), (off_policy, report.off_policy)):
        assert finding.kind == "none" if expected is None else found(finding) == expected
