"""Tensors whose numbers do not lie in memory as they stand: the right number, or one clear error.

Negative bits, odd strides, layouts, subclasses, inference mode, and the transforms of `torch.func`,
against copies that lie in memory, loops and autograd.
"""

import math

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map_only

from kullback import tokens
from kullback.data.dataset import binarize
from kullback.tokens.backends.interface import in_memory
from kullback.tokens.losses import distill_loss, distill_terms, kl_penalties, kl_penalty_to_go

BACKENDS = ("auto", "native", "chunked", "reference")
SKIP = {name for name, why in tokens.usable(torch.zeros(1, 2)).items() if why}


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


P, Q = some(3, 50), some(3, 50, seed=1)
IDS = torch.tensor([0, 7, 49])


class Subclass(torch.Tensor):
    pass


class Wrapper(torch.Tensor):
    """Numbers in another tensor: its own memory is empty."""

    @staticmethod
    def __new__(cls, inner):
        found = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype
        )
        found.inner = inner
        return found

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        given = tree_map_only(Wrapper, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, func(*given[0], **given[1]))


def made_in_inference_mode(x):
    with torch.inference_mode():
        return x.clone()


def unaligned(x):
    numbers = np.frombuffer(bytearray(b"\0" + x.numpy().tobytes()), dtype=np.uint8)[1:]
    return torch.from_numpy(numbers.view(np.float32).reshape(x.shape))


TENSORS = {
    "negative bit": lambda x: torch._neg_view(-x),
    "imaginary part of a conjugate": lambda x: torch.complex(x, -x).conj().imag,
    "negative bit twice": lambda x: torch._neg_view(torch._neg_view(x)),
    "every other number": lambda x: torch.stack([x, -x], -1)[..., 0],
    "transposed": lambda x: x.t().contiguous().t(),
    "one place on": lambda x: torch.cat([x[:, :1], x], -1)[:, 1:],
    "parameter": lambda x: torch.nn.Parameter(x.clone()),
    "subclass": lambda x: x.as_subclass(Subclass),
    "wrapper": Wrapper,
    "inference mode": made_in_inference_mode,
    "not aligned": unaligned,
}
VALUES = {
    "kl": tokens.kl,
    "kl the other way": lambda p, q, **more: tokens.kl(q, p, **more),
    "js": tokens.js,
    "entropy": lambda p, q, **more: tokens.entropy(p, **more),
    "log_prob": lambda p, q, **more: tokens.log_prob(p, IDS, **more),
    "distill_terms": distill_terms,
}


IMPORTS = {"wrapper": pytest.mark.slow}  # PyTorch imports SymPy for it


@pytest.mark.sweep(3)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in SKIP])
@pytest.mark.parametrize("kind", [pytest.param(x, marks=IMPORTS.get(x, ())) for x in TENSORS])
def test_logits_are_read_as_they_are(kind, backend):
    for function in VALUES.values():
        plain, found = (function(x, Q, backend=backend).detach() for x in (P, TENSORS[kind](P)))
        found = found.inner if isinstance(found, Wrapper) else found
        assert torch.equal(plain, found)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in SKIP])
