"""All that the next step of a training needs, and the step of Adam."""

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kullback.core import processes

from ..likelihoods import in_threads, library
from ..limits import ADAM_BLOCK, ADAM_NUMBERS
from ..training import Training
from .flat_parameters import FlatParameters
from .full_shard import FullShard
from .weight_vector import WeightVector

__all__ = ["State", "make_moments"]


@dataclass(slots=True)
class State:
    """All that the next step needs; what a checkpoint holds.

    totals: sums over the steps since the last reading of (ELBO, rate). model: what it holds besides
    its trained parameters is kept too, so that a checkpoint alone is a whole model.
    """

    flat: WeightVector
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    model: nn.Module
    step: int = 0
    seconds: float = 0.0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2))

    @classmethod
    def start(
        cls,
        model: nn.Module,
        settings: Training,
        *,
        precision: torch.dtype = torch.float32,
        over: processes.Processes | None = None,
        full: bool = False,
    ) -> "State":
        """Make the state of a run that has not begun, on the model's device.

        over: processes that shard it, each of which calls this. full: whether they shard the
        weights that products use too.
        """
        flat: WeightVector
        if full and over is not None and over.size > 1:
            flat = FullShard(model, precision=precision, over=over)
        else:
            flat = FlatParameters(model, precision=precision, over=over)
        weights = nn.Parameter(flat.vector)
        weights.grad = flat.gradient
        optimiser = torch.optim.AdamW([weights], weight_decay=0.0, fused=True)
        device = flat.vector.device
        generator = torch.Generator(device).manual_seed(settings.seed)
        totals = torch.zeros(2, device=device)
        return cls(flat, optimiser, generator, model, totals=totals)

    @property
    def trained(self) -> set[str]:
        """The names of all trained parameters; one that is shared has several."""
        every = self.model.named_parameters(remove_duplicate=False)
        return {name for name, parameter in every if parameter.requires_grad}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What the model holds now besides the vector; a module may have put others in place."""
        trained = self.trained
        return {n: t for n, t in self.model.state_dict().items() if n not in trained}

    @torch.no_grad()
    def update(self, rate: float, decay: float, factor: float = 1.0) -> None:
        """Take one step of Adam: matrices shrink by a share `decay`, the gradient has a factor.

        On a CPU in float32 it is one sweep in C, where that compiles, equal up to rounding.
        """
        flat, settings = self.flat, self.optimiser.param_groups[0]
        settings["lr"] = rate
        single = flat.vector.dtype == torch.float32 and flat.vector.device.type == "cpu"
        functions = library() if single else None
        if functions is not None:
            self._update_in_c(functions, decay, factor)
        else:
            if factor != 1.0:
                flat.gradient.mul_(factor)
            flat.decay(decay)
            self.optimiser.step()
        flat.refresh()

    def _update_in_c(self, functions: ctypes.CDLL, decay: float, factor: float) -> None:
        flat, settings = self.flat, self.optimiser.param_groups[0]
        if not self.optimiser.state:
            make_moments(self)
        moments = self.optimiser.state[settings["params"][0]]
        moments["step"] += 1
        steps, (beta1, beta2) = float(moments["step"]), settings["betas"]
        tensors = (flat.vector, flat.gradient, moments["exp_avg"], moments["exp_avg_sq"])
        pointers = [tensor.data_ptr() for tensor in tensors]
        rate, root = settings["lr"] / (1.0 - beta1**steps), (1.0 - beta2**steps) ** -0.5
        numbers, blocks = flat.vector.numel(), -(-flat.vector.numel() // ADAM_BLOCK)
        shrunk = (numbers, flat.matrices)
        constants = (beta1, beta2, factor, 1.0 - decay, rate, root, settings["eps"])

        def work(first: int, last: int) -> None:
            functions.adam(*pointers, first, last, *shrunk, *constants)

        if numbers < ADAM_NUMBERS:
            work(0, blocks)
        else:
            in_threads(work, blocks)


def make_moments(state: State) -> None:
    """Give the optimiser the empty moments it would make at its first step."""
    for group in state.optimiser.param_groups:
        part = group["params"][0]
        step = torch.zeros((), device=part.device if part.is_cuda else "cpu")
        moments = {"step": step, "exp_avg": torch.zeros_like(part.data)}
        state.optimiser.state[part] = moments | {"exp_avg_sq": torch.zeros_like(part.data)}
