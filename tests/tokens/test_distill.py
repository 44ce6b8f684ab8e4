"""Distillation: values against exact tables, gradients by enumeration, edges, the stored top-k."""

import math

import pytest
import torch

from kullback import tokens
from kullback.core import ArgumentTypeError, ArgumentValueError
from kullback.exact import tables
from kullback.tokens import HiddenStates, distill_loss, distill_terms, distill_terms_top_k, kl
from kullback.tokens.losses.distillation import DIVERGENCES
from tokens.worlds import World

F64 = torch.float64
TIGHT = 1e-12  # relative, of sums of a dozen terms in float64


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*shape, generator=generator, dtype=F64) for _ in range(2)]


def truth(student, teacher, divergence, weight=0.5):
    """The definition, over tables of probabilities."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    return {
        "forward": lambda: tables.kl(p, q),
        "reverse": lambda: tables.kl(q, p),
        "jsd": lambda: tables.js(p, q, weight=weight),
        "skew_forward": lambda: tables.kl(p, weight * p + (1 - weight) * q, normalise=True),
        "skew_reverse": lambda: tables.kl(q, weight * q + (1 - weight) * p, normalise=True),
        "tv": lambda: tables.total_variation(p, q),
    }[divergence]()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_values_and_gradients_are_the_definition(divergence, weight):
    student, teacher = pair(5, 9)
    student.requires_grad_()
    teacher.requires_grad_()
    expected = truth(student, teacher.detach(), divergence, weight)
    found = distill_terms(student, teacher, divergence=divergence, weight=weight)
    torch.testing.assert_close(found, expected, rtol=TIGHT, atol=1e-14)
    slopes = [torch.autograd.grad(x.sum(), student)[0] for x in (found, expected)]
    assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < 1e-10
    assert not found.requires_grad or torch.autograd.grad(
        distill_terms(student, teacher).sum(), teacher, allow_unused=True
    ) == (None,)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_temperature(divergence):
    student, teacher = pair(4, 6)
    softer = distill_terms(student, teacher, divergence=divergence, temperature=2.5)
    torch.testing.assert_close(softer, truth(student / 2.5, teacher / 2.5, divergence))
    squared = distill_terms(
        student, teacher, divergence=divergence, temperature=2.5, temperature_squared=True
    )
    torch.testing.assert_close(squared, 6.25 * softer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_half_precision_is_divided_by_the_temperature_in_float32(divergence, dtype):
    """Quotients rounded to 8 bits moved skewed KLs and top-k terms by 15 to 43 %."""
    student, teacher = (x.to(dtype) for x in pair(6, 500, scale=4.0))
    student = (teacher.float() + 0.1 * student.float() / 4).to(dtype)
    options = {"divergence": divergence, "weight": 0.3, "temperature": 1.7}
    log_p, ids = (teacher.double() / 1.7).log_softmax(-1).topk(20, -1)
    for wide in (torch.float32, torch.float64):
        found = distill_terms(student, teacher.to(wide), **options)
        assert found.dtype == (torch.float32 if wide == torch.float32 else F64)
        expected = distill_terms(student.double(), teacher.double(), **options)
        torch.testing.assert_close(found, expected, rtol=3e-5, atol=0, check_dtype=False)
    found = distill_terms_top_k(student, log_p, ids, **options)
    expected = distill_terms_top_k(student.double(), log_p, ids, **options)
    torch.testing.assert_close(found, expected, rtol=3e-5, atol=0, check_dtype=False)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_edges(divergence):
    """Equal: 0. Banned by both: no part. Disjoint: +inf for KL, finite for the bounded ones."""
    student = torch.tensor([[0.3, -0.2, 0.1], [0.0, 1.0, -math.inf], [0.0, -math.inf, 0.0]])
    teacher = torch.tensor([[0.3, -0.2, 0.1], [1.0, 0.0, -math.inf], [-math.inf, 0.0, 0.0]])
    student.requires_grad_()
    terms = distill_terms(student, teacher, divergence=divergence)
    found = terms.detach()
    assert abs(float(found[0])) < 1e-7
    assert 0 < float(found[1]) < 1
    if divergence in ("forward", "reverse"):
        assert float(found[2]) == math.inf
    else:
        assert 0 < float(found[2]) < 1.0001
    (slope,) = torch.autograd.grad(terms.sum(), student)
    assert bool(slope.isfinite().all())
    assert slope[0].abs().max() < 1e-6
    assert slope[1, 2] == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_positions_may_hold_anything(divergence):
    student, teacher = pair(3, 5)
    mask = torch.tensor([True, False, True])
    student[1], teacher[1] = math.nan, math.inf
    student.requires_grad_()
    found = distill_terms(student, teacher, divergence=divergence, mask=mask)
    (slope,) = torch.autograd.grad(found.sum(), student)
    assert found[1] == 0
    assert bool((slope[1] == 0).all())
    plain = distill_terms(student[mask], teacher[mask], divergence=divergence)
    torch.testing.assert_close(found[mask], plain)


def stored(teacher, k):
    return teacher.log_softmax(-1).topk(k, -1)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_is_the_divergence_of_the_coarser_world(divergence, k):
    student, teacher = pair(20, 8)
    student.requires_grad_()
    log_p, ids = stored(teacher, k)
    found = distill_terms_top_k(student, log_p, ids, divergence=divergence)
    q, p = student.softmax(-1), teacher.softmax(-1)
    top = torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, value=True)
    coarse = [
        torch.cat([x.gather(-1, ids), x.masked_fill(top, 0).sum(-1, keepdim=True)], -1)
        for x in (q, p)
    ]
    coarse = [x.clamp_min(0).log() for x in coarse]
    expected = truth(*coarse, divergence)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    exact = distill_terms(student, teacher, divergence=divergence)
    assert bool((found <= exact + 1e-12).all())
    assert bool((found >= 0).all())
    slopes = [
        torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (found, expected)
    ]
    assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < 1e-9
    if k == 8:
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-13)


def test_top_k_of_a_peaked_teacher_is_finite():
    """Mass of 1 up to rounding: a tail of exactly 0, no NaN."""
    student = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.zeros(4, 50)
    teacher[:, 0] = 60.0
    for divergence in ("forward", "jsd", "skew_forward", "tv"):
        found = distill_terms_top_k(student, *stored(teacher, 3), divergence=divergence)
        (slope,) = torch.autograd.grad(found.sum(), student)
        assert bool(found.isfinite().all())
        assert bool(slope.isfinite().all())


def test_from_hidden_states_is_from_logits():
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(2, 3, 4, generator=generator, dtype=F64) for _ in range(2)]
    heads = [torch.randn(7, 4, generator=generator, dtype=F64) for _ in range(2)]
    student, teacher = (h @ w.T for h, w in zip(hidden, heads, strict=True))
    pair = [HiddenStates(*each) for each in zip(hidden, heads, strict=True)]
    found = kl(pair[1], pair[0])
    torch.testing.assert_close(found, distill_terms(student, teacher))
    found = kl(*pair)
    torch.testing.assert_close(found, distill_terms(student, teacher, divergence="reverse"))


@pytest.mark.sweep(9)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("samples", ["fixed", "student"])
def test_expected_gradient_by_enumeration(divergence, samples, ends):
    """Prefixes held: Σ_h student(h)·D(h) with student(h) held. Followed: with it moving too."""
    world = World(3, 3, ends=ends)

    def terms_of():
        logits, teacher = world.logits[world.prefixes], world.reference[world.prefixes]
        mask = world.mask
        return distill_terms(logits, teacher, divergence=divergence, weight=0.3, mask=mask)

    def loss_of(pick, chosen):
        return distill_loss(
            terms_of()[pick],
            mask=chosen["mask"],
            normalise="sequence",
            samples=samples,
            log_current=chosen["log_current"] if samples == "student" else None,
        )

    value, slope = world.expect(loss_of, on_policy=True)
    chances = world.chances(world.logits.log_softmax(-1))
    chances = chances if samples == "student" else chances.detach()
    truth_value = (chances * terms_of().sum(-1)).sum()
    expected = world.gradient(truth_value)
    assert abs(float(value - truth_value.detach())) < 1e-12
    assert float((slope - expected).norm() / expected.norm()) < 1e-10
    if samples == "student" and divergence == "reverse":
        whole = world.gradient(world.truth("reverse", "sequence", on_policy=True))
        assert float((slope - whole).norm() / whole.norm()) < 1e-10


AUDITED = {
    "forward": ("KL(ref‖policy)", "KL(ref‖policy)"),
    "reverse": ("KL(policy‖ref)", "KL(policy‖ref)"),
    "jsd": ("JSD(0.3)", "JSD(0.3)"),
    "tv": ("TV(policy, ref)", "TV(policy, ref)"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "divergence",
    ["tv", *(pytest.param(d, marks=pytest.mark.slow) for d in AUDITED if d != "tv")],
)
def test_the_audit_agrees(divergence):
    def loss(logits, ref_logits, bool_mask):
        terms = distill_terms(logits, ref_logits, divergence=divergence, weight=0.3, mask=bool_mask)
        return distill_loss(terms, mask=bool_mask, normalise="sequence")

    report = tokens.audit(loss)
    for finding, name in zip(report.findings, AUDITED[divergence], strict=True):
        assert (finding.kind, finding.descends, finding.level) == ("exact", name, "token")
        assert finding.error < 1e-10
    assert report.lengths is not None
    assert report.lengths < 1e-10
    assert not report.padding


def test_labels_and_normalisation():
    generator = torch.Generator().manual_seed(0)
    terms = torch.rand(2, 3, generator=generator, dtype=F64)
    labels = -torch.rand(2, 3, generator=generator, dtype=F64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kept, named = terms[mask], labels[mask]
    assert float(distill_loss(terms, mask=mask)) == pytest.approx(float(kept.mean()))
    whole = distill_loss(terms, mask=mask, normalise="sequence")
    assert float(whole) == pytest.approx(float(kept.sum() / 2))
    mixed = distill_loss(terms, mask=mask, log_labels=labels, label_weight=0.25)
    assert float(mixed) == pytest.approx(float(0.75 * kept.mean() - 0.25 * named.mean()))
    assert float(distill_loss(terms, mask=torch.zeros_like(mask))) == 0


NO_LOGITS = {
    "ints": (lambda s, t: (s.long(), t), "student_logits: expected a float tensor"),
    "arrays": (lambda s, t: (s, t.numpy()), "teacher_logits: expected Tensor"),
    "8 bits": (lambda s, t: (s.to(torch.float8_e4m3fn), t), "student_logits: expected .* 16 bits"),
    "complex": (lambda s, t: (s, t + 0j), r"Try: teacher_logits\.real"),
    "vocabulary": (lambda s, t: (s, t[..., :3]), "one vocabulary size"),
    "batch": (lambda s, t: (s, t[:1].expand(3, 4)), "batches that broadcast"),
    "NaN": (lambda s, t: (s, t * math.nan), "teacher_logits.* positions of 2"),
    "no token": (lambda s, t: (s - math.inf, t), "student_logits.* positions of 2"),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", NO_LOGITS)
def test_what_is_no_logits_is_refused_by_name_for_every_divergence(divergence, name):
    change, words = NO_LOGITS[name]
    student, teacher = change(*pair(2, 4))
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=words):
        distill_terms(student, teacher, divergence=divergence)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masks_that_broadcast_hide_what_is_there(divergence):
    student, teacher = pair(2, 3, 4)
    student[:, 1] = math.nan
    mask = torch.tensor([True, False, True])
    found = distill_terms(student, teacher[:1], divergence=divergence, mask=mask)
    plain = distill_terms(student[:, mask], teacher[:1, mask], divergence=divergence)
    torch.testing.assert_close(found[:, mask], plain)
    assert bool((found[:, 1] == 0).all())
    for wrong in (mask.long(), torch.ones(4, dtype=torch.bool)):
        with pytest.raises((ArgumentValueError, ArgumentTypeError), match=r"^mask"):
            distill_terms(student, teacher, divergence=divergence, mask=wrong)


WRONG = {
    "divergence": lambda s, t: distill_terms(s, t, divergence="backward"),
    "weight": lambda s, t: distill_terms(s, t, divergence="jsd", weight=0.0),
    "temperature": lambda s, t: distill_terms(s, t, temperature=0.0),
    "p_logits and q_logits": lambda s, t: distill_terms(s, t[..., :-1]),
    "teacher_ids": lambda s, t: distill_terms_top_k(s, t, torch.zeros(2, 2, dtype=torch.int64)),
    "teacher_log_probs": lambda s, t: distill_terms_top_k(s, t + 9, torch.arange(4).expand(2, 4)),
    "log_current": lambda s, _: distill_loss(s, samples="student"),
    "samples": lambda s, _: distill_loss(s, samples="mine"),
    "normalise": lambda s, _: distill_loss(s, normalise="mean"),
    "label_weight": lambda s, _: distill_loss(s, log_labels=s, label_weight=2.0),
    "mask": lambda s, _: distill_loss(s, mask=torch.ones(2, 4)),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_argument(name):
    student, teacher = pair(2, 4)
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=name):
        WRONG[name](student, teacher.log_softmax(-1))


def test_probabilities_for_logits_are_named_whatever_masked_rows_hold():
    student, teacher = (x.softmax(-1) for x in pair(3, 9))
    student[2], teacher[1:] = 7.0, -7.0
    mask = torch.tensor([True, False, False])
    with pytest.warns(tokens.InputWarning, match=r"student_logits.log\(\)"):
        distill_terms(student, teacher, divergence="tv", mask=mask)
