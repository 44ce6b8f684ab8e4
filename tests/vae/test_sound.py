"""The likelihood of integer samples: masses sum to one, padding counts nothing, draws agree."""

import itertools
import math

import pytest
import torch

from kullback.data import PADDING
from kullback.vae import VAE, Architecture, build, evaluate
from kullback.vae.architecture import Spec
from kullback.vae.evaluation import bits_per_sample
from kullback.vae.evidence import bounds
from kullback.vae.likelihoods import SoundBlock, log_mass
from kullback.vae.likelihoods.sound_context import cepstrum, lag_correlations
from kullback.vae.sound import (
    AutoregressiveLogistics,
    _Drawn,
    _Fitted,
    _Past,
    _Seen,
    frame_length,
    second_moments,
    shift_shares,
)

WIDTH = 6


def likelihood_of(samples, seed=0, **how):
    torch.manual_seed(seed)
    return AutoregressiveLogistics(samples, width=WIDTH, **how).double()


def conditions(n, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, WIDTH, 64, generator=generator, dtype=torch.float64)


def clip_of(*values):
    return torch.tensor([[list(values)]], dtype=torch.float64)


BEFORE = [(), (120.0,), (-32768.0, 32767.0), (0.0, 0.0, 0.0), tuple(range(0, 9000, 100))]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("before", BEFORE, ids=len)
def test_masses_of_all_65536_levels_sum_to_one(before, scale):
    """At one place, given what came before."""
    t, likelihood = len(before), likelihood_of(100)
    clip = torch.zeros(1, 100, dtype=torch.float64)
    clip[0, :t] = torch.tensor(before, dtype=torch.float64)
    which, place = torch.zeros(1, dtype=torch.long), torch.tensor([t])
    with torch.no_grad():
        past = likelihood._past(clip, which, place)
        condition = likelihood._condition(conditions(1, scale=scale)[None], which, place)[0]
        levels = torch.arange(-32768.0, 32768.0, dtype=torch.float64)
        names = ("learned", "inputs", "loudness", "unit", "error", "errors", "fitted")
        shift = torch.zeros(len(levels), dtype=torch.long)
        every = {name: getattr(past, name).expand(len(levels), -1) for name in names}
        each = likelihood._log_masses(_Past(**every), condition, shift, levels)
    assert torch.logsumexp(each, 0).exp().item() == pytest.approx(1.0, abs=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("before", [(), (120.0,), (-32768.0, 32767.0)])
def test_a_clip_summed_over_its_last_sample_is_the_shorter_clip(before):
    """p(x_<t) is the sum of p(x_≤t) over all 65,536 levels of x_t: padding counts nothing."""
    t = len(before)
    likelihood = likelihood_of(4)
    levels = torch.arange(-32768.0, 32768.0, dtype=torch.float64)
    x = torch.full((len(levels), 1, 4), float(PADDING), dtype=torch.float64)
    x[:, 0, :t] = torch.tensor(before, dtype=torch.float64)
    x[:, 0, t] = levels
    theta = conditions(1)
    with torch.no_grad():
        each = likelihood.log_prob(theta.expand(len(x), -1, -1), x)
        short = clip_of(*before, *[PADDING] * (4 - t))
        shorter = likelihood.log_prob(theta, short).item() if t else 0.0
    assert math.exp(torch.logsumexp(each, 0).item() - shorter) == pytest.approx(1.0, abs=1e-11)


def shares_of(*values):
    return torch.tensor([*values, *[0.0] * (16 - len(values))], dtype=torch.float64)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("shares", [None, shares_of(0.6, 0.4)], ids=["one shift", "two"])
@pytest.mark.parametrize(("levels", "step"), [(2, 1), (4, 1), (4, 256)])
def test_probabilities_of_all_clips_sum_to_one(levels, step, shares):
    likelihood = likelihood_of(3, levels=levels, step=step, shares=shares)
    likelihood.shares = likelihood.shares.double() / likelihood.shares.double().sum()
    values = [step * k for k in range(-levels // 2, levels // 2)]
    x = torch.tensor(list(itertools.product(values, repeat=3)), dtype=torch.float64)[:, None]
    for seed in range(5):
        theta = conditions(1, seed).expand(len(x), -1, -1)
        assert likelihood.log_prob(theta, x).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("shares", [None, shares_of(0.6, 0.4)], ids=["one shift", "two"])
def test_draws_have_the_enumerated_frequencies(shares):
    likelihood = likelihood_of(3, levels=4, shares=shares)
    likelihood.by_shift.weight.data += torch.randn(
        16, WIDTH, generator=torch.Generator().manual_seed(2)
    )
    x = torch.tensor(list(itertools.product(range(-2, 2), repeat=3)), dtype=torch.float64)[:, None]
    theta = conditions(1, 3)
    probability = likelihood.log_prob(theta.expand(len(x), -1, -1), x).exp().detach()
    n = 10_000
    generator = torch.Generator().manual_seed(1)
    drawn = likelihood.float().sample(theta.float().expand(n, -1, -1), generator)
    code = ((drawn[:, 0] + 2) @ torch.tensor([16.0, 4.0, 1.0])).long()
    counts = torch.bincount(code, minlength=64)
    z = (counts - n * probability) / (n * probability * (1 - probability)).sqrt()
    assert z[n * probability > 20].abs().max() <= 4.5


def test_a_clip_of_few_bits_is_scored_in_its_own_levels():
    """The mean over shifts by hand: a clip of multiples of 256 among clips of 16 bits."""
    shares = torch.zeros(16)
    shares[0], shares[8] = 0.75, 0.25
    mixed = likelihood_of(6, shares=shares)
    fine, coarse = likelihood_of(6), likelihood_of(6, levels=256, step=256)
    for one in (fine, coarse):
        kept = {k: v for k, v in mixed.state_dict().items() if k != "shares"}
        one.load_state_dict(kept, strict=False)
    x = torch.tensor([[[512, -256, 0, 256, PADDING, PADDING]], [[512, -256, 1, 256, 5, 6]]])
    theta, x = conditions(2), x.double()
    found, first = mixed.log_prob(theta, x), fine.log_prob(theta, x)
    second = coarse.log_prob(theta[:1], x[:1])
    expected = torch.logaddexp(first[0] + math.log(0.75), second[0] + math.log(0.25))
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], first[1] + math.log(0.75))
    assert found[0] > first[0] + 10.0


def test_shares_count_the_largest_shift_of_each_clip():
    clips = torch.tensor([[[256, 512]], [[-32768, PADDING]], [[0, 0]], [[7, PADDING]]])
    shares = shift_shares(clips) * 5.5  # four clips, and half a clip for each of three shifts
    assert shares[[0, 8, 15]].tolist() == pytest.approx([2.5, 1.5, 1.5])
    assert shares.sum().item() == pytest.approx(5.5)
    assert shift_shares(256 * torch.tensor([[[1, 3]]]), step=256)[0] == 1.0


@pytest.mark.sweep(2)
@pytest.mark.parametrize("context", [(), (5,) * 4], ids=["alone", "in context"])
def test_drawing_and_measuring_see_the_same_past(context):
    """What a place is predicted from, one place at a time and all at once, far past the windows."""
    samples = 700
    likelihood = likelihood_of(samples, context=context)
    x = torch.randint(
        -3000, 3000, (2, samples), generator=torch.Generator().manual_seed(0)
    ).double()
    theta = conditions(2)
    clip, place = torch.ones_like(x).nonzero(as_tuple=True)
    past = likelihood._past(x, clip, place)
    condition = likelihood._condition(theta[None], clip, place)[0]
    grown = _Drawn(2, samples, x.device, likelihood.context)
    for t in range(samples):
        seen = grown.before(t)
        if t in (0, 1, 15, 16, 17, 31, 32, 33, 130, 511, 512, 513, 699):
            at = (place == t).nonzero()[:, 0]
            names = ("samples", "errors", "magnitudes", "fitted")
            alone = likelihood._of(_Seen(*(getattr(seen, name).double() for name in names)))
            for name in ("learned", "inputs", "loudness", "unit", "error", "errors", "fitted"):
                here, there = getattr(past, name)[at], getattr(alone, name)
                torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-2)  # fitted in float32
            torch.testing.assert_close(condition[at], likelihood._condition_at(theta, t))
            for name in ("hidden", "errors") if context else ():
                here, there = getattr(past.echo, name)[at], getattr(seen.echo, name)
                torch.testing.assert_close(here, there.double(), rtol=1e-3, atol=1e-2)
        grown.add(t, x[:, t].float())


