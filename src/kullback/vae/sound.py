"""A VAE of sound: clips `[batch, 1, T]` of integer samples, and the likelihood of every sample.

Which to use: `build("sound")` puts these together. `SoundEncoder` reads a spectrogram of 64 frames;
`SoundDecoder` turns z into a condition for each frame; `AutoregressiveLogistics` is p(x|z): a
mixture of logistics, integrated over each level, whose location is a linear prediction from the
samples before. How it is predicted and the scale depend on z and on those samples, so p(x|z) is
the product of `p(x_t | x_<t, z)`: a normalised probability of the integers themselves, and −log p
a code length. Two of the predictors are fitted to the samples before by least squares, again every
16 samples (backward adaptation, as in LD-CELP, ITU-T G.728); the others are learned. A context
(`likelihoods.sound_context`) gives the errors one period of a voice before, and learned features.

Recordings of few bits are often stored with many: all their samples are then multiples of 2^k. Each
clip has a shift k with a probability of its own, and p(x|z) is the mixture over k; FLAC does the
same by its "wasted bits".

Samples are integers, `PADDING` where a clip has ended; padded places have no probability and are
in no sum. How long a clip is counts as given.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kullback.core import ArgumentValueError
from kullback.data import PADDING

from .likelihoods import PeriodEcho, SoundBlock, SoundContext, log_mass
from .limits import (
    CLIPS_FOR_MOMENTS,
    ERRORS_SEEN,
    LOGISTIC_LOG_SCALE,
    LOUDEST_SAMPLE,
    PERIOD_LAGS,
    PERIOD_TAPS,
    REFIT_EXPANSION,
    REFIT_RIDGE,
    REFIT_SAMPLES,
    SOUND_FRAMES,
    SOUND_ORDER,
    SOUND_SHIFTS,
    SOUND_WINDOWS,
    WIDE_LOGIT,
    WIDE_SHARE,
)
from .networks import gaussian, real

__all__ = [
    "AutoregressiveLogistics",
    "SoundDecoder",
    "SoundEncoder",
    "frame_length",
    "second_moments",
    "shift_shares",
]

_SCALE_WINDOW = 32  # samples whose mean magnitude is the unit of the prediction
_PREDICTORS = 16  # linear predictors, of which every place takes its own combination
_RIDGE = 1e-5  # of the mean square, added to each: keeps solutions within float32's reach
_LOG_SCALE_OF_ERROR = -math.log(2 * math.log(2))  # of a logistic whose mean magnitude is 1
_EDGE = 2  # frames on either side that a spectrum covers


def frame_length(samples: int) -> int:
    """Return how many samples a frame has: a clip has 64 frames, whatever its length.

    Example:
        >>> frame_length(8000), frame_length(8001)
        (125, 126)
    """
    return max(1, -(-samples // SOUND_FRAMES))


class SoundEncoder(nn.Module):
    """q(z|x) from the spectrogram of a clip: `[batch, 1, T]` to mean and log sd, `[batch, latent]`.

    Log power of 64 overlapping frames, then two strided convolutions over time, then a layer.

    Args:
        samples: T.
        width: Channels of the convolutions.
        latent: Dimensions of z.
        extra: As in `MlpEncoder`.

    Example:
        >>> SoundEncoder(640, 8, 3)(torch.zeros(2, 1, 640))[0].shape
        torch.Size([2, 3])
    """

    window: Tensor

    def __init__(self, samples: int, width: int, latent: int, *, extra: int = 0) -> None:
        super().__init__()
        self.extra = extra
        self.frame = frame_length(samples)
        self.register_buffer("window", torch.hann_window(_EDGE * self.frame))
        bands = self.frame * _EDGE // 2 + 1
        self.first = nn.Conv1d(bands, width, 3, padding=1)
        self.second = nn.Conv1d(width, width, 4, stride=2, padding=1)
        self.third = nn.Conv1d(width, width, 4, stride=2, padding=1)
        self.last = nn.Linear(width * (SOUND_FRAMES // 4), 2 * latent + extra)
        with torch.no_grad():
            self.last.weight.mul_(0.1)  # q(z|x) starts near the prior

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return mean and log sd, `[batch, latent]` each, and extra outputs, of x in deviations."""
        h = F.silu(self.first(self._spectrogram(x[:, 0].to(self.window.dtype))))
        h = F.silu(self.third(F.silu(self.second(h))))
        return gaussian(self.last(h.flatten(1)), self.extra)

    def _spectrogram(self, x: Tensor) -> Tensor:
        """Return log power `[batch, bands, frames]`, near 0 for noise of deviation 1."""
        length = self.frame * (SOUND_FRAMES + _EDGE - 1)
        frames = F.pad(x, (0, length - x.shape[-1])).unfold(-1, _EDGE * self.frame, self.frame)
        power = torch.fft.rfft(frames * self.window).abs().square() / self.frame
        return (torch.log(power + 1e-6) / 4).transpose(1, 2)


