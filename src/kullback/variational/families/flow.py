"""A normalising flow: for banana and funnel shapes (zuko; the extra `flows`)."""

from typing import Any

import torch
from torch import Tensor

from kullback.core import require
from kullback.core.checks import import_extra
from kullback.variational.frame import Frame

from .family import Draws, Family, normal_log_prob

__all__ = ["Flow"]


class Flow(Family):
    """`z = T(e)`, e ~ N(0, I), through coupling layers of neural networks that move half of z each.

    Density and draws are exact, each in one pass. layers: coupling transforms, in alternation.
    hidden: width of the two-layer networks. The flow starts as the identity in its frame.
    seed: of the networks' first weights; the global state of random numbers is left as it was.
    Errors: `MissingExtraError` without zuko. In one dimension there is nothing to condition on and
    the flow is affine.
    Reference: Dinh et al. (2017), "Density estimation using Real NVP".
    """

    name, dense = "flow", True

    def __init__(self, frame: Frame, *, layers: int = 6, hidden: int = 32, seed: int = 0) -> None:
        super().__init__(frame)
        require(layers >= 1, "layers", "at least 1", layers)
        zuko: Any = import_extra("zuko", "flows")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.flow = zuko.flows.NICE(
                self.dim,
                transforms=layers,
                hidden_features=(hidden, hidden),
                activation=torch.nn.Tanh,
            ).to(self.shift.dtype)
        with torch.no_grad():
            for part in self.flow.transform.transforms:
                last = list(part.hyper)[-1] if hasattr(part, "hyper") else None
                for parameter in last.parameters() if last is not None else part.parameters():
                    parameter.zero_()

    def _push(self, noise: Tensor) -> Draws:
        u, log_det = self.flow().transform.inv.call_and_ladj(noise)
        return Draws(u, normal_log_prob(noise) - log_det, None)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._push(self.noise(n, generator)).z

    def _log_prob(self, u: Tensor) -> Tensor:
        noise, log_det = self.flow().transform.call_and_ladj(u)
        value: Tensor = normal_log_prob(noise) + log_det
        return value

    def _entropy(self) -> None:
        return None

    def _absorb(self) -> None:
        return None
