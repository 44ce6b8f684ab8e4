"""Encoder and decoder of a VAE as ONNX graphs, checked against PyTorch before they are kept.

Which to use: `write_graphs`. Needs the extra `onnx` (onnx, onnxscript, onnxruntime).

The encoder's graph maps x in the data's own units and standard normal noise to z ~ q(z|x), and for
Gaussian families to mean and log sd as well; the decoder's maps z to the parameters of p(x|z) and
to the mean of x. Units, label rows and one-hot labels are inside the graphs; the number of rows is
free.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kullback.core import ArgumentValueError, RunError, import_extra, message, require

from .latents import Diagonal, FullRank, LowRank, Quantised
from .likelihoods import InRasterOrder
from .limits import (
    EXPORT_CODES,
    EXPORT_ERROR,
    EXPORT_EXAMPLES,
    EXPORT_ROUNDINGS,
    EXPORT_SUMS,
)
from .model import VAE

__all__ = ["Parity", "require_exportable", "write_graphs"]

HINT = "--without-onnx, or onnx=False in Python"


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the graphs in ONNX Runtime are from PyTorch, on examples that the model drew.

    examples: how many. encoder, decoder: the largest difference of an output, as a share of its
    largest absolute value. log_likelihood: the largest difference of log p(x|z), in nats, through
    both graphs; nats: the mean of log p(x|z) itself. codes: the share of quantised codes that
    differ (a value between two codes may be rounded either way).
    """

    examples: int
    encoder: float
    decoder: float
    log_likelihood: float
    nats: float
    codes: float = 0.0

    def describe(self) -> str:
        """Say it in a sentence.

        Example:
            >>> Parity(64, 1e-7, 2e-7, 3e-5, -90.0).describe()[:45]
            'On 64 examples that the model drew, outputs o'
        """
        said = (
            f"On {self.examples} examples that the model drew, outputs of the encoder in ONNX "
            f"Runtime differ from PyTorch by at most {self.encoder:.1e} of their largest value, "
            f"those of the decoder by {self.decoder:.1e}, and log p(x|z) through both by "
            f"{self.log_likelihood:.1e} of about {self.nats:,.0f} nats."
        )
        return said + (f" {100 * self.codes:.2g} % of codes differ." if self.codes else "")


class EncoderGraph(nn.Module):
    """x, noise and, with labels, the label's place to z, and to mean and log sd of Gaussians."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model
        closed = isinstance(model.family, Diagonal | FullRank)
        self.outputs = ["z", "mean", "log_sd"] if closed else ["z"]
        labelled = model.spec is not None and bool(model.spec.labels)
        self.inputs = ["x", "noise", *(["label"] if labelled else [])]

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs by the names in `outputs`."""
        model = self.model if label is None else self.model.at(label)
        q = model.approximate_posterior(x)
        z = q.draw(noise[None]).z[0]
        return (z, *q.moments()) if len(self.outputs) > 1 else (z,)


class DecoderGraph(nn.Module):
    """z and, with labels, the label's place to parameters of p(x|z) and the mean of x."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model
        one_by_one = isinstance(model.likelihood, InRasterOrder)  # its mean goes pixel by pixel
        self.outputs = ["parameters"] if one_by_one else ["parameters", "mean"]
        labelled = model.spec is not None and bool(model.spec.labels)
        self.inputs = ["z", *(["label"] if labelled else [])]

    def forward(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs by the names in `outputs`."""
        model = self.model if label is None else self.model.at(label)
        parameters = model.parameters_of(z)
        if len(self.outputs) == 1:
            return (parameters,)
        return parameters, model.likelihood.mean(parameters)


def require_exportable(model: VAE) -> None:
    """Raise an error for a model that ONNX cannot hold.

    Args:
        model: To be exported.

    Raises:
        ArgumentValueError: A model of sound, or a posterior of low rank; the text has the reason.

    Example:
        >>> from kullback.vae import Architecture, build
        >>> model = build((4,), "binary", Architecture(posterior="low_rank", latent=6))
        >>> require_exportable(model)
        Traceback (most recent call last):
        kullback.core.errors.ArgumentValueError: model: expected a posterior that ONNX can draw...
    """
    sound = model.spec is not None and model.spec.kind == "sound"
    what = "images or vectors: p(x|z) of sound is a network over earlier samples too"
    require(not sound, "model", what, "sound", HINT)
    what = "a posterior that ONNX can draw from: low_rank needs a Cholesky factor"
    require(not isinstance(model.family, LowRank), "model", what, "low_rank", HINT)


