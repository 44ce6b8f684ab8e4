"""How far a fit may be trusted.

- `evidence`: all that is known about a fit, one record; `diagnose`: how it is gathered;
- `missed_modes`, `defensive_sampling`, `nested_laplace`: where samples of q do not reach;
- `moment_corrections`, `error_bounds`: how far means and standard deviations may be off;
- `propriety`: whether the target has a finite mass; `verdict`: the level and the sentence;
- `summary`: the table for a person; `reference_comparison`: a fit beside samples of the truth.
"""

__all__: list[str] = []
