"""Our policy KL in TRL's `GRPOTrainer`: a mixin over its public methods.

Which to use: `PolicyKLMixin` before the trainer, `class Trainer(PolicyKLMixin, GRPOTrainer)`. TRL
keeps sampling, rewards, advantages, and its reference model; `beta` times the KL of the policy from
its reference descends the divergence that is named, on-policy or off, whatever the micro-batches.

It overrides `compute_loss` and `log`, which a trainer's subclass may, and reads the
log-probabilities of the policy's own forward pass by PyTorch's forward hook. `kl` in the log is
KL(policy‖reference) a token by k3, over all sequences since the last entry; `kl/low` and `kl/high`
are its 95 % interval with errors clustered by prompt, and from ten prompts on there is
`kl/standard_error`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback import tokens
from kullback.core import Estimate, require

from . import limits
from .clusters import Clusters, ratio_mean

__all__ = ["PolicyKLMixin"]


@dataclass(slots=True)
class _Logged:
    """Sums of terms, counts of tokens and squares by prompt, since the last entry of the log."""

    sums: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    squares: float = 0.0
    doubts: dict[str, None] = field(default_factory=dict)

    def add(self, found: tokens.PolicyKL, mask: Tensor, prompts: list[str]) -> None:
        terms = found.terms.double()
        for name, total, size in zip(
            prompts, terms.sum(1).tolist(), mask.sum(1).tolist(), strict=True
        ):
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.sizes[name] = self.sizes.get(name, 0.0) + size
        self.squares += float(terms.square().sum())
        if why := found.mismatch():
            self.doubts[why] = None

    def estimate(self, processes: int) -> Estimate | None:
        """Return the mean a token, of all processes; None where nothing was scored."""
        parts: list[Any] = [self] * processes
        if processes > 1:
            torch.distributed.all_gather_object(parts, self)
        whole = _Logged()
        for part in parts:
            for name, size in part.sizes.items():
                whole.sums[name] = whole.sums.get(name, 0.0) + part.sums[name]
                whole.sizes[name] = whole.sizes.get(name, 0.0) + size
            whole.squares += part.squares
            whole.doubts |= part.doubts
        names = [name for name, size in whole.sizes.items() if size > 0]
        if not names:
            return None
        sums, sizes = (
            np.array([held[name] for name in names]) for held in (whole.sums, whole.sizes)
        )
        found = ratio_mean(sums, Clusters(sizes, "prompts"), squares=whole.squares).estimate
        for why in whole.doubts:
            found = found.without_error(why)
        return found


class PolicyKLMixin:
    """GRPO whose KL term, times the trainer's `beta`, descends KL(policy‖reference) (MATH 5.4).

    Args:
        *args: The trainer's.
        reference: A model whose KL is measured where the trainer has no reference of its own
            (`beta=0`): the logs then have `kl` too, and the loss is the trainer's. None: at
            `beta=0` nothing is added, neither to the loss nor to the logs.
        **kwargs: The trainer's.

    Attributes:
        policy_kl: The last micro-batch's `PolicyKL`; None before the first, or without a reference.
        kl_estimate: The `Estimate` that was logged last; its `no_error` says why it has no error.

    Under gradient accumulation every micro-batch's sum over tokens is divided by the tokens of the
    whole accumulation window, so that the gradient is that of one large batch. A micro-batch's own
    mean is not: on unequal sequences it is 34 % ("sequence") to 44 % ("token") off.

    Example:
        >>> from kullback.lm.trl import PolicyKLMixin
        >>> class Trainer(PolicyKLMixin):  # and trl.GRPOTrainer
        ...     pass
        >>> [name for name in ("compute_loss", "log") if name in vars(PolicyKLMixin)]
        ['compute_loss', 'log']
    """

    beta: float
    accelerator: Any
    model: Any
    args: Any
    policy_kl: tokens.PolicyKL | None = None
    kl_estimate: Estimate | None = None

    def __init__(self, *args: Any, reference: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference = None if reference is None else reference.eval()
        self.logged = {"train": _Logged(), "eval": _Logged()}

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - the trainer's
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the trainer's loss without its own KL term, and `beta` times ours.

        Args:
            model: The policy.
            inputs: A micro-batch of the trainer.
            return_outputs: As the trainer's.
            num_items_in_batch: Likewise.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: A model that returns neither log-probabilities nor logits; accumulation
                without the number of tokens of the whole window.
        """
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda _model, _args, found: outputs.append(found))
        beta, self.beta = self.beta, 0.0
        try:
            trainer: Any = super()
            loss = trainer.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            hook.remove()
            self.beta = beta
        reference = self._reference_log_probs(inputs)
        if reference is None:
            return loss
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        kept = mask.bool()
        current = self._log_probs(outputs[-1] if outputs else None, inputs)
        found = tokens.policy_kl_loss(
            log_current=current,
            log_reference=reference,
            log_behaviour=_behaviour(inputs, current.detach()),
            mask=kept,
            normalise="batch",
        )
        self.policy_kl = found
        self.logged[self._mode].add(found, kept, _prompts(inputs))
        return loss + beta * found.loss / self._tokens(inputs, kept) if beta else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `kl`, its 95 % interval and its standard error, where there are such, to a log entry.

        Args:
            logs: The entry; it is changed.
            start_time: As the trainer's.
        """
        mode = self._mode
        found = self.logged[mode].estimate(self.accelerator.num_processes)
        self.logged[mode] = _Logged()
        if found is not None:
            start = "eval_" if mode == "eval" else ""
            self.kl_estimate = found
            logs[f"{start}kl"] = float(found.value)
            if not found.no_error:
                logs[f"{start}kl/low"], logs[f"{start}kl/high"] = map(float, found.interval())
            if not found.no_error and found.draws >= limits.MIN_CLUSTERS:
                logs[f"{start}kl/standard_error"] = float(found.standard_error)
        trainer: Any = super()
        trainer.log(logs, start_time)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log_probs(self, output: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return log-probabilities of the completion, `[batch, length]`, from a model's output."""
        ids = inputs["completion_ids"]
        given = getattr(output, "log_probs", None)
        if given is not None:
            return torch.as_tensor(given[:, -ids.shape[1] :])
        logits = getattr(output, "logits", None)
        require(logits is not None, "model", "an output with log_probs or logits", type(output))
        part = torch.as_tensor(logits)[:, -ids.shape[1] - 1 : -1]
        return tokens.log_prob(part, ids, temperature=getattr(self, "temperature", 1.0))

    def _reference_log_probs(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the reference's log-probabilities: the trainer's, else our reference model's."""
        given: Tensor | None = inputs.get("ref_per_token_logps")
        if given is not None or self.reference is None:
            return given
        ids, mask = (
            torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1)
            for name in ("ids", "mask")
        )
        with torch.no_grad():
            return self._log_probs(self.reference(input_ids=ids, attention_mask=mask), inputs)

    def _tokens(self, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        """Return how many tokens the accumulation window has a process, which divide a sum."""
        steps = getattr(self, "current_gradient_accumulation_steps", 1)
        steps = steps if self._mode == "train" else 1
        held = inputs.get("num_items_in_batch")
        if held is None or self._mode == "eval":
            words = "the tokens of the whole window where gradients are accumulated"
            require(steps == 1, "num_items_in_batch", words, "none")
            return mask.sum().clamp(min=1)
        share = steps / self.args.steps_per_generation  # the count is of what was generated at once
        count = torch.as_tensor(held).clamp(min=1.0) * share
        return torch.as_tensor(count / self.accelerator.num_processes)


def _behaviour(inputs: Mapping[str, Any], current: Tensor) -> Tensor | None:
    """Return log-probabilities of the policy that drew the tokens; None: the current one.

    Where the sampler could not score a token (NaN), the trainer's own from before the update stands
    for it, and if there is none the current one, as in the trainer's weights.
    """
    sampled, old = (inputs.get(f"{name}_per_token_logps") for name in ("sampling", "old"))
    if sampled is None:
        return old
    known: Tensor = torch.where(sampled.isnan(), current if old is None else old, sampled)
    return known


def _prompts(inputs: Mapping[str, Any]) -> list[str]:
    """Return a name for the prompt of every sequence: its token ids."""
    pairs = zip(inputs["prompt_ids"].tolist(), inputs["prompt_mask"].tolist(), strict=True)
    return [
        str([token for token, kept in zip(ids, mask, strict=True) if kept]) for ids, mask in pairs
    ]
