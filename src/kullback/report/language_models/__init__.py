"""Reports on language models.

- `drift_page`: drift of language models as text and as a page.
- `logprobs_page`: logged log-probabilities as text and as a page.
"""

from . import drift_page, logprobs_page

__all__ = ["drift_page", "logprobs_page"]
