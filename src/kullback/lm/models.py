"""Language models as hidden states and a head: what `drift` asks of a model.

Which to use: `load_models` for checkpoints on disk (transformers folders, GGUF files, LoRA
adapters beside their base); `LanguageModel` for anything else in Python: a function from token ids
to last hidden states, and the head.

A checkpoint's logits must be `softcap(scale · (hidden @ head.T + bias))`. This is verified on a few
tokens when it is loaded, so that an architecture that does more to its logits is refused and not
measured wrongly.
"""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback.core import DataError, MissingExtraError, read_json

from . import limits
from .documents import Batch

__all__ = ["LanguageModel", "check_same_tokens", "load_models", "load_tokenizer", "vocabulary_hash"]


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModel:
    """A language model: hidden states of token ids, and the head that turns them into logits.

    Args:
        name: What reports call it.
        hidden: A function from ids `[batch, time]` (int64) to last hidden states
            `[batch, time, width]`; position t must depend on ids up to t alone.
        head: `[vocab, width]`.
        bias: `[vocab]`, or None.
        softcap: c of `c tanh(logits / c)`, or None.
        scale: The logits are multiplied by it, the bias included, before the cap.
        tokenizer: A Hugging Face tokenizer, or None where token ids are given.
        context: The most tokens it reads at a time, or None if it does not say.
        facts: What a manifest records: path, dtype, hashes.

    Example:
        >>> toy = LanguageModel("toy", lambda ids: torch.eye(3)[ids], torch.eye(3))
        >>> toy.vocab, toy.hidden(torch.tensor([[0, 2]])).shape
        (3, torch.Size([1, 2, 3]))
    """

    name: str
    hidden: Callable[[Tensor], Tensor]
    head: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    tokenizer: Any = None
    context: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def vocab(self) -> int:
        """How many tokens the head knows."""
        return len(self.head)

    def cut(self, vocab: int) -> "LanguageModel":
        """Return the model over its first `vocab` tokens, its distributions renormalised there.

        For a head that is padded beyond the tokenizer's tokens.
        """
        bias = None if self.bias is None else self.bias[:vocab]
        return replace(self, head=self.head[:vocab], bias=bias)

    def scored_hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states `[n, width]` that predict a batch's scored tokens."""
        found: dict[int, Tensor] = {}
        for group in batch.alike:
            longest = len(batch.windows[group[0]].ids)
            read = self.hidden(batch.ids[group, :longest].to(self.head.device))
            for number, states in zip(group, read, strict=True):
                window = batch.windows[number]
                before = window.scored - window.start - 1
                found[number] = states[before : before + window.count]
        return torch.cat([found[number] for number in range(len(batch.windows))])

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the logits `[n, vocab]` of hidden states `[n, width]`, in float32 at least."""
        wide = torch.promote_types(torch.float32, hidden.dtype)
        found = torch.mm(hidden.to(wide), self.head.to(wide).t(), out=out)
        if self.bias is not None:
            found += self.bias
        if self.scale != 1.0:
            found *= self.scale
        if self.softcap is not None:
            found.div_(self.softcap).tanh_().mul_(self.softcap)
        return found


def load_models(
    p: str | Path, qs: Sequence[str | Path], *, dtype: str = "float32", device: str = "cpu"
) -> Iterator[LanguageModel]:
    """Load P and every Q from disk; a LoRA adapter shares the weights of its base.

    Args:
        p: A transformers folder (safetensors), a `.gguf` file, or an adapter's folder.
        qs: The candidates, likewise. An adapter whose base is P adds only its own weights.
        dtype: Of weights and hidden states: "float32", "bfloat16", "float16", or "auto" (the
            checkpoint's). Logits and sums are float32 at least.
        device: Where they run.

    Yields:
        P, then the Qs in order.

    Raises:
        DataError: A path that is no checkpoint, a damaged one, an architecture whose logits are
            more than a head's. The message names the path.
        MissingExtraError: transformers, gguf or peft are needed and not installed.
    """
    bases = _Bases()
    for path in (p, *qs):
        yield _load(Path(path), dtype, device, bases)


@dataclass(frozen=True, slots=True)
class _Bases:
    """Modules by their resolved path, and those among them that adapters have been put on."""

    modules: dict[str, Any] = field(default_factory=dict)
    adapted: dict[str, Any] = field(default_factory=dict)

    def get(self, path: Path, dtype: str, device: str) -> Any:
        key = str(path.resolve())
        if key not in self.modules:
            self.modules[key] = _load_module(path, dtype, device)
        return self.modules[key]


def _load(path: Path, dtype: str, device: str, bases: _Bases) -> LanguageModel:
    if (path / "adapter_config.json").exists():
        return _load_adapter(path, dtype, device, bases)
    return _of_module(bases.get(path, dtype, device), path, load_tokenizer(path))


def _extra(name: str, package: str) -> MissingExtraError:
    return MissingExtraError(f"{name} needs {package}. Try: pip install 'kullback[lm]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own bars and notes off standard error: what matters is raised here."""
    from transformers import utils

    logging: Any = utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of GGUF files is another one
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_module(path: Path, dtype: str, device: str) -> Any:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise _extra("a checkpoint", "transformers") from None
    where = _where(path)
    chosen = "auto" if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {
        "dtype": chosen,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        with _quiet():
            load: Any = AutoModelForCausalLM.from_pretrained
            module, info = load(**where, **options, output_loading_info=True)
    except ImportError as error:
        raise _extra(str(path), str(error).strip().partition("\n")[0]) from None
    except Exception as error:  # whatever a damaged or foreign file makes it raise
        hint = (
            "copy or download it again; kinds that transformers does not know need an update of it"
        )
        raise DataError(
            f"{path}: transformers cannot load it: {_reason(error)}. Try: {hint}"
        ) from error
    missing = sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])})
    if missing:  # transformers fills them with random numbers
        raise DataError(
            f"{path}: expected all weights of {type(module).__name__}; {len(missing)} are missing "
            f"or of another shape, {missing[0]} first. Try: copy or download the checkpoint again"
        )
    return module.to(device).eval()


