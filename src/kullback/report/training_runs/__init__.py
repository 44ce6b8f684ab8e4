"""Reports on one training run.

- `run_page`: what a run directory holds, and its page; `run_charts`: the page's charts.
- `model_card`: a run as a folder to publish, with ONNX graphs and a model card.
"""

from . import model_card, run_charts, run_page

__all__ = ["model_card", "run_charts", "run_page"]
