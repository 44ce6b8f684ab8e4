"""The stages of a fit: what is chosen, a first fit, and what follows where it falls short.

Which file answers which question, in the order of a fit:

- `order`: which stages are there, and when does each run? Begin to read here.
- `plan`: which family, method and numbers of draws, where they were left open?
- `first_fit`: how is q fitted from a start? Fixed draws, a mixture where one Gaussian falls short,
  Adam.
- `hard_edges`: what if log p is −inf beyond an edge?
- `missed_mass`: where has p mass that q has not? Other peaks, a flow.
- `moments`: are q's moments those of p? A mixture matched to them, a move, a Hamiltonian run.
- `to_draws`: how is q fitted to draws of p, weighted ones or those of a Hamiltonian run?
- `weighted_draws`: the draws with importance weights by which the last three are decided.

The optimisers themselves are in `optimise/`.
"""

from .order import Work, forwards, reverse
from .plan import Direction, Make, Plan, Problem, Settings, maker, plan

__all__ = [
    "Direction",
    "Make",
    "Plan",
    "Problem",
    "Settings",
    "Work",
    "forwards",
    "maker",
    "plan",
    "reverse",
]
