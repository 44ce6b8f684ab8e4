"""Logits cut over 2 and 4 processes against the same logits whole, values and gradients."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from kullback import tokens
from kullback.tokens import Sharded, usable

CASES = ("plain", "both ban", "p bans", "q bans", "a slice is banned", "close", "float32")
CUTS = {2: (5, 12), 4: (1, 6, 6, 4)}


def make(case):
    """Logits p, q [3, 17] and ids [3]."""
    draw = torch.Generator().manual_seed(CASES.index(case))
    p = 3 * torch.randn(3, 17, generator=draw, dtype=torch.float64)
    q = p + (1e-3 if case == "close" else 1.0) * torch.randn(3, 17, generator=draw).double()
    if case in ("both ban", "p bans"):
        p[:, ::3] = -math.inf
    if case in ("both ban", "q bans"):
        q[:, :: 3 if case == "both ban" else 4] = -math.inf
    if case == "a slice is banned":
        p[:, :5], q[0, 5:], q[1, :5] = -math.inf, -math.inf, -math.inf
    if case == "float32":
        p, q = p.float(), q.float()
    return p, q, torch.tensor([0, 5, 16])


def weighted(found):
    """A loss of every value but agreement; infinite values take part with their constants."""
    values = [x for x in found if x is not None and x.is_floating_point()]
    weights = torch.linspace(0.5, 2.0, len(values) * 3).to(values[0]).reshape(-1, 3)
    return sum((w * x).sum() for w, x in zip(weights, values, strict=True))


def work(folder, world, rank):
    """What each process does: every case, its own slice; results are written to a file."""
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    start = sum(CUTS[world][:rank])
    own, results = slice(start, start + CUTS[world][rank]), {}
    for case in CASES:
        p, q, ids = make(case)
        pair = [x[:, own].clone().requires_grad_() for x in (p, q)]
        cut = [Sharded(x) for x in pair]
        found = tokens.compare(*cut, ids=ids, temperature=1.3, backend="chunked")
        grads = torch.autograd.grad(weighted(found), pair)
        one = [tokens.kl(*cut), tokens.entropy(cut[0]), tokens.log_prob(cut[0], ids)]
        results[case] = (*(x.detach() for x in found), *grads, *(x.detach() for x in one))
        mixed = tokens.js(*cut, beta=0.3, temperature=1.3)
        results["js " + case] = (mixed.detach(), *torch.autograd.grad(weighted([mixed]), pair))
        sums = tokens.jeffreys(*cut), tokens.cross_entropy(*cut)
        results["sums " + case] = tuple(x.detach() for x in sums)
        if case == "float32" and not usable(pair[0])["native"]:
            found = tokens.compare(*cut, ids=ids, temperature=1.3, backend="native")
            grads = torch.autograd.grad(weighted(found), pair)
            results["native"] = (*(x.detach() for x in found), *grads, *results[case][9:])
    mask = torch.tensor([True, False, True])
    broken, q, _ = make("plain")
    broken[1, 3] = math.nan
    pair = [x[:, own].clone().requires_grad_() for x in (broken, q)]
    cut = [Sharded(x) for x in pair]
    masked = tokens.kl(*cut, mask=mask)
    passed = tokens.kl(*cut, nan="pass")
    results["mask"] = (masked.detach(), *torch.autograd.grad(masked.sum(), pair), passed.detach())
    mixed, passed = tokens.js(*cut, mask=mask), tokens.js(*cut, nan="pass")
    results["js mask"] = (mixed.detach(), *torch.autograd.grad(mixed.sum(), pair), passed.detach())
    try:
        tokens.kl(*cut)
    except ValueError as error:
        results["refused"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def shards(request, tmp_path_factory):
    folder, world = str(tmp_path_factory.mktemp("shards")), request.param
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, folder, str(world)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(world)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * world
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, "native"])
def test_slices_give_the_values_of_the_whole(shards, case):
    if case == "native" and usable(torch.zeros(1, 2))["native"]:
        pytest.skip("no compiler")
    p, q, ids = make("float32" if case == "native" else case)
    pair = [x.double().requires_grad_() for x in (p, q)]
    whole = tokens.compare(*pair, ids=ids, temperature=1.3, backend="reference")
    grads = torch.autograd.grad(weighted(whole), pair)
    ulps = 64 * torch.finfo(p.dtype).eps
    for rank in shards:
        found = rank[case]
        for ours, theirs in zip(found[:7], whole, strict=True):
            torch.testing.assert_close(ours.to(theirs), theirs.detach(), rtol=ulps, atol=ulps)
        alone = (tokens.kl(p, q), tokens.entropy(p), tokens.log_prob(p, ids))
        for ours, theirs in zip(found[9:], alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=ulps, atol=ulps)
    for side in (0, 1):
        ours = torch.cat([rank[case][7 + side] for rank in shards], -1)
        torch.testing.assert_close(ours.double(), grads[side], rtol=ulps, atol=ulps)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_jensen_shannon_and_the_sums_of_two(shards, case):
    p, q, _ = make(case)
    pair = [x.double().requires_grad_() for x in (p, q)]
    whole = tokens.js(*pair, beta=0.3, temperature=1.3, backend="reference")
    grads = torch.autograd.grad(weighted([whole]), pair)
    ulps = 64 * torch.finfo(p.dtype).eps
    for rank in shards:
        torch.testing.assert_close(rank["js " + case][0].double(), whole, rtol=ulps, atol=ulps)
        for ours, function in zip(
            rank["sums " + case], (tokens.jeffreys, tokens.cross_entropy), strict=True
        ):
            torch.testing.assert_close(ours, function(p, q), rtol=ulps, atol=ulps)
    for side in (0, 1):
        ours = torch.cat([rank["js " + case][1 + side] for rank in shards], -1)
        torch.testing.assert_close(ours.double(), grads[side], rtol=ulps, atol=ulps)


@pytest.mark.slow
def test_masks_and_rows_without_distribution(shards):
    p, q, _ = make("plain")
    for key, function in (("mask", tokens.kl), ("js mask", tokens.js)):
        whole = function(p, q).detach()
        for rank in shards:
            masked, p_grad, q_grad, passed = rank[key]
            torch.testing.assert_close(masked, torch.where(torch.arange(3) == 1, 0.0, whole))
            assert (p_grad[1] == 0).all() and (q_grad[1] == 0).all()
            assert passed.isnan().tolist() == [False, True, False]
            assert "1 positions of 3" in rank["refused"]


def test_without_a_group_it_says_so():
    with pytest.raises(ValueError, match="backend: expected one that sums rows"):
        tokens.kl(Sharded(torch.zeros(2)), Sharded(torch.zeros(2)), backend="reference")
    with pytest.raises(ValueError, match="group: expected a process group"):
        tokens.kl(Sharded(torch.zeros(2)), Sharded(torch.zeros(2)))


if __name__ == "__main__":
    work(sys.argv[1], *map(int, sys.argv[2:]))
