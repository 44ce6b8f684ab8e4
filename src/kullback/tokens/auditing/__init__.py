"""The gradient audit: what a policy loss descends, by enumeration of worlds small enough for it.

- `run`: `audit` itself, and what one regime comes to;
- `worlds`: the tiny worlds; how a loss is called there, and its expected gradient;
- `matching`: divergences with their exact gradients, and which of them a field of gradients is;
- `findings`: the records an audit returns, and their words.
"""

from .findings import Audit, Finding, Likeness, Row, descent
from .run import audit

__all__ = ["Audit", "Finding", "Likeness", "Row", "audit", "descent"]
