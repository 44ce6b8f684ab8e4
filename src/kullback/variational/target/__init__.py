"""The target p(z): a user's log density, vectorised, on an unconstrained space.

Which file answers which question:

- `density`: what is a `Target`, and from what can it be made?
- `functions`: what can a log density be given as? `vectorise`: how are many points evaluated?
- `density_checks`: is it a log density, is its gradient its own? `refusals`: which points have no
  value, and what of the others? `deadline`: when is the time over?
- `parameters`: names, shapes and constraints, with the Jacobian of each;
- `programs`: models of NumPyro, Pyro and PyMC, as they are; `angles`: their von Mises parameters;
  `stan`: programs of Stan; `pytensor_graphs`: PyMC's graphs for many points; `simulation`: new data
  of all of them;
- `batches`: rows of data in mini-batches, and many points a piece at a time.
"""

from .density import Target
from .parameters import Parameter

__all__ = ["Parameter", "Target"]