def write_graphs(model: VAE, folder: Path) -> Parity:
    """Write `encoder.onnx` and `decoder.onnx` and compare both with PyTorch.

    Args:
        model: In evaluation mode, on the CPU.
        folder: Where to; it must exist.

    Returns:
        How far they are from PyTorch.

    Raises:
        MissingExtraError: The extra `onnx` is not installed.
        ArgumentValueError: ONNX has no operation for a part of the model.
        RunError: The graphs give other numbers than PyTorch.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name, "onnx")
    require_exportable(model)
    inputs = _examples(model)
    pair = EncoderGraph(model), DecoderGraph(model)
    places = {"encoder": folder / "encoder.onnx", "decoder": folder / "decoder.onnx"}
    with torch.no_grad():
        inputs["z"] = pair[0](*(inputs[name] for name in pair[0].inputs))[0]
        for graph, (name, path) in zip(pair, places.items(), strict=True):
            _write(graph, inputs, name, path)
        return _compared(model, pair, tuple(places.values()), inputs)


def _examples(model: VAE) -> dict[str, Tensor]:
    """Draw examples from the model, noise and labels: a tensor for each input of the graphs."""
    spec, count = model.spec, EXPORT_EXAMPLES
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(spec.labels) if spec is not None and spec.labels else None
    x = (model if labels is None else model.at(labels)).sample(count, generator=generator).float()
    if spec is not None and spec.sizes and x.shape[1:] != spec.event_shape:
        x = torch.cat([x, torch.ones(count, 1)], 1)  # a size factor of 1
    noise = torch.randn(count, model.prior.latent, generator=generator)
    return {"x": x, "noise": noise} | ({} if labels is None else {"label": labels})


def _write(graph: Any, inputs: dict[str, Tensor], name: str, path: Path) -> None:
    """Export one graph with a free number of rows."""
    rows = torch.export.Dim("rows", min=1)
    given = tuple(inputs[one] for one in graph.inputs)
    shapes: tuple[Any, ...] = tuple({0: rows} for _ in given)
    names = {"input_names": graph.inputs, "output_names": graph.outputs}
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                graph, given, dynamo=True, dynamic_shapes=shapes, verbose=False, **names
            )
        except Exception as error:
            reason = _reason(error)
            text = message(name, "a graph that ONNX can hold", f"none ({reason})", HINT)
            raise ArgumentValueError(text) from error
        program.save(str(path))


def _reason(error: BaseException) -> str:
    """Return the first cause of an exporter's error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about other packages off standard error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _compared(
    model: VAE, pair: tuple[Any, Any], paths: tuple[Path, ...], inputs: dict[str, Tensor]
) -> Parity:
    """Run both graphs on all examples and on one, and hold them to PyTorch."""
    encoder, decoder = pair
    encoded, encoder_error = _run(encoder, paths[0], inputs)
    agree = torch.ones(len(inputs["z"]), dtype=torch.bool)
    codes = 0.0
    if isinstance(model.family, Quantised):
        same = encoded["z"] == inputs["z"]
        agree, codes = same.all(1), 1.0 - float(same.double().mean())
        encoder_error = 0.0 if codes <= EXPORT_CODES else encoder_error
    _, decoder_error = _run(decoder, paths[1], inputs)
    through, _ = _run(decoder, paths[1], inputs | {"z": encoded["z"]}, check=False)
    wanted = decoder(*(inputs[name] for name in decoder.inputs))[0]
    log_p = model.likelihood.log_prob(wanted, inputs["x"])
    found = model.likelihood.log_prob(through["parameters"], inputs["x"])
    apart = float((log_p - found)[agree].abs().max()) if bool(agree.any()) else 0.0
    allowed = EXPORT_ROUNDINGS * _rounding(model, inputs, log_p, agree)
    if max(encoder_error, decoder_error) > EXPORT_ERROR or not apart <= allowed:
        raise RunError(
            f"the ONNX graphs differ from PyTorch: encoder {encoder_error:.1e}, decoder "
            f"{decoder_error:.1e} of the largest value, log p(x|z) {apart:.1e} nats where "
            f"rounding allows {allowed:.1e}; nothing is kept. Try: {HINT}"
        )
    nats = float(log_p.mean())
    return Parity(len(inputs["x"]), encoder_error, decoder_error, apart, nats, codes)


def _rounding(model: VAE, inputs: dict[str, Tensor], log_p: Tensor, agree: Tensor) -> float:
    """Return how far PyTorch's log p(x|z) in float32 is from that in float64, in nats.

    At least one rounding of the largest log p. Modules of a user's own may not work in float64:
    with those it is so many roundings as PyTorch's sums had in every other kind of model.
    """
    one = torch.finfo(torch.float32).eps * max(1.0, float(log_p.abs().max()))
    own = model.spec is None or bool(model.spec.own)
    if own or not bool(agree.any()):
        return EXPORT_SUMS * one
    exact = copy.deepcopy(model).double()
    given = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    encoder, decoder = EncoderGraph(exact), DecoderGraph(exact)
    given["z"] = encoder(*(given[name] for name in encoder.inputs))[0]
    wanted = decoder(*(given[name] for name in decoder.inputs))[0]
    truth = exact.likelihood.log_prob(wanted, given["x"])
    return max(one, float((truth - log_p)[agree].abs().max()))


def _run(
    graph: Any, path: Path, inputs: dict[str, Tensor], *, check: bool = True
) -> tuple[dict[str, Tensor], float]:
    """Return a graph's outputs in ONNX Runtime and their largest difference from PyTorch."""
    runtime: Any = import_extra("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}
    worst, found = 0.0, dict[str, Tensor]()
    for count in (1, len(inputs["x"])):
        given = {n: t[:count] for n, t in inputs.items() if n in graph.inputs}
        fed = {name: tensor.numpy() for name, tensor in given.items() if name in taken}
        try:
            outputs = session.run(None, fed)
        except Exception as error:
            hint = "x.shape[0] instead of len(x) in modules of your own"
            got = f"one of a fixed number ({_reason(error)})"
            what = "a graph of any number of rows"
            raise ArgumentValueError(message(path.stem, what, got, hint)) from error
        found = dict(zip(graph.outputs, map(torch.from_numpy, outputs), strict=True))
        if check:
            wanted = graph(*(given[name] for name in graph.inputs))
            worst = max([worst, *map(_apart, found.values(), wanted)])
    return found, worst


def _apart(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest absolute value, at least of 1."""
    if got.shape != wanted.shape:
        return float("inf")
    scale = max(1.0, float(wanted.abs().max()))
    return float((got.double() - wanted.double()).abs().max()) / scale
