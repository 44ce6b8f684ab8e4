"""What the samples before a block of 16 say of it: the period of a voice, and learned features.

`SoundContext` is what `AutoregressiveLogistics` reads besides the nearest samples. A voice repeats
itself with its pitch: the period is the lag at which the prediction errors before the block
correlate most, and the errors one period before a place are given to its distribution (long-term
prediction, as in speech coders). Features of whole blocks are made by dilated causal convolutions
over blocks, which see an eighth of a second at 8 kHz.

References: Atal and Schroeder (1979), "Predictive coding of speech signals and subjective error
criteria"; van den Oord et al. (2016), "WaveNet", section 2.1; Mehri et al. (2017), "SampleRNN",
whose upper tiers also run over blocks of 16 samples.
"""

from collections import deque
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..limits import CEPSTRUM_LIMIT, PERIOD_LAGS, PERIOD_TAPS, REFIT_SAMPLES

__all__ = ["PeriodEcho", "SoundBlock", "SoundContext", "cepstrum", "lag_correlations"]

_REACH = PERIOD_LAGS[1] + PERIOD_TAPS // 2  # the oldest error of an echo
_CEPSTRUM = 16  # coefficients of a predictor's spectrum


def cepstrum(weights: Tensor, count: int = _CEPSTRUM) -> Tensor:
    """Return c_1 … c_count of `log 1/(1 − Σ a_k e^(−ikω)) = Σ_n c_n e^(−inω)`.

    By the recursion `c_n = a_n + Σ_{k<n} (k/n) c_k a_{n−k}`, each within ±4.

    Args:
        weights: Of linear predictors, `[n, order]`, that of the oldest sample first.
        count: How many coefficients.

    Returns:
        `[n, count]`.

    Example:
        >>> cepstrum(torch.tensor([[0.0, 0.5]]), 3)  # 0.5^n / n
        tensor([[0.5000, 0.1250, 0.0417]])
    """
    a = F.pad(weights.flip(-1), (0, max(0, count - weights.shape[-1])))
    found: list[Tensor] = []
    for n in range(1, count + 1):
        total = a[..., n - 1]
        for k in range(1, n):
            total = total + (k / n) * found[k - 1] * a[..., n - k - 1]
        found.append(total.clamp(-CEPSTRUM_LIMIT, CEPSTRUM_LIMIT))
    return torch.stack(found, -1)


def lag_correlations(errors: Tensor) -> Tensor:
    """Return `Σ e_t e_{t−L} / √(Σ e_t² · Σ e_{t−L}²)` over the last half, for every lag L.

    Args:
        errors: `[n, 320]`.

    Returns:
        `[n, 140]`, of L = 20 … 159.

    Example:
        >>> pulses = torch.zeros(1, 320)
        >>> pulses[:, ::50] = 1.0
        >>> int(lag_correlations(pulses).argmax()) + 20
        50
    """
    half, size = errors.shape[-1] // 2, 2 * errors.shape[-1]
    last = torch.fft.rfft(errors[:, half:], size)
    both = torch.fft.irfft(torch.fft.rfft(errors, size) * last.conj(), size)
    energy = F.pad(errors.square().cumsum(-1), (1, 0))
    energy = (energy[:, half:] - energy[:, : half + 1]).clamp(min=0.0).flip(-1)  # by lag, as below
    found: Tensor = both[:, : half + 1].flip(-1) / (energy * energy[:, :1] + 1e-3).sqrt()
    return found[:, slice(*PERIOD_LAGS)]


@dataclass(frozen=True, slots=True)
class SoundBlock:
    """What stands before each block of 16 samples, `[blocks, …]`.

    samples: the last 16, in units of their mean magnitude. errors: the last 320, in units of those
    before each, compressed. loudness: logs of mean magnitudes. weights: of each fitted predictor,
    `[blocks, order]`.
    """

    samples: Tensor
    errors: Tensor
    loudness: Tensor
    weights: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class PeriodEcho:
    """What a context says of places: `[places, …]`.

    hidden: what is added to the hidden layer. errors: of the samples around one period before, in
    levels, `[places, 7]`.
    """

    hidden: Tensor
    errors: Tensor


