"""KL from hidden states against the reference from full logits, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kullback.tokens import HiddenStates, compare, distill_terms, js, kl, usable
from kullback.tokens.backends import reference
from kullback.tokens.backends.interface import Task
from kullback.tokens.losses.distillation import DIVERGENCES

EPS = torch.finfo(torch.float32).eps


def full_logits(hidden, head, bias=None, cap=None):
    logits = hidden.double() @ head.double().T
    if bias is not None:
        logits = logits + bias.double()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
        if bias is not None:
            logits = logits.masked_fill(bias == -math.inf, -math.inf)
    return logits


def truth(p, q, *, caps=(None, None), temperature=1.0):
    return of_the_logits(p, q, Task(("kl",), temperature), caps=caps)[0]


def of_the_logits(p, q, task, *, ids=None, caps=(None, None)):
    pair = (full_logits(*side, cap) for side, cap in zip((p, q), caps, strict=True))
    return reference.values(*pair, ids, None, task)


def sides(positions, vocab, widths, *, dtype=torch.float64, seed=0, bias=None):
    """Two sides [hidden, head, bias] that ask for gradients; bias: which of them bans tokens."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for width in widths:
        hidden = torch.randn(positions, width, generator=draw, dtype=torch.float64)
        head = 2 * torch.randn(vocab, width, generator=draw, dtype=torch.float64) / width**0.5
        offset = torch.randn(vocab, generator=draw, dtype=torch.float64)
        found.append([hidden.to(dtype), head.to(dtype), None if bias is None else offset.to(dtype)])
    if bias in ("both ban", "p bans"):
        found[0][2][::3] = -math.inf
        found[0][2][: vocab // 2] = -math.inf  # whole blocks
    if bias in ("both ban", "q bans"):
        found[-1][2][:: 3 if bias == "both ban" else 4] = -math.inf
        found[-1][2][: vocab // 2] = -math.inf
    for side in found:
        for x in side:
            if x is not None:
                x.requires_grad_()
    return found


def states(*given, softcap=(None, None), memory=None):
    """Sources of sides [hidden, head, bias]; softcap: one for each."""
    return [
        HiddenStates(hidden, head, bias=bias, softcap=cap, memory=memory)
        for (hidden, head, bias), cap in zip(given, softcap, strict=False)
    ]


def both(p, q, *, softcap=(None, None), memory=None, **options):
    return kl(*states(p, q, softcap=softcap, memory=memory), **options)


def gradients(value, p, q):
    weights = torch.linspace(0.5, 2.0, len(value)).to(value)
    return torch.autograd.grad((value * weights).sum(), [x for x in (*p, *q) if x is not None])


@pytest.mark.sweep(9)
@pytest.mark.parametrize("bias", [None, "none bans", "both ban", "p bans", "q bans"])
@pytest.mark.parametrize("caps", [(None, None), (3.0, 5.0), (None, 3.0)])
@pytest.mark.parametrize("memory", [3000, 1 << 26])
def test_equals_the_reference(bias, caps, memory):
    p, q = sides(7, 101, (5, 3), bias=bias)
    expected = truth(p, q, caps=caps, temperature=1.3)
    found = both(p, q, softcap=caps, temperature=1.3, memory=memory)
    assert torch.isinf(found).all() == (bias == "q bans")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(gradients(found, p, q), gradients(expected, p, q), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    positions=st.integers(0, 5),
    vocab=st.integers(1, 70),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    memory=st.integers(1, 40_000),
    seed=st.integers(0, 1000),
)
def test_any_size_and_blocking(positions, vocab, widths, memory, seed):
    p, q = sides(positions, vocab, widths, seed=seed)
    found = both(p, q, memory=memory)
    assert (found >= 0).all()
    torch.testing.assert_close(found, truth(p, q), rtol=1e-11, atol=1e-14)


@pytest.mark.slow
def test_finite_differences():
    p, q = sides(3, 11, (2, 3), bias="both ban")
    banned = p[2] == -math.inf

    def value(*tensors):
        pair = tensors[:3], tensors[3:]
        banning = ((*side[:2], side[2].masked_fill(banned, -math.inf)) for side in pair)
        return both(*banning, softcap=(4.0, 4.0), temperature=0.7, memory=500)

    finite = [x.detach().nan_to_num(neginf=0.0).requires_grad_() for x in (*p, *q)]
    assert torch.autograd.gradcheck(value, finite)


@pytest.mark.parametrize("wanted", range(6))
def test_each_gradient_alone(wanted):
    p, q = sides(4, 30, (3, 2), bias="none bans")
    tensors = [x.detach() for x in (*p, *q)]
    tensors[wanted].requires_grad_()
    pair = tensors[:3], tensors[3:]
    found = torch.autograd.grad(both(*pair).sum(), tensors[wanted])[0]
    expected = torch.autograd.grad(truth(*pair).sum(), tensors[wanted])[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_in_float32_whatever_comes_in(dtype):
    p, q = sides(9, 3000, (64, 32), dtype=dtype, bias="none bans")
    found, expected = both(p, q, memory=1 << 20), truth(p, q)
    assert found.dtype == torch.float32
    # a logit, a sum of up to 65 terms, is off by some ulps of the largest; l by twice that
    bound = 8 * EPS * max(full_logits(*side).abs().max().item() for side in (p, q))
    assert ((found - expected).abs() <= bound * (1 + expected)).all()
    rounded = torch.finfo(dtype).eps / 2
    for ours, theirs in zip(gradients(found, p, q), gradients(expected, p, q), strict=True):
        assert ours.dtype == dtype
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        # theirs comes back in `dtype` too: two roundings
        assert error <= 2 * rounded + bound


@pytest.mark.parametrize("backend", ["chunked", "native"])
@pytest.mark.parametrize("bias", [None, "both ban", "p bans", "q bans"])
def test_backends_of_the_blocks(backend, bias):
    if why_not := usable(torch.zeros(1, 2))[backend]:
        pytest.skip(why_not)
    p, q = sides(6, 301, (5, 3), dtype=torch.float32, bias=bias)
    found = both(p, q, softcap=(None, 9.0), memory=20_000, backend=backend)
    expected = truth(p, q, caps=(None, 9.0))
    bound = (
        8
        * EPS
        * max(full_logits(*side).detach().nan_to_num(neginf=0).abs().max() for side in (p, q))
    )
    torch.testing.assert_close(found, expected.float(), rtol=bound, atol=bound)
    for ours, theirs in zip(gradients(found, p, q), gradients(expected, p, q), strict=True):
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert error <= bound


WANTS = ("kl", "reverse_kl", "same_top", "entropy", "q_entropy", "log_prob", "q_log_prob")


@pytest.mark.sweep(3)
@pytest.mark.parametrize("bias", [None, "both ban", "p bans", "q bans"])
@pytest.mark.parametrize("memory", [3000, 1 << 26])
def test_everything_in_one_pass(bias, memory):
    p, q = sides(7, 101, (5, 3), bias=bias)
    ids = torch.tensor([0, 100, 50, 99, 51, 33, 7])
    expected = of_the_logits(p, q, Task(WANTS, 1.3), ids=ids, caps=(None, 3.0))
    pair = states(p, q, softcap=(None, 3.0), memory=memory)
    found = compare(*pair, ids=ids, temperature=1.3)
    values = torch.stack([x.to(expected) for x in found])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-13)
    pairs = (
        gradients(sum(each[i] for i in (0, 1, 3, 4, 5, 6)), p, q) for each in (found, expected)
    )
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("bias", [None, "both ban", "p bans", "q bans"])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_jensen_shannon(bias, beta):
    p, q = sides(7, 101, (5, 3), bias=bias)
    expected = of_the_logits(p, q, Task(("js",), 1.3, beta))[0]
    found = js(*states(p, q, memory=3000), beta=beta, temperature=1.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(gradients(found, p, q), gradients(expected, p, q), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def by_the_formula(divergence, teacher, student, weight):
    """Teacher p, student q as full log-probabilities: the definitions, for autograd."""
    if divergence == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    if divergence == "tv":
        return 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)
    if divergence == "jsd":
        sides = ((weight, teacher), (1 - weight, student))
        mixture = sum(w * x.exp() for w, x in sides).log()
        return sum(w * (x.exp() * (x - mixture)).sum(-1) for w, x in sides)
    if divergence == "skew_forward":
        mixture = (weight * teacher.exp() + (1 - weight) * student.exp()).log()
        return (teacher.exp() * (teacher - mixture)).sum(-1)
    swapped = {"reverse": "forward", "skew_reverse": "skew_forward"}[divergence]
    return by_the_formula(swapped, student, teacher, weight)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distillation(divergence, dtype):
    teacher, student = sides(6, 90, (5, 3), dtype=dtype, bias="none bans")
    caps, mask = (4.0, None), torch.tensor([True] * 5 + [False])
    logs = [
        (full_logits(*side, cap) / 1.5).log_softmax(-1)
        for side, cap in ((teacher, None), (student, 4.0))
    ]
    expected = by_the_formula(divergence, *logs, 0.3).masked_fill(~mask, 0.0) * 1.5**2
    found = distill_terms(
        *states(student, teacher, softcap=caps, memory=4000),
        divergence=divergence,
        weight=0.3,
        temperature=1.5,
        temperature_squared=True,
        mask=mask,
    )
    bound = 300 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)
    assert torch.autograd.grad(found.sum(), teacher, retain_graph=True, allow_unused=True) == (
        None,
        None,
        None,
    )
    ours = torch.autograd.grad(found.sum(), student)
    for mine, theirs in zip(ours, torch.autograd.grad(expected.sum(), student), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=bound, atol=bound)


@pytest.mark.parametrize("divergence", ["jsd", "skew_forward", "skew_reverse", "tv"])
def test_mixtures_where_a_side_bans(divergence):
    """Bounded divergences stay finite: as with logits from which the token was never dropped."""
    teacher, student = sides(4, 60, (3, 3), bias="both ban")
    with torch.no_grad():
        teacher[2][40:45] = -math.inf
        student[2][45:50] = -math.inf
    bound = [full_logits(*side).detach() for side in (student, teacher)]
    expected = distill_terms(*bound, divergence=divergence, weight=0.4)
    pair = states(student, teacher, memory=2000)
    found = distill_terms(*pair, divergence=divergence, weight=0.4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), student))


