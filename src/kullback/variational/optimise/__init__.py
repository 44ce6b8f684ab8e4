"""How q is brought to p: where a fit starts, and the optimisers.

- `starts`: where a fit begins; `deterministic`: L-BFGS on fixed samples (`lbfgs`);
- `stochastic`: gradient steps; `annealing`: steps that shrink to nothing, in rounds;
- `batch_and_match`: scores matched in closed form; `forward_kl`: KL(p‖q); `grid`: both directions
  by quadrature in one or two dimensions;
- `losses`: objective, target and family put together; `control_variate`: mini-batches with less
  noise; `progress`: what is shown meanwhile.
"""

__all__: list[str] = []