def _reason(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, KeyError) or not reason:
        return f"{type(error).__name__} {reason}".strip()
    return reason


def _where(path: Path) -> dict[str, str]:
    if path.suffix == ".gguf":
        if not path.is_file():
            raise DataError(f"{path}: expected a GGUF file; got no file of that name")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not (path / "config.json").exists():
        raise DataError(
            f"{path}: expected a checkpoint's folder (config.json, model.safetensors), a .gguf "
            "file or a LoRA adapter's folder; got none of them"
        )
    return {"pretrained_model_name_or_path": str(path)}


def load_tokenizer(path: Path) -> Any:
    """Return a checkpoint's tokenizer, or None where it has none."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if path.suffix != ".gguf" and not any((path / name).exists() for name in files):
        return None  # P's is used, or token ids
    where = {"pretrained_model_name_or_path": str(path)} if path.is_dir() else _where(path)
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(**where, local_files_only=True)
    except ImportError as error:
        raise _extra(str(path), _reason(error)) from None
    except Exception as error:
        raise DataError(f"{path}: its tokenizer cannot be loaded: {_reason(error)}") from error


def _load_adapter(path: Path, dtype: str, device: str, bases: _Bases) -> LanguageModel:
    """Put an adapter on its base; the base computes without it wherever it is asked itself."""
    try:
        import peft
    except ImportError:
        raise _extra(f"the adapter {path}", "peft") from None
    config = read_json(path / "adapter_config.json")
    named = Path(str(config.get("base_model_name_or_path", "")))
    if str(named.resolve()) not in bases.modules and len(bases.modules) == 1:
        named = Path(next(iter(bases.modules)))  # the base was moved since
    base = bases.get(named, dtype, device)
    key = str(named.resolve())
    name = f"{path.name}-{len(getattr(base, 'peft_config', {}))}".replace(".", "-")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of peft about transformers
            warnings.filterwarnings("error", message=".*missing adapter keys")
            if key in bases.adapted:
                bases.adapted[key].load_adapter(str(path), adapter_name=name)
            else:
                bases.adapted[key] = peft.PeftModel.from_pretrained(
                    base, str(path), adapter_name=name
                )
    except Exception as error:
        reason = f"{path}: peft cannot put it on {named}: {_reason(error)}"
        alone = ". Try: this adapter in a call of its own" if key in bases.adapted else ""
        raise DataError(reason + alone) from error
    model = bases.adapted[key]
    if model.peft_config[name].is_prompt_learning:  # it acts on inputs, not on weights
        kind = model.peft_config[name].peft_type.value
        raise DataError(f"{path}: expected an adapter of weights, such as LoRA; got {kind}")
    return _of_module(base, path, load_tokenizer(path), adapter=(model, name))


def _of_module(
    module: Any, path: Path, tokenizer: Any, adapter: tuple[Any, str] | None = None
) -> LanguageModel:
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module.base_model
    switched = _switch(module, adapter)

    def hidden(ids: Tensor) -> Tensor:
        with switched(), torch.inference_mode():
            found: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
        return found

    with switched(), torch.inference_mode():
        head, bias = _head_of(module, path)
    config = module.config.get_text_config()
    model = LanguageModel(
        name=path.stem if path.suffix == ".gguf" else path.name,
        hidden=hidden,
        head=head,
        bias=bias,
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=_scale_of(config),
        tokenizer=tokenizer,
        context=getattr(config, "max_position_embeddings", None),
        facts={
            "path": str(path),
            "architecture": type(module).__name__,
            "dtype": str(head.dtype).removeprefix("torch."),
            "weights_sha256": _weights_hash(path),
        },
    )
    with switched(), torch.inference_mode():
        _verify(model, module, path)
    return model


def _switch(module: Any, adapter: tuple[Any, str] | None) -> Callable[[], Any]:
    """Return a context in which the weights are those of this model, adapters of others off."""

    @contextmanager
    def context() -> Iterator[None]:
        if adapter is not None:
            adapter[0].set_adapter(adapter[1])
            yield
            return
        layers = [  # of peft: transformers' own models have methods of these names
            one
            for one in module.modules()
            if isinstance(getattr(one, "disable_adapters", None), bool)
        ]
        for layer in layers:
            layer.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(enabled=True)

    return context


def _head_of(module: Any, path: Path) -> tuple[Tensor, Tensor | None]:
    """Return the weights of the head as they act, an adapter's part of it added."""
    layer = module.get_output_embeddings()
    if layer is None:
        raise DataError(f"{path}: expected a model with a head over the vocabulary; got none")
    if hasattr(layer, "modules_to_save"):
        active = layer.active_adapters[0] if not layer.disable_adapters else None
        layer = layer.modules_to_save[active] if active else layer.original_module
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if hasattr(layer, "get_delta_weight") and not layer.disable_adapters:
        for name in layer.active_adapters:
            weight = weight + layer.get_delta_weight(name)
    return weight.detach(), None if bias is None else bias.detach()


