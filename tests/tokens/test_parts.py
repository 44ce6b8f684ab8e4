"""Pieces joined by the chain rule are the whole: values, gradients, tokens without mass."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.tokens import parts, reference
from kullback.tokens.task import Task

LOGITS = st.sampled_from([-math.inf, -800.0, -3.0, 0.0, 1.0, 2.5])


def in_pieces(p, q, cut):
    pairs = zip(p.split(cut, -1), q.split(cut, -1), strict=True)
    pieces = [parts.of_logits(*(x.clone() for x in pair)) for pair in pairs]
    return parts.joined(parts.Parts(*(torch.stack(x, -1) for x in zip(*pieces, strict=True))))


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(LOGITS, LOGITS), min_size=1, max_size=9), cut=st.integers(1, 9))
def test_pieces_joined_are_the_whole(rows, cut):
    p, q = torch.tensor(rows, dtype=torch.float64).T
    leaves = [x.clone().requires_grad_() for x in (p, q)]
    expected = reference.values(*leaves, None, None, Task(("kl",)))[0]
    whole = in_pieces(p, q, cut)
    found = parts.value(whole)
    bound = (
        4 * torch.finfo(torch.float64).eps * 800
    )  # a logit's rounding is a mass's relative error
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound, equal_nan=True)
    if expected.isnan():
        return
    expected.backward()
    for ours, leaf in zip(parts.gradient(p.clone(), q.clone(), whole), leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=bound, atol=bound * 800)  # of p (l − KL)


def test_close_logits_keep_their_digits_in_float32():
    draw = torch.Generator().manual_seed(0)
    p = 3 * torch.randn(8, 4000, generator=draw)
    for scale in (1e-1, 1e-2, 1e-3, 3e-4):
        q = p + scale * torch.randn(8, 4000, generator=draw)
        expected = reference.values(p.double(), q.double(), None, None, Task(("kl",)))[0]
        found = parts.value(in_pieces(p, q, 256))
        # a logit near 10 has an ulp of 1e-6; the log ratios, of size `scale`, are random about it
        assert ((found - expected).abs() <= 1e-6 / scale * expected).all()
    assert (parts.value(in_pieces(p, p, 256)) == 0).all()