class SoundDecoder(nn.Module):
    """The condition of each frame: z `[rows, latent]` to `[rows, width, frames]`.

    Args:
        latent: Dimensions of z.
        width: Channels, as many as `AutoregressiveLogistics` has.

    Example:
        >>> SoundDecoder(3, 8)(torch.zeros(5, 3)).shape
        torch.Size([5, 8, 64])
    """

    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(latent, width * (SOUND_FRAMES // 4))
        self.second = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
        self.third = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
        self.last = nn.Conv1d(width, width, 3, padding=1)
        with torch.no_grad():
            self.last.weight.mul_(0.1)  # and conditions near 0

    def forward(self, z: Tensor) -> Tensor:
        """Return conditions, `[rows, width, frames]`."""
        h = self.first(z.to(self.first.weight.dtype)).reshape(len(z), self.width, -1)
        h = F.silu(self.third(F.silu(self.second(F.silu(h)))))
        out: Tensor = self.last(h)
        return out


def _windows(levels: Tensor, clip: Tensor, place: Tensor, count: int) -> Tensor:
    """Return the values before each place, the oldest first, zeros before the clip."""
    return F.pad(levels, (count, 0))[:, :-1].unfold(-1, count, 1)[clip, place]


def _magnitudes(levels: Tensor, clip: Tensor, place: Tensor) -> Tensor:
    """Return mean magnitudes of the samples before each place, `[places, windows]`."""
    longest = max(SOUND_WINDOWS)
    sums = F.pad(levels.abs().double().cumsum(-1), (longest + 1, 0))
    at = place + longest  # the sum of all samples before the place
    means = [(sums[clip, at] - sums[clip, at - w]) / w for w in SOUND_WINDOWS]
    return torch.stack(means, -1).clamp(min=0.0).to(levels.dtype)


def _unit(magnitudes: Tensor) -> Tensor:
    return 1.0 + magnitudes[..., SOUND_WINDOWS.index(_SCALE_WINDOW), None]


def _compressed(errors: Tensor, sums: Tensor) -> Tensor:
    """Return asinh of errors in units of the 32 before each, whose magnitudes have these sums."""
    return torch.asinh(errors / (1.0 + sums.clamp(min=0.0) / _SCALE_WINDOW))


@torch.no_grad()
def second_moments(clips: Tensor, *, step: int = 1) -> Tensor:
    """Return E[v vᵀ] of 32 samples and the next one, in units of their mean magnitude.

    Places where a sound begins are left out.

    Args:
        clips: `[N, 1, T]`, integers and `PADDING`; at most 1,000 of them are looked at.
        step: Between levels.

    Returns:
        `[33, 33]`, float64; the oldest sample first, the next one last.

    Example:
        >>> second_moments(torch.ones(2, 1, 50)).shape
        torch.Size([33, 33])
    """
    clips = clips[:: max(1, len(clips) // CLIPS_FOR_MOMENTS)].flatten(1).cpu()
    total, count = torch.zeros(SOUND_ORDER + 1, SOUND_ORDER + 1, dtype=torch.float64), 0
    for block in torch.split(clips, 16):
        levels = torch.where(block == PADDING, 0.0, real(block) / step)
        clip, place = (block != PADDING).nonzero(as_tuple=True)
        every = torch.cat(
            [_windows(levels, clip, place, SOUND_ORDER), levels[clip, place, None]], -1
        )
        every = every / _unit(_magnitudes(levels, clip, place))
        steady = (place >= SOUND_ORDER) & (every.abs().amax(-1) <= LOUDEST_SAMPLE)
        total += (every[steady].t() @ every[steady]).double()
        count += int(steady.sum())
    return total / max(1, count)


def _divisible(x: Tensor, step: int) -> Tensor:
    """Say of every clip and every shift k whether all samples are multiples of step · 2^k."""
    real_x, padded = torch.where(x == PADDING, 0, x), x == PADDING
    steps = [step << k for k in range(SOUND_SHIFTS)]
    return torch.stack([(padded | (real_x % one == 0)).flatten(1).all(-1) for one in steps], -1)


@torch.no_grad()
def shift_shares(clips: Tensor, *, step: int = 1) -> Tensor:
    """Return the share of each shift k: of clips whose samples are multiples of step · 2^k.

    Every clip counts for its largest k, a silent one for 0. By Krichevsky and Trofimov's rule half
    a clip is added to shift 0, which covers all clips, and to those that are there.

    Args:
        clips: `[N, 1, T]`, integers and `PADDING`.
        step: Between levels.

    Returns:
        `[16]`, float64, of sum 1.

    Example:
        >>> shift_shares(torch.tensor([[[256, 512]], [[3, 4]], [[5, PADDING]]]))[[0, 8]]
        tensor([0.6250, 0.3750], dtype=torch.float64)
    """
    counts = torch.zeros(SOUND_SHIFTS, dtype=torch.float64)
    for block in torch.split(clips, CLIPS_FOR_MOMENTS):
        largest = _divisible(block, step).sum(-1) - 1
        largest[~((block != 0) & (block != PADDING)).flatten(1).any(-1)] = 0
        counts += torch.bincount(largest.cpu(), minlength=SOUND_SHIFTS)
    counts[(counts > 0) | (torch.arange(SOUND_SHIFTS) == 0)] += 0.5
    return counts / counts.sum()


def _uncorrelated(moments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `[order, order]`, by which windows become uncorrelated, and the best predictor there.

    By Gram and Schmidt from the newest sample on, as in a lattice filter: the k-th input is what
    the k − 1 newer samples do not say about the k-th.
    """
    if moments is None or float(moments.trace()) == 0:  # no data, or only silence
        moments = torch.eye(SOUND_ORDER + 1, dtype=torch.float64)
        moments[-1, -2] = moments[-2, -1] = 1.0  # the sample before is the prediction
    within, towards = moments[:-1, :-1].flip(0, 1), moments[:-1, -1].flip(0)
    ridge = _RIDGE * within.diagonal().mean() + torch.finfo(torch.float64).tiny
    root = torch.linalg.cholesky(within + ridge * torch.eye(len(within), dtype=within.dtype))
    basis = torch.linalg.inv(root).t()
    return basis.flip(0).float(), (basis.t() @ towards).float()


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A linear predictor of some order, fitted to a decaying window of the samples before.

    The weights solve `(R + ridge) a = r` with the sums R of v vᵀ and r of v·x over past samples, v
    the `order` samples before x, each sample weighted by e^(−age/decay). They are renewed every 16
    samples and depend on the past alone.
    """

    order: int
    decay: float

    def windows(self, levels: Tensor) -> Tensor:
        """Return each sample after those before it, `[batch, blocks, 16, order + 1]`."""
        blocks = -(-levels.shape[-1] // REFIT_SAMPLES)
        padded = F.pad(levels, (self.order, blocks * REFIT_SAMPLES - levels.shape[-1]))
        windows = padded.unfold(-1, self.order + 1, 1)
        return windows.reshape(len(levels), blocks, REFIT_SAMPLES, self.order + 1)

    def later(self, sums: Tensor, products: Tensor) -> Tensor:
        """Return the sums `[batch, order + 1, order + 1]` with those of one more block in them."""
        return torch.add(products, sums, alpha=math.exp(-REFIT_SAMPLES / self.decay))

    def weights(self, sums: Tensor) -> Tensor:
        """Return the predictor's weights `[…, order, 1]`; zeros where the sums are singular.

        They are multiplied by 0.98^k at lag k, which moves the poles of what is drawn inwards.
        """
        within, towards = sums[..., :-1, :-1], sums[..., :-1, -1:]
        ridge = REFIT_RIDGE + _RIDGE * within.diagonal(dim1=-2, dim2=-1).mean(-1)
        eye = torch.eye(self.order, dtype=sums.dtype, device=sums.device)
        root, failed = torch.linalg.cholesky_ex(within + ridge[..., None, None] * eye)
        ages = torch.arange(self.order, 0, -1, dtype=sums.dtype, device=sums.device)
        solved = torch.cholesky_solve(towards, root) * (REFIT_EXPANSION**ages)[:, None]
        return torch.where(failed[..., None, None] > 0, 0.0, solved)

    def predictions(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prediction of every sample of `[batch, T]` from those before it, and weights.

        The weights are those of every block of 16 samples, `[batch · blocks, order]`.
        """
        windows = self.windows(levels).contiguous()
        products = (windows.transpose(-1, -2) @ windows).transpose(0, 1).contiguous()
        every = torch.zeros_like(products)
        for block in range(len(every) - 1):
            every[block + 1] = self.later(every[block], products[block])
        weights = self.weights(every).transpose(0, 1)
        found = (windows[..., :-1] * weights.transpose(-1, -2)).sum(-1)
        return found.flatten(1)[:, : levels.shape[-1]], weights.flatten(0, 1)[..., 0]


_FITTED = (_Fitted(12, 96.0), _Fitted(16, 256.0))


def _blocks(loud: list[Tensor], compressed: Tensor, weights: tuple[Tensor, ...]) -> SoundBlock:
    """Return what stands before every block of every clip; loud: samples, then errors of fits."""
    n = len(compressed)
    count = len(weights[0]) // n
    clip = torch.arange(n, device=compressed.device).repeat_interleave(count)
    start = torch.arange(count, device=compressed.device).repeat(n) * REFIT_SAMPLES
    magnitudes = torch.cat([_magnitudes(one, clip, start) for one in loud], -1)
    samples = _windows(loud[0], clip, start, REFIT_SAMPLES) / _unit(magnitudes)
    errors = _windows(compressed, clip, start, 2 * PERIOD_LAGS[1])
    return SoundBlock(samples, errors, torch.log1p(magnitudes), weights)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What stands before each place, `[places, …]`, in levels.

    samples: the last 32. errors: the last 160 of the first fitted predictor, each in units of the
    32 before it, compressed. magnitudes: means of samples and of errors over several windows.
    fitted: the predictions of the place itself. echo: of a model with a context.
    """

    samples: Tensor
    errors: Tensor
    magnitudes: Tensor
    fitted: Tensor
    echo: PeriodEcho | None = None


@dataclass(frozen=True, slots=True)
class _Past:
    """What the samples before each place say: `[places, …]`.

    learned, inputs: of the learned filters, in units of `unit`: predictions, and inputs of the
    hidden layers. loudness: logs of mean magnitudes, of the
    samples and of the errors of the fitted predictors, over several windows. unit, error: the mean
    magnitude of the last 32 samples, and of the first predictor's last 32 errors, plus 1,
    `[places, 1]`. errors: its last 160 errors, compressed, the oldest first: they show where the
    pulses of a voice are. fitted: the predictions, `[places, 2]`. echo: of a model with a context.
    """

    learned: Tensor
    inputs: Tensor
    loudness: Tensor
    unit: Tensor
    error: Tensor
    errors: Tensor
    fitted: Tensor
    echo: PeriodEcho | None = None


class _Drawn:
    """Clips that grow sample by sample, with what the next one is predicted from.

    It gives, one place at a time, what `_past` computes for all places at once. context: that of
    the likelihood, where it has one; what it needs of earlier blocks is kept in queues.
    """

    def __init__(
        self,
        clips: int,
        samples: int,
        device: torch.device,
        context: SoundContext | None = None,
    ) -> None:
        self.context = context
        self.queues = [] if context is None else context.queues(clips)
        self.longest = max(SOUND_WINDOWS)
        self.history = torch.zeros(clips, self.longest + samples, device=device)
        self.raw = torch.zeros_like(self.history)  # errors of the first fitted predictor
        self.errors = torch.zeros_like(self.history)  # and compressed
        shape = (1 + len(_FITTED), clips, self.longest + 1 + samples)
        self.totals = torch.zeros(shape, device=device, dtype=torch.float64)
        self.spans = torch.tensor(SOUND_WINDOWS, device=device)
        self.sums = [torch.zeros(clips, f.order + 1, f.order + 1, device=device) for f in _FITTED]
        self.weights = [torch.zeros(clips, f.order, 1, device=device) for f in _FITTED]
        self.fitted = torch.zeros(clips, len(_FITTED), device=device)

    @property
    def levels(self) -> Tensor:
        """The samples, `[clips, samples]`."""
        return self.history[:, self.longest :]

    def before(self, t: int) -> _Seen:
        """Return what place t is predicted from."""
        at = t + self.longest
        if t and t % REFIT_SAMPLES == 0:
            self._refit(at)
        for i, (one, weights) in enumerate(zip(_FITTED, self.weights, strict=True)):
            self.fitted[:, i] = (self.history[:, None, at - one.order : at] @ weights)[:, 0, 0]
        means = (self.totals[..., at : at + 1] - self.totals[..., at - self.spans]) / self.spans
        magnitudes = means.clamp(min=0.0).transpose(0, 1).flatten(1).float()
        samples = self.history[:, at - SOUND_ORDER : at]
        errors = self.errors[:, at - ERRORS_SEEN : at]
        echo = None if self.context is None else self._echo(self.context, t, magnitudes)
        return _Seen(samples, errors, magnitudes, self.fitted, echo)

    def add(self, t: int, levels: Tensor) -> None:
        """Put the sample of place t, in levels, behind the others."""
        at = t + self.longest
        self.history[:, at] = levels
        errors = levels[:, None] - self.fitted
        self.raw[:, at] = errors[:, 0]
        sums = self.totals[1, :, at] - self.totals[1, :, at - _SCALE_WINDOW]
        self.errors[:, at] = _compressed(errors[:, 0], sums.float())
        size = torch.cat([levels[:, None], errors], 1).abs()
        self.totals[..., at + 1] = self.totals[..., at] + size.t()

    def _echo(self, context: SoundContext, t: int, magnitudes: Tensor) -> PeriodEcho:
        """Return the echo of place t, after a look at the block that begins there."""
        at, age = t + self.longest, t % REFIT_SAMPLES
        if age == 0:
            block = SoundBlock(
                self.history[:, at - REFIT_SAMPLES : at] / _unit(magnitudes),
                self.errors[:, at - 2 * PERIOD_LAGS[1] : at],
                torch.log1p(magnitudes),
                tuple(one[..., 0] for one in self.weights),
            )
            inputs, self.period, self.correlation = context.read(block)
            self.features = context.next_features(inputs, self.queues)
        taps = context.taps(torch.full_like(self.period, at), self.period)
        raw, small = self.raw.gather(1, taps), self.errors.gather(1, taps)
        return context.here(self.features, age, self.correlation, raw, small)

    def _refit(self, at: int) -> None:
        for i, one in enumerate(_FITTED):
            last = self.history[:, at - REFIT_SAMPLES - one.order : at]
            windows = last.unfold(-1, one.order + 1, 1)
            self.sums[i] = one.later(self.sums[i], windows.transpose(-1, -2) @ windows)
            self.weights[i] = one.weights(self.sums[i])


class AutoregressiveLogistics(nn.Module):
    """Integer samples, one after the other: `log p(x|z) = Σ_t log Σ_k π_k [σ(b_tk) − σ(a_tk)]`.

    a and b are the standardised edges of the level x_t (the outermost levels reach to infinity, so
    the masses of all levels sum to 1). Location, scale and π of each place are functions of the
    samples before it and of z: the location is a combination, chosen at every place, of two fitted
    and sixteen learned linear predictions; the scale is in units of the last errors. With a context
    a combination of the errors one period before is added to the location. Places with
    `PADDING` are left out of the sum. That is p(x|z, k) of a shift k: levels are multiples of
    step · 2^k. p(x|z) is its mean over k with the weights `shares`.

    Parameters are conditions `[*lead, width, 64]`, interpolated between the frames' centres.

    Args:
        samples: T.
        width: Of the hidden layers.
        components: K.
        levels: How many a sample can take; they are step · (−levels/2 … levels/2 − 1).
        step: Between levels: 1 for 16 bits, 256 for files of 8 bits.
        moments: Of the training data, `second_moments`. The filters then work on uncorrelated
            inputs and the first predictor starts as the best one (least squares) for all places.
        shares: Of the training data, `shift_shares`; by default all on shift 0.
        context: Widths of a `SoundContext`; empty for none.

    Example:
        >>> likelihood = AutoregressiveLogistics(4, width=8)
        >>> clip = torch.tensor([[[5.0, -3.0, PADDING, PADDING]]])
        >>> likelihood.log_prob(torch.zeros(1, 8, 64), clip).shape
        torch.Size([1])
    """

    basis: Tensor
    shares: Tensor

    def __init__(
        self,
        samples: int,
        *,
        width: int = 64,
        components: int = 3,
        levels: int = 65_536,
        step: int = 1,
        moments: Tensor | None = None,
        shares: Tensor | None = None,
        context: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.samples, self.channels, self.components = samples, width, components
        self.levels, self.step = levels, step
        self.frame = frame_length(samples)
        if shares is None:
            shares = F.one_hot(torch.tensor(0), SOUND_SHIFTS)
        self.register_buffer("shares", shares.float())
        basis, best = _uncorrelated(moments)
        self.register_buffer("basis", basis)
        filters = torch.randn(_PREDICTORS + width, SOUND_ORDER) / math.sqrt(SOUND_ORDER)
        self.filters = nn.Parameter(torch.cat([best[None], filters[1:]]))
        loudness = (1 + len(_FITTED)) * len(SOUND_WINDOWS)
        self.by_loudness = nn.Linear(loudness, width)
        self.by_errors = nn.Linear(ERRORS_SEEN, width, bias=False)
        self.by_shift = nn.Embedding(SOUND_SHIFTS, width)
        self.hidden = nn.Linear(width, width)
        echoes = PERIOD_TAPS if context else 0
        self.last = nn.Linear(width, 3 * components + len(_FITTED) + _PREDICTORS + echoes)
        self.context = None
        if context:
            self.context = SoundContext(
                context, hidden=width, loudness=loudness, predictors=len(_FITTED)
            )
        with torch.no_grad():
            self.by_shift.weight.zero_()
            self.last.weight.zero_()  # at first what the first fitted predictor says, and no more
            self.last.bias.zero_()
            self.last.bias[3 * components] = 1.0
            self.last.bias[0] = WIDE_LOGIT if components > 1 else 0.0
            scales = torch.linspace(0.7, -0.8, components) if components > 1 else torch.zeros(1)
            self.last.bias[2 * components : 3 * components] = scales + _LOG_SCALE_OF_ERROR

    @property
    def numbers(self) -> int:
        """How many numbers one draw of one clip takes in a layer: what limits a block's rows."""
        return self.samples * self.channels // 8

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|z), `[*draws, batch]`, in nats."""
        x, lead, n = x.reshape(len(x), -1), parameters.shape[:-2], len(x)
        parameters = real(parameters).reshape(-1, n, *parameters.shape[-2:])
        which, shift = (_divisible(x, self.step) & (self.shares > 0)).nonzero(as_tuple=True)
        if len(which) > n:  # some clips have several shifts
            parameters, x = parameters[:, which], x[which]
        each = self._given_shifts(parameters, x, shift)
        every = each.new_full((len(each), n, SOUND_SHIFTS), -math.inf)
        every[:, which, shift] = each + self.shares.to(each.dtype).log()[shift]
        return torch.logsumexp(every, -1).reshape(lead)

    def _given_shifts(self, parameters: Tensor, x: Tensor, shift: Tensor) -> Tensor:
        """Return log p(x|z, k) of clips `[batch, T]` with their shifts k, `[draws, batch]`."""
        step = (self.step * 2**shift)[:, None]
        levels = torch.where(x == PADDING, 0.0, real(x) / step)
        clip, place = (x != PADDING).nonzero(as_tuple=True)
        levels = levels[:, : int(place.max()) + 1]
        condition = self._condition(parameters, clip, place)
        past = self._past(levels, clip, place)
        each = self._log_masses(past, condition, shift[clip], levels[clip, place])
        return each.new_zeros(len(parameters), len(x)).index_add(1, clip, each)

    def _past(self, levels: Tensor, clip: Tensor, place: Tensor) -> _Past:
        """Filter the samples before each place, predict it, and measure how loud they are."""
        with torch.no_grad():
            predicted = [one.predictions(levels) for one in _FITTED]
            fitted = torch.stack([predictions for predictions, _ in predicted])
            loud = [levels, *(levels - fitted)]
            magnitudes = torch.cat([_magnitudes(one, clip, place) for one in loud], -1)
            total = F.pad(loud[1].abs().double().cumsum(-1), (_SCALE_WINDOW + 1, 0))
            sums = (total[:, _SCALE_WINDOW:] - total[:, :-_SCALE_WINDOW])[:, :-1]
            compressed = _compressed(loud[1], sums.to(levels.dtype))
        samples = _windows(levels, clip, place, SOUND_ORDER)
        errors = _windows(compressed, clip, place, ERRORS_SEEN)
        echo = None
        if self.context is not None:
            block = _blocks(loud, compressed, tuple(weights for _, weights in predicted))
            echo = self.context.everywhere(block, loud[1], compressed, clip, place)
        return self._of(_Seen(samples, errors, magnitudes, fitted[:, clip, place].t(), echo))

    def _of(self, seen: _Seen) -> _Past:
        magnitudes = seen.magnitudes
        unit, error = _unit(magnitudes), _unit(magnitudes[..., len(SOUND_WINDOWS) :])
        filtered = (seen.samples / unit) @ (self.basis @ self.filters.t())
        learned, inputs = torch.split(filtered, [_PREDICTORS, self.channels], -1)
        loudness = torch.log1p(magnitudes)
        return _Past(learned, inputs, loudness, unit, error, seen.errors, seen.fitted, seen.echo)

    def _condition(self, parameters: Tensor, clip: Tensor, place: Tensor) -> Tensor:
        """Interpolate `[draws, batch, width, frames]` linearly: `[draws, places, width]`."""
        ends = torch.cat([parameters[..., :1], parameters, parameters[..., -1:]], -1)
        ends = ends.transpose(-1, -2).unsqueeze(-2)  # [draws, batch, frames + 2, 1, width]
        shift = (torch.arange(self.frame, device=place.device, dtype=ends.dtype) + 0.5) / self.frame
        between = torch.lerp(ends[..., :-1, :, :], ends[..., 1:, :, :], shift[:, None])
        flat = between.flatten(2, 3)  # from half a frame before the clip
        return flat[:, clip, place + self.frame // 2]

    def _shape(
        self, past: _Past, condition: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log π, location and log scale of the mixture, `[places, K]`, in levels."""
        k = self.components
        h = past.inputs + condition + self.by_shift(shift)
        h = h if past.echo is None else h + past.echo.hidden
        h = F.silu(h + self.by_loudness(0.5 * past.loudness - 2.0) + self.by_errors(past.errors))
        out = self.last(F.silu(self.hidden(h) + h))
        sizes = [k, k, k, len(_FITTED), _PREDICTORS]
        logits, offset, log_scale, by_fit, mix, by_echo = out.split(
            [*sizes, out.shape[-1] - sum(sizes)], -1
        )
        learned = (past.learned * mix).sum(-1, keepdim=True)
        fitted = (past.fitted * by_fit).sum(-1, keepdim=True)
        if past.echo is not None:
            fitted = fitted + (past.echo.errors * by_echo).sum(-1, keepdim=True)
        location = fitted + past.unit * learned + past.error * offset
        wide = F.pad(self._counts(shift) / WIDE_SHARE, (0, k - 1)) if k > 1 else 0.0
        units = past.error + wide  # the first component also covers what comes from silence
        log_scale = (log_scale + units.log()).clamp(*LOGISTIC_LOG_SCALE)
        return torch.log_softmax(logits, -1), location, log_scale

    def _counts(self, shift: Tensor) -> Tensor:
        """Return how many levels there are at each place's shift, `[places, 1]`."""
        return (self.levels / 2**shift)[:, None].to(self.shares.dtype)

    def _log_masses(self, past: _Past, condition: Tensor, shift: Tensor, here: Tensor) -> Tensor:
        log_pi, location, log_scale = self._shape(past, condition, shift)
        value = here[:, None] + 0.5  # levels symmetric about 0
        bound = 0.5 * (self._counts(shift) - 1)
        mass = log_mass(location + 0.5, log_scale, value, half=0.5, bound=bound)
        return torch.logsumexp(log_pi + mass, -1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Refuse: the mean of p(x|z) over all sounds has no closed form and is no sound."""
        del parameters
        raise ArgumentValueError(
            "noise: expected True for sound, whose mean given z has no closed form; got False. "
            "Try: noise=True, or likelihood.sample"
        )

    @torch.no_grad()
    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x one sample after the other, `[*lead, 1, T]`, in the data's units."""
        lead, device = parameters.shape[:-2], parameters.device
        parameters = real(parameters).reshape(-1, *parameters.shape[-2:])
        past = _Drawn(len(parameters), self.samples, device, self.context)
        shift = torch.multinomial(
            self.shares, len(parameters), replacement=True, generator=generator
        )
        half = self._counts(shift)[:, 0] / 2
        for t in range(self.samples):
            seen = self._of(past.before(t))
            log_pi, location, log_scale = self._shape(
                seen, self._condition_at(parameters, t), shift
            )
            pick = torch.multinomial(log_pi.exp(), 1, generator=generator)
            u = torch.rand(pick.shape, generator=generator, device=device)
            noise = torch.logit(u, eps=1e-7)
            drawn = location.gather(1, pick) + log_scale.gather(1, pick).exp() * noise
            past.add(t, drawn[:, 0].round().clamp(-half, half - 1))
        return (past.levels * (self.step * 2**shift)[:, None]).reshape(*lead, 1, self.samples)

    def _condition_at(self, parameters: Tensor, t: int) -> Tensor:
        """Return the condition of one place for every clip, `[batch, width]`."""
        frame, inside = divmod(t + self.frame // 2, self.frame)
        last = parameters.shape[-1] - 1
        left = parameters[..., min(max(frame - 1, 0), last)]
        right = parameters[..., min(frame, last)]
        return torch.lerp(left, right, (inside + 0.5) / self.frame)

    def initial_bias(self, mean: Tensor) -> Tensor:
        """Return conditions of zero, `[width, 64]`."""
        return mean.new_zeros(self.channels, SOUND_FRAMES)
