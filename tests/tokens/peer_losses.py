"""What other libraries put into their losses, in our own words, for the audit to name.

Each takes the names that the audit understands. Versions and places are in the docstrings.
"""

import math

import torch
from torch import Tensor


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    return 0.5 * (logp - ref_logp) ** 2


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    away = ref_logp - logp
    return away.exp() - 1 - away


def weighted(term, *, detached: bool):
    """The same term times π/μ of each token, with the ratio held fixed or not."""

    def loss(logp: Tensor, ref_logp: Tensor, old_logp: Tensor) -> Tensor:
        ratio = (logp - old_logp).exp()
        return (ratio.detach() if detached else ratio) * term(logp, ref_logp)

    return loss


def score_times(term, *, detached: bool):
    """log π times the term: a reward written as a loss; undetached the term is pushed as well."""

    def loss(logp: Tensor, ref_logp: Tensor) -> Tensor:
        found = term(logp, ref_logp)
        return logp * (found.detach() if detached else found)

    return loss


def straight_through(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """verl's `k3+`: the value of k3, the gradient of k2."""
    square = k2(logp, ref_logp)
    return square + (k3(logp, ref_logp) - square).detach()


def grpo_term(*, corrected: bool, beta: float = 0.04):
    """TRL's GRPO with `use_bias_correction_kl` on or off, all advantages 0: a mean over tokens."""

    def loss(logp: Tensor, ref_logp: Tensor, old_logp: Tensor, completion_mask: Tensor) -> Tensor:
        divergence = (ref_logp - logp).exp() + (logp - ref_logp) - 1.0
        if corrected:
            divergence = divergence * (logp - old_logp).exp()
        kept = beta * divergence * completion_mask
        return (kept.sum(1) / completion_mask.sum(1)).mean()

    return loss


def verl_low_var_kl(log_prob: Tensor, ref_log_prob: Tensor, response_mask: Tensor) -> Tensor:
    """verl's default KL loss: k3 with the log ratio kept within 20 and the value within 10."""
    away = torch.clamp(ref_log_prob - log_prob, min=-20.0, max=20.0)
    kept = torch.clamp(torch.expm1(away) - away, min=-10.0, max=10.0)
    return (kept * response_mask).sum() / response_mask.sum()


def openrlhf(kind: str):
    """OpenRLHF's k1, k2 and k3: in float32, each kept within 10."""

    def penalty(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        ratio = log_probs.float() - ref_log_probs.float()
        found = {
            "k1": lambda: ratio,
            "k2": lambda: ratio.square() / 2,
            "k3": lambda: torch.expm1(-ratio) + ratio,
        }[kind]()
        return found.clamp(-10.0, 10.0)

    return penalty


def gkd(beta: float):
    """Generalised JSD of Agarwal et al. 2024 (eq. 1): β = 0 forward KL, β = 1 reverse KL."""

    def loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
        student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        if beta == 0:
            each = teacher.exp() * (teacher - student)
        elif beta == 1:
            each = student.exp() * (student - teacher)
        else:
            weights = student + math.log(1 - beta), teacher + math.log(beta)
            middle = torch.logaddexp(*weights)
            each = beta * teacher.exp() * (teacher - middle)
            each = each + (1 - beta) * student.exp() * (student - middle)
        return (each.sum(-1) * mask).sum() / mask.sum()

    return loss


def minillm(*, normalised: bool):
    """MiniLLM (Gu et al. 2024, eq. 4): the next token's KL as a sum, what follows as a reward.

    normalised: divide what follows by how many tokens it is.
    """

    def loss(logits: Tensor, ref_logits: Tensor, logp: Tensor, ref_logp: Tensor) -> Tensor:
        here = logits.log_softmax(-1)
        single = (here.exp() * (here - ref_logits.log_softmax(-1))).sum(-1)
        rest = (logp - ref_logp).detach()
        later = rest.flip(-1).cumsum(-1).flip(-1) - rest
        if normalised:
            steps = torch.arange(rest.shape[-1] - 1, -1, -1, dtype=rest.dtype)
            later = later / steps.clamp_min(1.0)
        return (single + later * logp).sum(-1).mean()

    return loss