class SoundContext(nn.Module):
    """Features of the blocks before a place, and the errors one period before it.

    Features of a block: its `SoundBlock`, its correlations and cepstra, by a layer, then residual
    convolutions `h_b + W_0 silu(h_{b−d}) + W_1 silu(h_b)` with d = 1, 2, 4, …

    Args:
        widths: Features, one equal number for the layer and each of the convolutions.
        hidden: Width of the hidden layer to which its output is added.
        loudness: Numbers in `SoundBlock.loudness`.
        predictors: Fitted ones.

    Example:
        >>> context = SoundContext((8, 8, 8), hidden=4, loudness=2, predictors=1)
        >>> context.features(torch.zeros(3, 5, context.inputs)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self, widths: tuple[int, ...], *, hidden: int, loudness: int, predictors: int
    ) -> None:
        super().__init__()
        lags = PERIOD_LAGS[1] - PERIOD_LAGS[0]
        self.inputs = 2 * REFIT_SAMPLES + loudness + _CEPSTRUM * predictors + lags
        self.dilations = tuple(2**i for i in range(len(widths) - 1))
        self.first = nn.Linear(self.inputs, widths[0])
        self.further = nn.ModuleList(
            nn.Conv1d(w, w, 2, dilation=d) for w, d in zip(widths[1:], self.dilations, strict=True)
        )
        self.by_features = nn.Linear(widths[-1], hidden, bias=False)
        self.by_age = nn.Embedding(REFIT_SAMPLES, hidden)  # places since the block began
        self.by_period = nn.Linear(PERIOD_TAPS + 1, hidden, bias=False)

    @torch.no_grad()
    def read(self, block: SoundBlock) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs of features `[blocks, inputs]`, periods `[blocks]` and correlations."""
        errors = block.errors - block.errors.mean(-1, keepdim=True)  # an offset has no period
        samples = block.samples - block.samples.mean(-1, keepdim=True)
        every = lag_correlations(errors)
        correlation, period = every.max(-1)
        parts = [torch.asinh(samples), errors[:, -REFIT_SAMPLES:]]
        parts += [0.5 * block.loudness - 2.0, *map(cepstrum, block.weights), every]
        return torch.cat(parts, -1), period + PERIOD_LAGS[0], correlation

    def features(self, inputs: Tensor) -> Tensor:
        """Return features `[batch, blocks, width]` of inputs `[batch, blocks, inputs]`."""
        h = self.first(inputs).transpose(1, 2)
        for dilation, conv in zip(self.dilations, self.further, strict=True):
            h = h + conv(F.pad(F.silu(h), (dilation, 0)))
        return F.silu(h).transpose(1, 2)

    def queues(self, clips: int) -> list[deque[Tensor]]:
        """Return what `next_features` remembers before the first block: zeros."""
        empty = self.first.weight.new_zeros(clips, self.first.out_features)
        return [deque([empty] * dilation, dilation) for dilation in self.dilations]

    def next_features(self, inputs: Tensor, queues: list[deque[Tensor]]) -> Tensor:
        """Return features `[clips, width]` of the next block, by inputs `[clips, inputs]`."""
        h: Tensor = self.first(inputs.to(self.first.weight.dtype))
        for conv, queue in zip(self.further, queues, strict=True):
            one, here = cast(nn.Conv1d, conv), F.silu(h)
            before, now = one.weight.unbind(-1)
            h = h + F.linear(queue[0], before, one.bias) + F.linear(here, now)
            queue.append(here)  # the oldest leaves
        return F.silu(h)

    def everywhere(
        self, block: SoundBlock, errors: Tensor, compressed: Tensor, clip: Tensor, place: Tensor
    ) -> PeriodEcho:
        """Return the echo of places of clips whose blocks are known, clip after clip.

        errors, compressed: of all samples, `[batch, T]`. clip, place: `[places]`.
        """
        inputs, period, correlation = self.read(block)
        features = self.features(inputs.reshape(len(errors), -1, self.inputs))
        which = clip * features.shape[1] + place // REFIT_SAMPLES
        at = self.taps(place + _REACH, period[which])
        raw, small = (F.pad(e, (_REACH, 0))[clip[:, None], at] for e in (errors, compressed))
        by_block = self.by_features(features).unsqueeze(2) + self.by_age.weight
        flat = by_block.flatten(0, 2)[which * REFIT_SAMPLES + place % REFIT_SAMPLES]
        return PeriodEcho(flat + self._by_period(small, correlation[which]), raw)

    def here(
        self, features: Tensor, age: int, correlation: Tensor, raw: Tensor, small: Tensor
    ) -> PeriodEcho:
        """Return the echo of one place a clip; age: places since its block began."""
        h = self.by_features(features) + self.by_age.weight[age]
        return PeriodEcho(h + self._by_period(small, correlation), raw)

    @staticmethod
    def taps(place: Tensor, period: Tensor) -> Tensor:
        """Return the places around one period before, `[places, 7]`."""
        around = torch.arange(PERIOD_TAPS, device=period.device) - PERIOD_TAPS // 2
        return (place - period)[:, None] + around

    def _by_period(self, small: Tensor, correlation: Tensor) -> Tensor:
        given = torch.cat([small, correlation[:, None]], -1)
        out: Tensor = self.by_period(given.to(self.by_period.weight.dtype))
        return out