@pytest.mark.parametrize("kind", sorted(set(TENSORS) - {"wrapper"}))
def test_gradients_beside_and_through_them(kind, backend):
    for function in (tokens.kl, tokens.js):
        both = []
        for change in (torch.clone, TENSORS[kind]):
            p, q = change(P), Q.clone().requires_grad_()
            p = p if p.is_inference() else p.detach().requires_grad_()
            (function(p, q, backend=backend) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
            both.append((q.grad, None if p.is_inference() else p.grad))
        assert torch.equal(both[0][0], both[1][0])
        assert both[1][1] is None or torch.equal(both[0][1], both[1][1].as_subclass(torch.Tensor))


@pytest.mark.parametrize("function", [tokens.kl, tokens.js])
def test_gradients_of_values_with_a_negative_bit(function):
    q = Q.clone().requires_grad_()
    found = torch.autograd.grad(function(P, q), q, torch._neg_view(torch.ones(3)))[0]
    assert torch.equal(found, torch.autograd.grad(function(P, q), q, -torch.ones(3))[0])
    with pytest.raises(ValueError, match="grads: expected a tensor outside of vmap"):
        torch.autograd.grad(function(P, q), q, torch.eye(3), is_grads_batched=True)


def freed(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


REFUSED = {
    "sparse": (lambda x: x.to_sparse(), "expected a dense tensor; got one of layout"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "to_padded_tensor"),
    "mkldnn": (lambda x: x.to_mkldnn(), "to_dense"),
    "complex": (lambda x: torch.complex(x, x), "a float tensor.*real"),
    "freed": (freed, "one whose storage is freed"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused(kind):
    make, words = REFUSED[kind]
    for function in VALUES.values():
        with pytest.raises((TypeError, ValueError), match=words):
            function(make(P), Q)


def test_without_numbers_there_is_a_shape():
    p, q = P.to("meta").requires_grad_(), Q.to("meta")
    found = tokens.kl(p, q)
    found.sum().backward()
    assert found.shape == (3,) and found.is_meta and p.grad.shape == p.shape
    assert not in_memory(p) and in_memory(torch.zeros(0, 3))


# The transforms of torch.func: values of the loop, gradients of autograd.

MANY_P, MANY_Q, MANY_IDS = some(4, 3, 50), some(4, 3, 50, seed=1), torch.arange(12).view(4, 3)
MAPPED = {
    "kl": lambda p, q, ids: tokens.kl(p, q, temperature=0.7),
    "js": lambda p, q, ids: tokens.js(p, q, beta=0.3),
    "jeffreys, one row": lambda p, q, ids: tokens.jeffreys(p[0], q),
    "entropy": lambda p, q, ids: tokens.entropy(q),
    "cross_entropy, masked": lambda p, q, ids: tokens.cross_entropy(p, q, mask=ids % 3 > 0),
    "log_prob": lambda p, q, ids: tokens.log_prob(q, ids),
    "compare": lambda p, q, ids: sum(x.float() for x in tokens.compare(p, q, ids=ids)),
    "distill_loss": lambda p, q, ids: distill_loss(distill_terms(q, p)[None]),
    "skewed": lambda p, q, ids: distill_terms(q, p, divergence="skew_reverse", weight=0.2),
}


@pytest.mark.parametrize("name", MAPPED)
def test_vmap_gives_the_loop(name):
    function = MAPPED[name]
    given = MANY_P, MANY_Q, MANY_IDS
    loop = torch.stack([function(*each) for each in zip(*given, strict=True)])
    torch.testing.assert_close(torch.vmap(function)(*given), loop, rtol=4e-7, atol=0)
    moved = torch.vmap(function, in_dims=(1, None, 0))(MANY_P.transpose(0, 1), MANY_Q[0], MANY_IDS)
    loop = torch.stack([function(p, MANY_Q[0], i) for p, i in zip(MANY_P, MANY_IDS, strict=True)])
    torch.testing.assert_close(moved, loop, rtol=4e-7, atol=0)


@pytest.mark.parametrize("name", MAPPED)
def test_gradients_of_each_sample(name):
    def loss(p, q, ids):
        return (MAPPED[name](p, q, ids) * 1.5).sum()

    found = torch.vmap(torch.func.grad(loss, argnums=(0, 1)))(MANY_P, MANY_Q, MANY_IDS)
    jacobian = torch.func.jacrev(torch.vmap(loss), argnums=1)(MANY_P, MANY_Q, MANY_IDS)
    for i, each in enumerate(zip(MANY_P, MANY_Q, MANY_IDS, strict=True)):
        p, q = (x.clone().requires_grad_() for x in each[:2])
        loss(p, q, each[2]).backward()
        for mine, x in zip(found, (p, q), strict=True):
            truth = torch.zeros_like(x) if x.grad is None else x.grad
            torch.testing.assert_close(mine[i], truth, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(jacobian[i, i], found[1][i], rtol=1e-6, atol=1e-9)


def test_vmap_within_vmap_and_the_checks_inside():
    pairs = torch.vmap(torch.vmap(tokens.js, in_dims=(None, 0)), in_dims=(0, None))
    assert torch.equal(pairs(P, Q), tokens.js(P[:, None], Q))
    with pytest.raises(ValueError, match="at every position some finite logit"):
        torch.vmap(tokens.kl)(P * math.nan, Q)
    with pytest.raises(ValueError, match="token ids from 0 to 49; got 57"):
        torch.vmap(tokens.log_prob)(P, IDS + 8)
    with pytest.warns(tokens.InputWarning, match=r"p_logits.log\(\)"):
        torch.vmap(tokens.kl)(P.softmax(-1), Q.softmax(-1))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # PyTorch itself
def test_derivatives_that_only_the_reference_has():
    for function in (tokens.kl, tokens.js):
        with pytest.raises(ValueError, match="'reference', the one that differentiates"):
            torch.func.jvp(lambda q, f=function: f(P, q), (Q,), (Q,))
        with pytest.raises(ValueError, match="'reference', the one that differentiates"):
            torch.func.hessian(lambda q, f=function: f(P[0], q))(Q[0])
        with forward_ad.dual_level(), pytest.raises(ValueError, match="'reference'"):
            function(P, forward_ad.make_dual(Q, Q))
    with pytest.raises(ValueError, match="nan: expected 'pass' with 'reference'"):
        torch.vmap(lambda p, q: tokens.kl(p, q, backend="reference"))(P, Q)
    found = torch.func.hessian(lambda q: tokens.kl(P[0], q, backend="reference", nan="pass"))(Q[0])
    q = Q[0].softmax(-1)
    torch.testing.assert_close(found, q.diag() - q.outer(q), rtol=0, atol=3e-8)


C, R, B = (-1 - some(4, 6, 30, seed=seed).abs() for seed in (1, 1, 1))
R, B = R + 0.1 * some(4, 6, 30, seed=2), B + 0.1 * some(4, 6, 30, seed=3)
MASK, EXACT = some(4, 6, 30, seed=4) < 0.8, some(4, 6, 30, seed=5).abs()
LOSSES = [
    ({}, {}),
    ({"log_behaviour": B}, {"truncate": 1.02, "direction": "forward"}),
    ({"log_behaviour": B}, {"level": "sequence", "estimator": "k1"}),
    ({"mask": MASK}, {"estimator": 0.5, "normalise": "token"}),
    ({"exact_kl": EXACT, "mask": MASK}, {}),
    ({}, {"estimator": "best"}),
]


@pytest.mark.parametrize(("given", "options"), LOSSES, ids=lambda x: ", ".join(x) or "plain")
def test_policy_losses_under_vmap(given, options):
    def loss(current, reference, given):
        found = tokens.policy_kl_loss(
            log_current=current, log_reference=reference, on_mismatch="ignore", **given, **options
        )
        return found.loss

    found = torch.vmap(loss)(C, R, given)
    slopes = torch.vmap(torch.func.grad(loss))(C, R, given)
    for i in range(len(C)):
        current = C[i].clone().requires_grad_()
        truth = loss(current, R[i], {name: x[i] for name, x in given.items()})
        truth.backward()
        assert torch.equal(found[i], truth.detach()) and torch.equal(slopes[i], current.grad)


def test_what_vmap_cannot_take_names_the_plain_way():
    calls = {
        "log_current": lambda c, r: kl_penalties(log_current=c, log_reference=r),
        "log_current: ": lambda c, r: kl_penalty_to_go(log_current=c, log_reference=r),
        "student_logits": lambda c, r: distill_terms(c, r, divergence="tv"),
        "p_hidden": lambda c, r: tokens.kl(*(tokens.HiddenStates(x, EXACT[0]) for x in (c, r))),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}.*(without vmap|whole)"):
            torch.vmap(call)(C, R)


@pytest.mark.parametrize("kind", sorted(set(TENSORS) - {"wrapper", "not aligned"}))
@pytest.mark.parametrize("size", [3, 200])  # below and above what is swept in C
def test_policy_losses_of_any_tensor(kind, size):
    whole = [-1 - some(size, 50, seed=1).abs() + 0.1 * some(size, 50, seed=s) for s in (2, 3, 4)]
    mask, both = some(size, 50, seed=5) < 0.8, []
    for change in (torch.clone, TENSORS[kind]):
        current, reference, behaviour = (change(x.clone()).detach() for x in whole)
        current = (current.clone() if current.is_inference() else current).requires_grad_()
        loss = tokens.policy_kl_loss(
            log_current=current, log_reference=reference, log_behaviour=behaviour, mask=mask,
            on_mismatch="ignore",
        ).loss  # fmt: skip
        loss.backward()
        both.append((loss.detach(), current.grad.as_subclass(torch.Tensor)))
    for plain, found in zip(*both, strict=True):
        torch.testing.assert_close(found, plain, rtol=2e-6, atol=1e-9)  # the sweep, or not


def test_binarize_reads_pixels_at_their_strides():
    x = (torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    for view in (x[::2], x[:1].expand(50), x.view(40, 100)[:, ::2], torch._neg_view(x)):
        bits = [binarize(each, torch.Generator().manual_seed(1)) for each in (view, view.clone())]
        assert torch.equal(*bits)
