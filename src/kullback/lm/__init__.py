"""Language models: how far one has moved from another, and errors clustered by document.

Which file answers which question:

- `model_drift`: how far has Q moved from P on a corpus (`drift`, `store`, `Drift`).
  `documents`: text as token ids and windows; `models`: checkpoints, adapters, GGUF files as hidden
  states and a head; `token_table`: exact divergences token by token; `stored`: P kept in a folder,
  llama.cpp's file.
- `clusters`: means over tokens with errors clustered by document, paired differences, a gate.
- `limits`: the thresholds of this folder, with their sources.

Everything loads on first use.
"""

from typing import TYPE_CHECKING

from kullback.core.lazy import lazy

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
    from .documents import Document, Plan, Window, read_documents, windows
    from .model_drift import Drift, DriftFigures, Worst, drift, store
    from .models import LanguageModel, load_models
    from .stored import (
        ListedModel,
        StoredModel,
        read_kept,
        read_kld,
        read_store,
        stored_kind,
    )
    from .token_table import TokenTable, measure_positions, plan_windows

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
    "documents": ("Document", "Plan", "Window", "read_documents", "windows"),
    "model_drift": ("Drift", "DriftFigures", "Worst", "drift", "store"),
    "models": ("LanguageModel", "load_models"),
    "stored": (
        "ListedModel",
        "StoredModel",
        "read_kept",
        "read_kld",
        "read_store",
        "stored_kind",
    ),
    "token_table": ("TokenTable", "measure_positions", "plan_windows"),
}

__all__ = [
    "Clustered",
    "Clusters",
    "Document",
    "Drift",
    "DriftFigures",
    "Gate",
    "LanguageModel",
    "ListedModel",
    "Plan",
    "StoredModel",
    "TokenTable",
    "Window",
    "Worst",
    "block_length",
    "drift",
    "gate",
    "load_models",
    "measure_positions",
    "plan_windows",
    "ratio_difference",
    "ratio_mean",
    "read_documents",
    "read_kept",
    "read_kld",
    "read_store",
    "store",
    "stored_kind",
    "windows",
]

__getattr__, __dir__ = lazy(
    "kullback.lm",
    {name: f"kullback.lm.{file}" for file, names in _HOLDS.items() for name in names},
)