def test_close_sides_keep_the_digits_of_a_jensen_shannon():
    """In float32, where the mixture is close to both and KL is 1e-6, the sum keeps its digits."""
    hidden, head = (x.detach() for x in sides(16, 5000, (32,), dtype=torch.float32)[0][:2])
    moved = hidden + 1e-3 * torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    expected = of_the_logits((hidden, head), (moved, head), Task(("js",)))[0]
    found = js(HiddenStates(hidden, head), HiddenStates(moved, head))
    assert ((found - expected).abs() <= 1e-3 * expected).all()


def test_two_dtypes_and_a_frozen_teacher():
    p, q = sides(4, 50, (3, 3))
    teacher = [*(x.detach().bfloat16() for x in p[:2]), None]
    student = [*(x.detach().float().requires_grad_() for x in q[:2]), None]
    found = both(teacher, student)
    torch.testing.assert_close(found, truth(teacher, student).float(), rtol=20 * EPS, atol=20 * EPS)
    found.sum().backward()
    assert student[1].grad.dtype == torch.float32 and teacher[1].grad is None


@pytest.mark.parametrize("scale", [1e-2, 1e-3])
def test_small_divergences_keep_their_digits(scale):
    hidden, head = (x.detach() for x in sides(16, 5000, (32,), dtype=torch.float32)[0][:2])
    moved = hidden + scale * torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    expected = truth((hidden, head), (moved, head))
    found = kl(HiddenStates(hidden, head), HiddenStates(moved, head))
    assert (found >= 0).all()
    assert ((found - expected).abs() <= 1e-3 * expected).all(), expected
    assert kl(HiddenStates(hidden, head), HiddenStates(hidden, head)).abs().max() == 0


