"""The training step by hand: the same numbers as autograd, in fewer passes over memory.

- `fused`: hand-written gradients of the hot pieces; `flat`: all parameters as one vector;
- `elbo_step`: the step of a perceptron on bits; `native_step`: its passes in C (`step.c`).
"""

__all__: list[str] = []
