"""Several processes that train one model: what they share, and whether a batch divides over them.

Which to use: `SharedStep`, the one sum of a step; `require_equal_shares` before the first.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kullback.core import processes, require

from ..model import VAE
from ..state import FIGURES, WeightVector
from ..training import Training

__all__ = ["SharedStep", "require_equal_shares"]


class SharedStep:
    """What the processes of one training send each other in a step: one sum over all of them.

    With the gradient of its share of the batch every process sends its loss and figures, and
    whether it was asked to stop; the first one sends its clock. So all have the same weights and
    figures, and take the same decisions, without another message. With one process nothing is
    sent and nothing is delayed; with several, the clock and a request to stop take effect a step
    later. Of a sharded state the gradient is summed before, and the norms of the slices are sent
    with the figures; the first process then also tells what the others' slices are needed for
    after this step.

    Args:
        group: The processes.
        needs: Asked in the first process, of a sharded state: whether averaged weights are looked
            at after this step, and whether the state is saved.

    Example:
        >>> shared = SharedStep(processes.Processes())
        >>> shared.agreed(False), shared.agreed(True)
        (False, True)
    """

    def __init__(
        self,
        group: processes.Processes,
        needs: Callable[[], tuple[bool, bool]] | None = None,
    ) -> None:
        self.group, self.needs = group, needs
        self.asked = self.stop = self.look = self.save = False
        self.seconds = math.nan

    def seconds_at(self, before: float, now: float) -> float:
        """Return the clock of this step, the same in all: the first process's, as sent last."""
        if self.group.size == 1:
            return now
        return before if math.isnan(self.seconds) else self.seconds

    def agreed(self, asked: bool) -> bool:  # noqa: FBT001
        """Note whether this process was asked to stop; return whether all are to stop now."""
        self.asked = asked
        return asked if self.group.size == 1 else self.stop

    def average(
        self, flat: WeightVector, loss: Tensor, figures: Tensor, seconds: float
    ) -> tuple[Tensor, Tensor]:
        """Make gradient, loss and (ELBO, rate) those of the whole batch, from those of shares."""
        size = self.group.size
        if size == 1:
            return loss, figures
        more = flat.sums[len(flat.gradient) :]
        more[0], more[1:3] = loss.detach(), figures
        more[3] = seconds if self.group.first else 0.0
        more[4] = float(self.asked)
        if flat.sharded:
            flat.divide_gradient(size)
            more = torch.cat([more, self._needed(more), flat.norms_of_slices(size)])
            self.group.sum_(more)
        else:
            self.group.sum_(flat.sums)
            flat.divide_gradient(size)
        *means, self.seconds, asked = more[:FIGURES].tolist()
        self.stop = asked > 0
        norms = more[FIGURES + 2 :] if flat.sharded else flat.norms_of_slices(size)
        flat.squares = sum(norm * norm for norm in norms.tolist())
        if flat.sharded:
            self.look, self.save = map(bool, more[FIGURES : FIGURES + 2].tolist())
        loss, elbo, rate = (torch.tensor(one / size) for one in means)
        return loss, torch.stack([elbo, rate]).to(figures)

    def _needed(self, like: Tensor) -> Tensor:
        """Return what the first process needs after this step, as numbers; of others zeros."""
        asked = self.needs() if self.needs is not None and self.group.first else (False, False)
        return like.new_tensor([float(one) for one in asked])


def require_equal_shares(
    model: VAE,
    settings: Training,
    examples: int,
    group: processes.Processes,
    *,
    resumed: bool = False,
) -> None:
    """Raise an ArgumentValueError where a step's batch does not divide over the processes.

    resumed: whether the batch is that of a run begun, so that only the processes can change.
    """
    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
    mixes = next((n for n, one in model.named_modules() if isinstance(one, kinds)), "")
    why = "no BatchNorm with several processes, each of which sees a share of the batch"
    require(not mixes or group.size == 1, "modules", why, mixes, "GroupNorm or SyncBatchNorm")
    n, size = min(settings.batch_size, examples), group.size
    why = f"2 or more with {mixes}, which normalises over the batch"
    require(not mixes or n > 1, "batch_size", why, n, "GroupNorm, or more data")
    if n % size == 0:
        return
    sizes = [k for k in (n // size * size, (n // size + 1) * size) if 0 < k <= examples]
    counts = [k for k in range(1, n + 1) if n % k == 0]
    near = [max(k for k in counts if k < size), *[k for k in counts if k > size][:1]]
    hint = f"--nproc-per-node {' or '.join(map(str, near))}"
    if sizes and not resumed:
        hint = f"batch_size={sizes[0]}, or {hint}"
    few = " (all training examples)" if n < settings.batch_size else ""
    require(False, "batch_size", f"a multiple of the {size} processes", f"{n}{few}", hint)  # noqa: FBT003