def test_mask_leaves_positions_out():
    p, q = sides(6, 40, (3, 3))
    mask = torch.tensor([[True, False, True], [False, True, True]])
    hidden = [x[0].detach().clone() for x in (p, q)]
    hidden[0][1] = math.nan
    hidden = [x.reshape(2, 3, 3).requires_grad_() for x in hidden]
    pair = states((hidden[0], p[1], None), (hidden[1], q[1], None), memory=500)
    found = kl(*pair, mask=mask)
    torch.testing.assert_close(found, torch.where(mask, truth(p, q).reshape(2, 3), 0.0))
    grads = torch.autograd.grad(found.sum(), (*hidden, q[1]))
    assert (grads[0][~mask] == 0).all() and (grads[1][~mask] == 0).all()
    some = [[x[0].detach()[mask.reshape(-1)], x[1], None] for x in (p, q)]
    expected = torch.autograd.grad(truth(*some).sum(), q[1])[0]
    torch.testing.assert_close(grads[2], expected)
    assert (both(p, q, mask=torch.zeros(6, dtype=torch.bool)) == 0).all()


def test_padded_vocabularies_are_cropped_on_request_only():
    p, q = sides(3, 20, (2, 2), bias="none bans")
    longer = [q[0], *(torch.cat([x, x[:4]]).detach().requires_grad_() for x in q[1:])]
    with pytest.raises(ValueError, match=r"20 and 24.*align='crop'"):
        both(p, longer)
    found = both(p, longer, align="crop")
    torch.testing.assert_close(found, truth(p, q))
    grad = torch.autograd.grad(found.sum(), longer[1])[0]
    assert grad.shape == (24, 2) and (grad[20:] == 0).all() and (grad[:20] != 0).any()


