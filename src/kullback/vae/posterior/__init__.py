"""How far the approximate posterior q(z|x) is from the posterior p(z|x), measured.

- `annealing`: bounds on log p(x) from both sides, by annealed importance sampling.
"""

from .annealing import Annealed, Annealing, anneal

__all__ = ["Annealed", "Annealing", "anneal"]
