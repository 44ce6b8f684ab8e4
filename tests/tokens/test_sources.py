"""Sources in the place of logits: the same values and gradients, mixed kinds, old names."""

import math

import pytest
import torch
import torch.distributed as dist

from kullback import tokens
from kullback.tokens import HiddenStates, Sharded, TopK
from kullback.tokens import deprecated as parallel
from kullback.tokens.losses.distillation import DIVERGENCES

PAIRS = (tokens.kl, tokens.js, tokens.jeffreys, tokens.cross_entropy)
IDS = torch.tensor([0, 29, 7])


def state(seed, width, *, bias=False, softcap=None, memory=2000):
    draw = torch.Generator().manual_seed(seed)
    sizes = [(3, width), (30, width), *([(30,)] if bias else [])]
    parts = [torch.randn(*size, generator=draw, dtype=torch.float64) for size in sizes]
    offset = parts[2] if bias else None
    if offset is not None:
        offset[3] = -math.inf
    parts = [x.requires_grad_() for x in parts]
    return HiddenStates(*parts[:2], bias=offset, softcap=softcap, memory=memory), parts


def same(ours, theirs, parts):
    """Equal values and gradients; of a float64 sum over 30 tokens, in another order."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    pairs = (torch.autograd.grad(x.sum(), parts, retain_graph=True) for x in (ours, theirs))
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("function", PAIRS)
def test_hidden_states_and_logits_and_both(function):
    p, p_parts = state(0, 4, bias=True, softcap=3.0)
    q, q_parts = state(1, 2, bias=True)
    parts = p_parts + q_parts
    truth = function(p.whole(), q.whole(), temperature=0.7, backend="reference")
    same(function(p, q, temperature=0.7), truth, parts)
    same(function(p.whole(), q, temperature=0.7), truth, parts)
    same(function(p, q.whole(), temperature=0.7, backend="reference"), truth, parts)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_one_side_alone(bias, softcap):
    p, parts = state(2, 4, bias=bias, softcap=softcap)
    for ours, theirs in (
        (tokens.entropy(p, temperature=1.4), tokens.entropy(p.whole(), temperature=1.4)),
        (tokens.log_prob(p, IDS), tokens.log_prob(p.whole(), IDS)),
    ):
        same(ours, theirs, parts)
    mask = torch.tensor([True, False, True])
    assert tokens.entropy(p, mask=mask)[1] == 0
    with pytest.raises(ValueError, match=r"^bias: expected a tensor .30."):
        tokens.entropy(HiddenStates(p.hidden, p.head, bias=torch.zeros(3)))


def test_the_smaller_memory_holds():
    (p, _), (q, _) = state(0, 4, memory=None), state(1, 4, memory=0)
    with pytest.raises(ValueError, match="memory: expected a number of bytes"):
        tokens.kl(p, q)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_distillation_from_every_source(group, divergence):
    (student, ours), (teacher, theirs) = state(3, 4), state(4, 2)
    options = {"divergence": divergence, "weight": 0.3, "temperature": 1.5}
    truth = tokens.distill_terms(student.whole(), teacher.whole(), **options)
    for pair in (
        (student, teacher),
        (student.whole(), teacher),
        (student, teacher.whole()),
        (Sharded(student.whole()), Sharded(teacher.whole())),
    ):
        found = tokens.distill_terms(*pair, **options)
        same(found, truth, ours)
        grads = torch.autograd.grad(found.sum(), theirs, allow_unused=True, retain_graph=True)
        assert all(grad is None for grad in grads)


@pytest.mark.parametrize("divergence", ["forward", "tv", "skew_forward"])
def test_distillation_crops_padding(divergence):
    (student, ours), (teacher, _) = state(3, 4), state(4, 2)
    longer = torch.nn.functional.pad(teacher.whole(), (0, 2), value=5.0)
    found = tokens.distill_terms(student.whole(), longer, divergence=divergence, align="crop")
    same(found, tokens.distill_terms(student, teacher, divergence=divergence), ours)


def test_sharded_logits_of_one_process(group):
    (p, p_parts), (q, q_parts) = state(0, 4), state(1, 4)
    parts = p_parts + q_parts
    for function in PAIRS:
        same(function(Sharded(p.whole()), Sharded(q.whole())), function(p, q), parts)
    same(tokens.entropy(Sharded(p.whole())), tokens.entropy(p), p_parts)
    same(tokens.log_prob(Sharded(p.whole()), IDS), tokens.log_prob(p, IDS), p_parts)


def test_lists_give_bounds():
    p, q = (state(seed, 4)[0].whole().detach().log_softmax(-1) for seed in (0, 1))
    lists = [TopK(x.topk(5).indices, x.topk(5).values) for x in (p, q)]
    hidden = state(1, 4)[0]
    truth = tokens.kl(p, q)
    for found, expected in (
        (tokens.kl(*lists), tokens.kl_bounds(*lists)),
        (tokens.kl(lists[0], q + 3.0), tokens.kl_bounds(lists[0], q)),  # logits, not log p
        (tokens.kl(lists[0], hidden), tokens.kl_bounds(lists[0], q)),
        (tokens.kl(p, lists[1]), tokens.kl_bounds(p, lists[1])),
    ):
        assert isinstance(found, tokens.Bounds)
        torch.testing.assert_close(found.lower, expected.lower)
        torch.testing.assert_close(found.upper, expected.upper)
        assert (found.lower <= truth).all() and (truth <= found.upper).all()


HIDDEN = HiddenStates(torch.zeros(1, 2), torch.zeros(3, 2))
LIST = TopK(torch.tensor([[0]]), torch.tensor([[-1.0]]))
CUT = Sharded(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokens.kl(CUT, torch.zeros(1, 3)), r"two Sharded; got Sharded and logits .*1, 3"),
        (lambda: tokens.js(HIDDEN, CUT), r"two Sharded; got Sharded and HiddenStates"),
        (lambda: tokens.kl(LIST, CUT), r"two Sharded; got Sharded and TopK"),
        (lambda: tokens.js(LIST, LIST), r"p: expected .* got a TopK list. Try: kl\(p, q\)"),
        (lambda: tokens.compare(torch.zeros(1, 3), LIST), r"q: expected .* got a TopK list"),
        (lambda: tokens.entropy(LIST), r"p: expected .* got a TopK list"),
        (lambda: tokens.distill_terms(HIDDEN, LIST), r"expected .* got a TopK list"),
        (lambda: tokens.kl(HIDDEN, [1.0, 2.0]), r"q_logits: expected"),
        (lambda: tokens.kl(LIST, [1.0, 2.0]), r"logits: expected"),
        (lambda: tokens.kl(HIDDEN, None), r"q_logits: expected .* got None"),
        (lambda: tokens.js(torch.zeros(3), None), r"q_logits: expected .* got None"),
        (lambda: tokens.compare(None, HIDDEN), r"p_logits: expected"),
        (lambda: tokens.kl([1.0], [2.0]), r"p_logits: expected"),
    ],
)
def test_kinds_that_cannot_meet(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokens.kl(LIST, LIST, temperature=2.0), "temperature: expected 1.0 with a TopK"),
        (lambda: tokens.kl(LIST, LIST, mask=torch.ones(1) > 0), "mask: expected None with a TopK"),
        (lambda: tokens.kl(LIST, LIST, nan="pass"), "nan: expected 'refuse' with a TopK"),
        (lambda: tokens.kl(CUT, Sharded(torch.zeros(1, 3), "other")), "slices of one group"),
        (lambda: tokens.kl(CUT, CUT, align="crop"), "align: expected None"),
        (lambda: HiddenStates(*[torch.zeros(1, 2)] * 2, softcap=-1.0).whole(), "softcap: expected"),
    ],
)
def test_options_that_a_source_does_not_take(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["kl", "js", "compare", "distill_terms"])
def test_old_names_of_hidden_states_warn_and_give_the_same(name):
    (p, p_parts), (q, q_parts) = state(0, 4, bias=True, softcap=3.0), state(1, 2, memory=900)
    sides = ("student", "teacher") if name == "distill_terms" else ("p", "q")
    biases = {f"{sides[0]}_bias": p.bias}
    with pytest.warns(DeprecationWarning, match=rf"{name}_from_hidden is now {name} of two"):
        found = getattr(tokens, f"{name}_from_hidden")(
            *(p.hidden, p.head, q.hidden, q.head),
            **biases,
            soft_cap=(3.0, None),
            memory=900,
            temperature=1.3,
        )
    expected = getattr(tokens, name)(p, q, temperature=1.3)
    values, wanted = (x[:2] if name == "compare" else [x] for x in (found, expected))
    parts = p_parts if name == "distill_terms" else p_parts + q_parts
    for ours, theirs in zip(values, wanted, strict=True):
        pairs = (
            (x, *torch.autograd.grad(x.sum(), parts, retain_graph=True)) for x in (ours, theirs)
        )
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.parametrize("name", parallel.SHARDED)
def test_old_names_of_sharded_logits_warn_and_give_the_same(group, name):
    p, q = state(0, 4)[0].whole(), state(1, 4)[0].whole()
    given = {"entropy": (p,), "log_prob": (p,)}.get(name, (p, q))
    rest = (IDS,) if name == "log_prob" else ()
    with pytest.warns(DeprecationWarning, match=rf"is now kullback.tokens.{name}\(Sharded"):
        found = getattr(parallel, name)(*given, *rest, group=None, temperature=1.3)
    expected = getattr(tokens, name)(*(Sharded(x) for x in given), *rest, temperature=1.3)
    pairs = zip(found, expected, strict=True) if name == "compare" else [(found, expected)]
    assert all(a is b or torch.equal(a, b) for a, b in pairs)


OLD_NAMES = dict.fromkeys(parallel.SHARDED, ("p_logits", "q_logits"))
OLD_NAMES |= {"entropy": ("logits",), "log_prob": ("logits",)}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_of_arguments_warn_and_give_the_same(name):
    function, old = getattr(tokens, name), OLD_NAMES[name]
    sides = [state(seed, 4)[0].whole() for seed in (0, 1)][: len(old)]
    ids = {"ids": IDS} if name == "log_prob" else {}
    new = dict(zip(("p", "q"), sides, strict=False))
    expected = function(**new, **ids)
    with pytest.warns(DeprecationWarning, match=f"^{name}: {old[0]} is now p") as seen:
        found = function(**dict(zip(old, sides, strict=True)), **ids)
    assert seen[-1].filename == __file__
    pairs = zip(found, expected, strict=True) if name == "compare" else [(found, expected)]
    assert all(a is b or torch.equal(a, b) for a, b in pairs)
    with pytest.raises(TypeError, match=f"^{name}: p was given, and {old[0]} too"):
        function(**new, **ids, **{old[0]: sides[0]})
