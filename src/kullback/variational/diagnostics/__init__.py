"""How far a fit may be trusted.

Which file answers which question:

- `evidence`: what is known about a fit? One record, with two corrections of the moments.
- `diagnose`: how is it gathered, and what does a `Diagnosis` hold?
- `missed_modes`: does p have peaks that q has not? `defensive_sampling`: does p have mass where
  samples of q do not reach, in its tails or along a funnel (nested Laplace approximations)?
- `joint_searches`: how do several searches share their evaluations of log p?
- `propriety`: is the target improper? `collapsing_scales`: is it where a scale goes to 0, for
  effects of any law? `verdict`: bounds on errors, the level and the sentence.
- `summary`: the table for a person, resampling, ArviZ, a comparison with reference draws.
"""

__all__: list[str] = []
