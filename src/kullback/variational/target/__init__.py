"""The target p(z): a user's log density, vectorised, on an unconstrained space.

- `density`: `Target`, from what a user writes for one point;
- `parameters`: names, shapes and constraints, with the Jacobian of each;
- `programs`: models of NumPyro, Pyro and PyMC, as they are; `angles`: their von Mises parameters;
- `batches`: rows of data in mini-batches, and many points a piece at a time.
"""

from .density import Target
from .parameters import Parameter

__all__ = ["Parameter", "Target"]