def _scale_of(config: Any) -> float:
    multiplied = getattr(config, "logit_scale", None)
    divided = getattr(config, "logits_scaling", None)
    return float(multiplied or 1.0) / float(divided or 1.0)


def _verify(model: LanguageModel, module: Any, path: Path) -> None:
    """Compare the logits of head and hidden states with those that the checkpoint gives itself."""
    ids = torch.arange(limits.PROBE_TOKENS).remainder(model.vocab)[None].to(model.head.device)
    theirs = module(input_ids=ids, use_cache=False).logits[0].float()
    ours = model.logits(model.hidden(ids)[0])[..., : theirs.shape[-1]].float()
    if not bool(theirs.isfinite().all()):
        raise DataError(
            f"{path}: expected finite logits; some are NaN or infinite on the first tokens. Try: "
            "copy or download the checkpoint again, or another --dtype"
        )
    scale = theirs.abs().max().clamp(min=1.0)
    error = float((ours - theirs).abs().max() / scale)
    if not error <= limits.PROBE_ERROR * max(1.0, torch.finfo(model.head.dtype).eps / 1e-7):
        raise DataError(
            f"{path}: expected logits that are hidden @ head; {type(module).__name__} does more to "
            f"them (off by {error:.1g} of the largest). Try: kullback.lm.LanguageModel with a "
            "function of your own"
        )


def _weights_hash(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's weight files, by name and content."""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while block := content.read(1 << 24):
                digest.update(block)
    return digest.hexdigest() if files else ""


def vocabulary_hash(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary, tokens with their ids."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


# text in which two tokenizers differ
PROBE = "The quick brown fox, 1 + 1 = 2; naïve café: Ελλάδα 中文\n\tdef f(x):"


def check_same_tokens(p: Any, q: Any, probe: str = PROBE) -> None:
    """Require that P and Q cut text into the same tokens with the same ids.

    Args:
        p: Its tokenizer may be None: nothing to compare.
        q: Likewise.
        probe: Text that both tokenizers are given, besides their vocabularies.

    Raises:
        DataError: The first difference, with both sides of it.
    """
    if p.tokenizer is None or q.tokenizer is None:
        return
    names = f"{p.name} and {q.name}"
    if vocabulary_hash(p.tokenizer) != vocabulary_hash(q.tokenizer):
        raise DataError(f"{names}: expected one tokenizer; got {_first_difference(p, q)}")
    first, second = (one.tokenizer(probe)["input_ids"] for one in (p, q))
    if first != second:
        at = next(
            (i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
            min(len(first), len(second)),
        )
        got = " and ".join(repr(one[at : at + 1]) for one in (first, second))
        raise DataError(f"{names}: expected one tokenizer; got ids {got} for token {at} of a text")


def _first_difference(p: Any, q: Any) -> str:
    first, second = ({i: t for t, i in m.tokenizer.get_vocab().items()} for m in (p, q))
    for number in sorted(first.keys() | second.keys()):
        if first.get(number) != second.get(number):
            return f"{first.get(number)!r} and {second.get(number)!r} for id {number}"
    return "vocabularies of different order"
