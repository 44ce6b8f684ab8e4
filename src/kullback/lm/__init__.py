"""Language models: logged log-probabilities, and errors clustered by document.

Which file answers which question:

- `logprob_report`: KL from tables of logged log-probabilities, checked first (`logprobs`).
  `logprob_tables`: which files and columns; `service_formats`: answers of OpenAI, vLLM, SGLang,
  lm-eval; `logprob_checks`: are they log-probabilities of these draws? `logprob_sums`: one pass
  over the tokens, by `engines`; `logprob_estimates`: k1, k2, k3, best λ from its sums.
- `clusters`: means over tokens with errors clustered by document, paired differences, a gate.
- `limits`: the thresholds of this folder, with their sources.

Everything loads on first use.
"""

from typing import TYPE_CHECKING

from kullback.core import lazy

if TYPE_CHECKING:
    from .clusters import (
        Clustered,
        Clusters,
        Gate,
        block_length,
        gate,
        ratio_difference,
        ratio_mean,
    )
    from .logprob_checks import Check
    from .logprob_estimates import Figures
    from .logprob_report import LogProbReport, check_logprobs, logprobs

__all__ = [
    "Check",
    "Clustered",
    "Clusters",
    "Figures",
    "Gate",
    "LogProbReport",
    "block_length",
    "check_logprobs",
    "gate",
    "logprobs",
    "ratio_difference",
    "ratio_mean",
]

_HOLDS = {
    "clusters": (
        "Clustered",
        "Clusters",
        "Gate",
        "block_length",
        "gate",
        "ratio_difference",
        "ratio_mean",
    ),
    "logprob_checks": ("Check",),
    "logprob_estimates": ("Figures",),
    "logprob_report": ("LogProbReport", "check_logprobs", "logprobs"),
}

__getattr__, __dir__ = lazy(
    "kullback.lm",
    {name: f"kullback.lm.{file}" for file, names in _HOLDS.items() for name in names},
)
