"""A user's encoder and decoder as modules of a model, and whose part an exception came from.

What a part of a user's own raises shows its traceback; notes (PEP 678) at its end say which part it
was and what it was given.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from kullback.core import describe, require, require_type

from ..limits import LOG_SD_LIMIT
from ..networks import real

__all__ = ["OwnDecoder", "OwnEncoder", "names_own_parts", "saying_whose"]


@contextmanager
def saying_whose(name: str, module: nn.Module, x: Tensor) -> Iterator[None]:
    """Let what a user's module raises inside a `with` block say whose it is, and of which batch.

    Args:
        name: "encoder" or "decoder".
        module: The user's.
        x: What it is called with.
    """
    try:
        yield
    except Exception as error:
        mode = "training" if module.training else "evaluation"
        error.add_note(
            f"kullback: raised by the {name}, {_class_of(module)}, which was called with "
            f"{describe(x)}, in {mode} mode"
        )
        raise


Function = TypeVar("Function", bound=Callable[..., Any])


def names_own_parts(function: Function) -> Function:
    """Let a function of a model say whose it is where a user's likelihood or prior raises.

    Args:
        function: Whose first arguments are a model, and a batch or a number of samples.

    Returns:
        The function, whose exceptions have a note.
    """

    @functools.wraps(function)
    def noted(model: Any, given: Tensor | int, *args: Any, **more: Any) -> Any:
        try:
            return function(model, given, *args, **more)
        except Exception as error:
            what = describe(given) if isinstance(given, Tensor) else f"{given} samples"
            own = getattr(getattr(model, "spec", None), "own", None) or {}
            for name in [one for one in ("likelihood", "prior") if one in own]:
                part = getattr(model, name)
                method = _method_in(error, part)
                if method is not None:
                    said = f"kullback: raised in {method} of the {name}, {_class_of(part)}"
                    _note_once(error, f"{said}, for {what}")
            raise

    return cast(Function, noted)


def _note_once(error: Exception, note: str) -> None:
    """Add a note, which an inner call may have added."""
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _method_in(error: Exception, part: object) -> str | None:
    """Return the method of an object that an exception went through first, None if through none."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_locals.get("self") is part:
            return trace.tb_frame.f_code.co_name
        trace = trace.tb_next
    return None


def _class_of(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


class OwnEncoder(nn.Module):
    """A user's encoder: outputs in float32, log sd within ±10.

    While it trains, `products` is the dtype of its matrix products, by autocast: that leaves
    parameters and normalisation in float32, whatever modules it is made of.

    Args:
        module: `[batch, *event]` to (mean, log_sd), or (mean, log_sd, extra).

    Raises:
        ArgumentTypeError: The module returns something else.

    Example:
        >>> class Halves(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).chunk(2, -1)
        >>> OwnEncoder(Halves(4, 6))(torch.zeros(5, 4))[0].shape
        torch.Size([5, 3])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.products = torch.float32

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return mean, log sd and what the module gives besides."""
        x = x.to(_dtype_of(self.module))
        with saying_whose("encoder", self.module, x), _autocast(self, x):
            outputs = self.module(x)
        require_type(outputs, (tuple, list), "encoder's output")
        good = len(outputs) in (2, 3) and all(isinstance(one, Tensor) for one in outputs)
        got = f"({', '.join(type(one).__name__ for one in outputs)})"
        require(good, "encoder's output", "tensors (mean, log_sd) or (mean, log_sd, extra)", got)
        for one in outputs:
            _require_real(one, "encoder's output")
        mean, log_sd, *extra = (real(one) for one in outputs)
        return (mean, log_sd.clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT), *extra)


class OwnDecoder(nn.Module):
    """A user's decoder: outputs in float32 as `[rows, channels, places]`; `products` as above.

    Args:
        module: `[rows, latent]` to as many numbers a row, in any shape with channels first.
        channels: Of the likelihood.
        places: Of the event.

    Raises:
        ArgumentValueError: The module gives another number of outputs.

    Example:
        >>> OwnDecoder(nn.Linear(3, 4), 1, 4)(torch.zeros(5, 3)).shape
        torch.Size([5, 1, 4])
    """

    def __init__(self, module: nn.Module, channels: int, places: int) -> None:
        super().__init__()
        self.module, self.shape = module, (channels, places)
        self.products = torch.float32

    def forward(self, z: Tensor) -> Tensor:
        """Return parameters, `[rows, channels, places]`."""
        z = z.to(_dtype_of(self.module))
        with saying_whose("decoder", self.module, z), _autocast(self, z):
            out = self.module(z)
        require_type(out, Tensor, "decoder's output")
        _require_real(out, "decoder's output")
        rows = z.shape[0]  # not len(z), which would be a constant in an exported graph
        fits = out.shape[:1] == (rows,) and out.numel() == rows * math.prod(self.shape)
        if not fits:
            wanted = f"{[rows, *self.shape]}, or the same numbers in another shape"
            require(fits, "decoder's output", wanted, list(out.shape))
        return real(out).reshape(rows, *self.shape)


def _require_real(x: Tensor, name: str) -> None:
    """Refuse complex numbers, whose imaginary part would be dropped."""
    if x.is_complex():
        hint = "torch.view_as_real, or its .real and .imag side by side"
        require(False, name, "real numbers", x.dtype, hint)  # noqa: FBT003


def _autocast(own: OwnEncoder | OwnDecoder, x: Tensor) -> torch.autocast:
    rounded = own.training and own.products != torch.float32
    return torch.autocast(x.device.type, dtype=own.products, enabled=rounded)


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's first floating parameter, else float32."""
    found = (one.dtype for one in module.parameters() if one.is_floating_point())
    return next(found, torch.float32)