def test_no_distribution_is_refused_or_passed():
    p, q = sides(3, 8, (2, 2))
    broken = p[0].detach().clone()
    broken[1, 0] = math.nan
    with pytest.raises(ValueError, match=r"1 positions of 3.*first at \(1,\)"):
        both((broken, p[1], None), q)
    found = both((broken, p[1], None), q, nan="pass")
    assert found.isnan().tolist() == [False, True, False]
    nothing = torch.full((8,), -math.inf, dtype=torch.float64)
    for biases in ((nothing, None), (None, nothing)):
        found = both((*p[:2], biases[0]), (*q[:2], biases[1]), nan="pass")
        assert found.isnan().all()


def test_no_tensor_of_positions_by_vocabulary_exists():
    """At any time, what was allocated stays under `memory`; the logits take 1.2 MB."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                sizes.append(found.untyped_storage().nbytes())
            return found

    p, q = sides(200, 1500, (4, 4), dtype=torch.float32)
    with Watch():
        both(p, q, memory=1 << 18).sum().backward()
    assert max(sizes) <= 1 << 18


def from_parts(*, p_bias=None, q_bias=None, softcap=None, memory=None, **given):
    p = given.pop("p_hidden"), given.pop("p_head"), p_bias
    q = given.pop("q_hidden"), given.pop("q_head"), q_bias
    return both(p, q, softcap=(softcap, softcap), memory=memory, **given)


GOOD = {"p_hidden": torch.zeros(2, 3), "p_head": torch.zeros(5, 3)}
GOOD |= {"q_hidden": torch.zeros(2, 4), "q_head": torch.zeros(5, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_head": torch.zeros(3, 5)}, "p_head: expected a tensor .vocab, 3., as wide"),
        ({"q_hidden": torch.zeros(3, 4)}, "the same positions; got .2. and .3."),
        ({"q_bias": torch.zeros(3)}, "q_bias: expected a tensor .5."),
        ({"temperature": 0.0}, "temperature: expected a positive"),
        ({"softcap": -1.0}, "softcap: expected a positive"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask: expected a tensor that broadcasts"),
        ({"nan": "drop"}, "nan: expected 'refuse' or 'pass'"),
        ({"align": "pad"}, "align: expected None or 'crop'"),
        ({"memory": 0}, "memory: expected"),
        ({"backend": "reference"}, "backend: expected one that works in blocks"),
    ],
)
def test_wrong_values(change, message):
    with pytest.raises(ValueError, match=message):
        from_parts(**(GOOD | change))


@pytest.mark.parametrize(
    "change", [{"p_hidden": [1.0]}, {"q_head": torch.zeros(5, 4).int()}, {"mask": torch.ones(2)}]
)
def test_wrong_types(change):
    with pytest.raises(TypeError, match=next(iter(change))):
        from_parts(**(GOOD | change))
