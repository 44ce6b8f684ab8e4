"""A trained model as a folder to publish: weights, ONNX graphs, and a model card.

`model_card`: `export`, which writes the folder; `onnx_graphs`: encoder and decoder as ONNX graphs,
compared with PyTorch. Everything loads on first use.
"""

from typing import TYPE_CHECKING

from kullback.core import lazy

if TYPE_CHECKING:
    from .model_card import export
    from .onnx_graphs import Parity, require_exportable, write_graphs

__all__ = ["Parity", "export", "require_exportable", "write_graphs"]

_HOME = {
    "Parity": "onnx_graphs",
    "export": "model_card",
    "require_exportable": "onnx_graphs",
    "write_graphs": "onnx_graphs",
}
__getattr__, __dir__ = lazy(
    "kullback.publishing", {name: f"kullback.publishing.{home}" for name, home in _HOME.items()}
)
