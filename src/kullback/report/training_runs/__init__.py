"""Reports on one training run.

- `run_page`: the page of a run; `run_record`: what its directory holds; `run_charts` and
  `run_pictures`: what the page shows; `run_settings`: data, settings and the command.
- `model_card`: a run as a folder to publish, with ONNX graphs and a model card.
"""

from . import model_card, run_charts, run_page

__all__ = ["model_card", "run_charts", "run_page"]
