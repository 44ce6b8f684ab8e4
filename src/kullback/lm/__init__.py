"""Language models: how far one has moved from another, logged log-probabilities, clustered errors.

Which file answers which question:

- `model_drift`: how far has Q moved from P on a corpus (`drift`, `store`, `Drift`).
  `documents`: text as token ids and windows; `models`: checkpoints, adapters, GGUF files as hidden
  states and a head; `token_table`: exact divergences token by token; `stored`: P kept in a folder,
  llama.cpp's file, vLLM's and SGLang's lists.
- `logprob_report`: KL from tables of logged log-probabilities, checked first (`logprobs`).
  `logprob_tables`: which files and columns; `service_formats`: answers of OpenAI, vLLM, SGLang,
  lm-eval; `logprob_checks`: are they log-probabilities of these draws? `logprob_sums`: one pass
  over the tokens, by `engines`; `logprob_estimates`: k1, k2, k3, best λ from its sums.
- `trl`: the policy's KL in TRL's `GRPOTrainer`, by its public methods (`PolicyKLMixin`).
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
    from .documents import (
        Document,
        Plan,
        Window,
        read_documents,
        windows,
    )
    from .logprob_checks import (
        Check,
    )
    from .logprob_estimates import (
        Figures,
    )
    from .logprob_report import (
        LogProbReport,
        check_logprobs,
        logprobs,
    )
    from .model_drift import (
        Drift,
        DriftFigures,
        Worst,
        drift,
        store,
    )
    from .models import (
        LanguageModel,
        load_models,
    )
    from .stored import (
        ListedModel,
        StoredModel,
        read_answers,
        read_kept,
        read_kld,
        read_store,
        stored_kind,
    )
    from .token_table import (
        TokenTable,
        measure_positions,
        plan_windows,
    )

__all__ = [
    "Check",
    "Clustered",
    "Clusters",
    "Document",
    "Drift",
    "DriftFigures",
    "Figures",
    "Gate",
    "LanguageModel",
    "ListedModel",
    "LogProbReport",
    "Plan",
    "StoredModel",
    "TokenTable",
    "Window",
    "Worst",
    "block_length",
    "check_logprobs",
    "drift",
    "gate",
    "load_models",
    "logprobs",
    "measure_positions",
    "plan_windows",
    "ratio_difference",
    "ratio_mean",
    "read_answers",
    "read_documents",
    "read_kept",
    "read_kld",
    "read_store",
    "store",
    "stored_kind",
    "windows",
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
    "documents": (
        "Document",
        "Plan",
        "Window",
        "read_documents",
        "windows",
    ),
    "logprob_checks": ("Check",),
    "logprob_estimates": ("Figures",),
    "logprob_report": (
        "LogProbReport",
        "check_logprobs",
        "logprobs",
    ),
    "model_drift": (
        "Drift",
        "DriftFigures",
        "Worst",
        "drift",
        "store",
    ),
    "models": (
        "LanguageModel",
        "load_models",
    ),
    "stored": (
        "ListedModel",
        "StoredModel",
        "read_answers",
        "read_kept",
        "read_kld",
        "read_store",
        "stored_kind",
    ),
    "token_table": (
        "TokenTable",
        "measure_positions",
        "plan_windows",
    ),
}

__getattr__, __dir__ = lazy(
    "kullback.lm",
    {name: f"kullback.lm.{file}" for file, names in _HOLDS.items() for name in names},
)