def test_fitted_predictors_are_weighted_least_squares():
    """After blocks of 16: the solution of the normal equations with the weights of the samples."""
    one = _Fitted(3, 50.0)
    x = 300 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, _ = one.predictions(x)
    padded = torch.nn.functional.pad(x, (3, 0))[0]
    rows = padded.unfold(0, 4, 1)[:48]
    age = torch.exp(-16 / 50 * (2 - torch.arange(48) // 16).double())[:, None]
    a, b = (rows[:, :3] * age).t() @ rows[:, :3], (rows[:, :3] * age).t() @ rows[:, 3]
    a += torch.eye(3, dtype=a.dtype) * (100 + 1e-5 * a.diagonal().mean())
    weights = torch.linalg.solve(a, b) * 0.98 ** torch.tensor([3.0, 2.0, 1.0]).double()
    for t in (48, 55, 63):
        assert found[0, t].item() == pytest.approx((padded[t : t + 3] @ weights).item(), rel=1e-9)
    assert (found[0, :16] == 0).all()


@pytest.mark.parametrize("samples", [1, 5, 64, 65, 700])
def test_any_length_has_64_frames(samples):
    likelihood = likelihood_of(samples)
    assert 64 * frame_length(samples) >= samples
    x = torch.zeros(1, 1, samples, dtype=torch.float64)
    assert torch.isfinite(likelihood.log_prob(conditions(1), x)).all()


def test_padding_counts_nothing_and_draws_share_the_axis():
    likelihood = likelihood_of(8)
    x = torch.full((3, 1, 8), float(PADDING), dtype=torch.float64)
    for row, count in enumerate((8, 5, 1)):
        x[row, 0, :count] = torch.randint(-50, 50, (count,)).double()
    theta = conditions(6).reshape(2, 3, WIDTH, 64)
    together = likelihood.log_prob(theta, x)
    for row in range(3):
        short = AutoregressiveLogistics(8, width=WIDTH).double()
        short.load_state_dict(likelihood.state_dict())
        alone = short.log_prob(theta[:, row : row + 1], x[row : row + 1])
        torch.testing.assert_close(together[:, row : row + 1], alone)
    torch.testing.assert_close(together[0, 2], likelihood.log_prob(theta[0, 2:3], x[2:3])[0])


def test_gradient_is_autograds_of_float64():
    likelihood = likelihood_of(5)
    x = clip_of(10, -20, 32767, -32768, PADDING)
    theta = conditions(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: likelihood.log_prob(t, x), (theta,), fast_mode=True)


def test_float32_is_near_float64():
    likelihood = likelihood_of(2000)
    generator = torch.Generator().manual_seed(0)
    x = (3000 * torch.randn(2, 1, 2000, generator=generator, dtype=torch.float64)).round()
    theta = conditions(2)
    truth = likelihood.log_prob(theta, x)
    single = likelihood.float().log_prob(theta.float(), x.float())
    torch.testing.assert_close(single.double(), truth, rtol=1e-5, atol=0.0)


def test_silence_is_a_probability_and_never_above_one():
    likelihood = likelihood_of(600)
    with torch.no_grad():
        likelihood.last.bias[6:9] = -40.0  # as sharp as a scale can be
    value = likelihood.log_prob(conditions(1, scale=0.0), torch.zeros(1, 1, 600).double())
    assert -1e-6 <= value.item() <= 0.0


def test_the_first_predictor_is_least_squares():
    """On a process of second order, the start predicts with its coefficients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(40, 2000)
    noise = 300 * torch.randn(40, 2000, generator=generator)
    for t in range(2, 2000):
        x[:, t] = 1.6 * x[:, t - 1] - 0.8 * x[:, t - 2] + noise[:, t]
    moments = second_moments(x.round()[:, None])
    likelihood = AutoregressiveLogistics(4, width=WIDTH, moments=moments)
    weights = likelihood.basis @ likelihood.filters[0]  # oldest first
    assert weights[-1].item() == pytest.approx(1.6, abs=0.03)
    assert weights[-2].item() == pytest.approx(-0.8, abs=0.03)
    assert weights[:-2].abs().max() < 0.05
    mixed = likelihood.basis.t().double() @ moments[:-1, :-1] @ likelihood.basis.double()
    torch.testing.assert_close(mixed, torch.eye(32, dtype=torch.float64), rtol=0, atol=0.05)


def test_the_mean_is_refused():
    with pytest.raises(ValueError, match="noise: expected True for sound"):
        likelihood_of(4).mean(conditions(1))


SOUND = {"rate": 8000, "step": 1, "clip": 3}


def tiny(levels=4, latent=1, context=(5, 5)):
    torch.manual_seed(0)
    architecture = Architecture(hidden=(WIDTH,), latent=latent, components=2, context=context)
    return build((1, 3), "sound", architecture, levels=levels, sound=SOUND).eval()


def test_the_bound_reaches_the_evidence_by_quadrature():
    """log ∫ p(x|z) N(z) dz over a grid of z, for clips of 3 samples with 4 levels."""
    model = tiny()
    x = torch.tensor([[[0.0, 1.0, -2.0]], [[1.0, PADDING, PADDING]]])
    z = torch.linspace(-8, 8, 801)[:, None]
    with torch.no_grad():
        theta = model.parameters_of(z)[:, None].expand(-1, 2, -1, -1)
        log_joint = model.likelihood.log_prob(theta, x) - 0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    truth = torch.logsumexp(log_joint, 0) + math.log(16 / 800)
    draws = 4000
    figures = bounds(model, x, draws=draws, generator=torch.Generator().manual_seed(0))
    error = (1 / figures.effective_draws - 1 / draws).clamp(min=0).sqrt()
    assert ((figures.importance_weighted - truth).abs() <= 4.5 * error + 1e-5).all()
    assert (figures.elbo <= truth + 4.5 * error + 1e-5).all()


def test_all_clips_have_probability_one_under_the_model():
    model = tiny()
    x = torch.tensor(list(itertools.product(range(-2, 2), repeat=3))).float()[:, None]
    z = torch.linspace(-8, 8, 161)[:, None]
    with torch.no_grad():
        theta = model.parameters_of(z)[:, None].expand(-1, 64, -1, -1)
        prior = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * 0.1
        total = (model.likelihood.log_prob(theta, x).exp() * prior).sum()
    assert total.item() == pytest.approx(1.0, abs=1e-5)


def test_bits_a_sample_is_the_ratio_of_sums():
    nats = -torch.tensor([700.0, 1500.0, 90.0, 4000.0], dtype=torch.float64)
    counts = torch.tensor([100, 300, 10, 500])
    figure = bits_per_sample(nats, counts)
    assert figure.value == pytest.approx(-nats.sum().item() / math.log(2) / 910, rel=1e-12)
    bits = -nats / math.log(2)
    residual = bits - figure.value * counts  # Cochran (1977), eq. 2.46
    variance = (residual**2).sum() / 3 / 4 / (counts.double().mean() ** 2)
    assert figure.standard_error == pytest.approx(math.sqrt(variance), rel=1e-6)
    assert figure.unit == "bits/sample"


def test_evaluation_gives_bits_a_sample():
    x = torch.tensor([[[0, 1, -2]], [[1, PADDING, PADDING]], [[0, 0, PADDING]]])
    figures = evaluate(tiny(), x, draws=30)
    expected = -3 * figures.log_likelihood.value / math.log(2) / 6
    assert figures.bits_per_dim.value == pytest.approx(expected, rel=1e-6)
    assert figures.levels == 4


@pytest.mark.parametrize(
    ("x", "text"),
    [
        ([[0.0, 5.0, 0.0]], "integers -2 to 1"),
        ([[0.5, 0.0, 0.0]], "integers -2 to 1"),
        ([[PADDING, 0.0, 0.0]], "padding after the samples only"),
        ([[0.0, PADDING, 0.0]], "padding after the samples only"),
        ([[PADDING] * 3], "one sample at least"),
        ([[float("nan"), 0.0, 0.0]], "finite values"),
        ([[0.0, 0.0]], r"shape \[batch, 1, 3\]"),
    ],
)
def test_clips_that_do_not_fit_are_refused(x, text):
    with pytest.raises(ValueError, match=text):
        tiny().check(torch.tensor([x], dtype=torch.float32))


def test_a_saved_model_is_the_same(tmp_path):
    model = tiny()
    model.save(tmp_path / "m")
    loaded = VAE.load(tmp_path / "m")
    x = torch.tensor([[[0, 1, PADDING]]])
    assert torch.equal(model.elbo(x), loaded.elbo(x))
    assert loaded.spec == model.spec
    drawn = loaded.sample(5)
    assert drawn.shape == (5, 1, 3)
    loaded.check(drawn)


def in_context(samples, seed=0, **how):
    """A likelihood whose outputs depend on all that a place is given."""
    likelihood = likelihood_of(samples, seed, context=(5,) * 4, **how)
    with torch.no_grad():
        for weight in (likelihood.last.weight, likelihood.context.by_age.weight):
            weight.normal_(0.0, 0.3)
    return likelihood


def pulses(n, samples, seed=0):
    """Clips of pulses at periods of their own, through a resonance, in noise."""
    generator = torch.Generator().manual_seed(seed)
    x = 20 * torch.randn(n, samples, generator=generator, dtype=torch.float64)
    for row in range(n):
        x[row, row :: 31 + 17 * row] += 3000.0
    for t in range(2, samples):
        x[:, t] += 1.5 * x[:, t - 1] - 0.8 * x[:, t - 2]
    return x.round()


def test_correlations_are_those_of_every_lag():
    errors = torch.randn(
        3, 320, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).asinh()
    errors[2] = 0.0
    found = lag_correlations(errors)
    for lag in (20, 21, 80, 159):
        last, before = errors[:, 160:], errors[:, 160 - lag : 320 - lag]
        scale = ((last**2).sum(-1) * (before**2).sum(-1) + 1e-3).sqrt()
        torch.testing.assert_close(found[:, lag - 20], (last * before).sum(-1) / scale)
    assert found.shape == (3, 140)


def test_cepstra_are_those_of_the_log_spectrum():
    """Of stable predictors, by a Fourier transform of 4,096 points."""
    poles = torch.tensor([[0.9, 0.4], [0.8, 2.0]], dtype=torch.float64)
    filters = torch.ones(1, dtype=torch.float64)
    for radius, angle in poles:
        pair = torch.stack([torch.ones_like(radius), -2 * radius * angle.cos(), radius**2])
        filters = torch.nn.functional.conv1d(
            filters[None, None], pair.flip(0)[None, None], padding=2
        )[0, 0]
    weights = -filters[1:].flip(0)[None]
    spectrum = -torch.fft.fft(filters, 4096).abs().log()
    expected = 2 * torch.fft.ifft(spectrum).real[1:17]
    torch.testing.assert_close(cepstrum(weights)[0], expected, rtol=0, atol=1e-12)


def of_places(likelihood, x, theta):
    """The mixture of every place of clips `[n, T]`."""
    clip, place = torch.ones_like(x).nonzero(as_tuple=True)
    past = likelihood._past(x, clip, place)
    condition = likelihood._condition(theta[None], clip, place)[0]
    parts = likelihood._shape(past, condition, torch.zeros_like(clip))
    return [part.reshape(*x.shape, -1) for part in parts]


@pytest.mark.sweep(4)
@pytest.mark.parametrize("t", [0, 15, 16, 200, 207, 331])
def test_a_place_depends_on_nothing_at_or_after_it(t):
    likelihood, theta = in_context(350), conditions(3)
    x = pulses(3, 350)
    other = x.clone()
    other[:, t:] = -x[:, t:].flip(-1) + 7
    with torch.no_grad():
        both = [of_places(likelihood, one, theta) for one in (x, other)]
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one[:, : t + 1], two[:, : t + 1], rtol=1e-9, atol=1e-9)
        if t in (200, 207):  # and on what is before it
            assert not torch.allclose(one[:, t + 1 :], two[:, t + 1 :])


def test_a_clip_in_context_summed_over_its_last_samples_is_the_shorter_clip():
    likelihood = in_context(340, levels=4)
    ends = torch.tensor(list(itertools.product(range(-2, 2), repeat=2)), dtype=torch.float64)
    first = torch.randint(-2, 2, (338,), generator=torch.Generator().manual_seed(0)).double()
    x = torch.cat([first.expand(16, -1), ends], -1)[:, None]
    theta = conditions(1)
    padded = torch.cat([first, torch.full((2,), float(PADDING), dtype=torch.float64)])[None, None]
    with torch.no_grad():
        total = torch.logsumexp(likelihood.log_prob(theta.expand(16, -1, -1), x), 0)
        shorter = likelihood.log_prob(theta, padded)[0]
    assert (total - shorter).item() == pytest.approx(0.0, abs=1e-10)


def test_a_place_in_context_has_mass_one_over_all_65536_levels():
    t, likelihood = 330, in_context(340)
    clip, place = torch.zeros(1, dtype=torch.long), torch.tensor([t])
    with torch.no_grad():
        past = likelihood._past(pulses(1, 340)[:, : t + 1], clip, place)
        condition = likelihood._condition(conditions(1)[None], clip, place)[0]
        levels = torch.arange(-32768.0, 32768.0, dtype=torch.float64)
        mixture = likelihood._shape(past, condition, clip)
        log_pi, location, log_scale = (part.expand(65_536, -1) for part in mixture)
        value, bound = levels[:, None] + 0.5, 0.5 * 65_535
        mass = log_mass(location + 0.5, log_scale, value, half=0.5, bound=bound)
    total = torch.logsumexp(mass + log_pi, (0, 1))
    assert total.exp().item() == pytest.approx(1.0, abs=1e-11)


@pytest.mark.slow
def test_drawn_clips_in_context_follow_the_measured_probabilities():
    """The randomised distribution function of every draw is uniform: 8 bins, 6,400 draws."""
    likelihood, theta = in_context(200).float(), conditions(32).float()
    with torch.no_grad():
        likelihood.last.weight.mul_(0.3)
        x = likelihood.sample(theta, torch.Generator().manual_seed(0))[:, 0].double()
        log_pi, location, log_scale = of_places(likelihood.double(), x, theta.double())
    edges = [(x[..., None] + side - location) / log_scale.exp() for side in (-0.5, 0.5)]
    low, high = torch.sigmoid(edges[0]), torch.sigmoid(edges[1])
    low = torch.where(x[..., None] == -32768, 0.0, low)
    high = torch.where(x[..., None] == 32767, 1.0, high)
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pit = (log_pi.exp() * (low + u[..., None] * (high - low))).sum(-1)
    counts = torch.histc(pit, 8, 0.0, 1.0)
    n = pit.numel()
    assert ((counts - n / 8) / math.sqrt(n * 7 / 64)).abs().max() <= 4.5


def test_runs_from_before_sound_had_a_context_have_none():
    old = tiny(context=(0,)).spec.to_dict()
    del old["architecture"]["context"]
    spec = Spec.from_dict(old)
    assert spec.architecture.context == (0,)
    empty = {**old, "architecture": {**old["architecture"], "context": []}}
    assert Spec.from_dict(empty) == spec
    weights = tiny(context=(0,)).state_dict()
    assert not any("context" in name for name in weights)


def test_the_usual_context_is_that_of_sound():
    resolved = Architecture().resolved((1, 90), "sound")
    assert resolved.context == (32,) * 7
    assert resolved.resolved((1, 90), "sound") == resolved
    assert Architecture().resolved((1, 28, 28), "binary").context == ()
    assert Architecture(context=(0,)).resolved((1, 28, 28), "binary").context == ()
    with pytest.raises(ValueError, match="context"):
        Architecture(context=(8,)).resolved((5,), "binary")


def test_an_offset_of_a_clip_is_no_period():
    """Errors of a clip with an offset have a mean, by which all lags would correlate."""
    context = in_context(4).context
    generator = torch.Generator().manual_seed(0)
    loudness, weights = torch.zeros(2, 15).double(), (torch.zeros(2, 12).double(),) * 2
    samples = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    errors = torch.randn(2, 320, generator=generator, dtype=torch.float64)
    plain = context.read(SoundBlock(samples, errors, loudness, weights))
    moved = context.read(SoundBlock(samples + 5.0, errors + 3.0, loudness, weights))
    for one, other in zip(plain, moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
