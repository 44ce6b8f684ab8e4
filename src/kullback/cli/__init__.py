"""Layer 6, cli: the `kullback` command; parsing and printing only.

- `main`: the list of verbs with their examples, `--config` files, exit codes;
- `options`: the flags of every verb; `session`: output, progress, `-q` and `-v`;
- `divergences`: `entropy`, `cross-entropy`, `js`, `kl`; `reading`: what P and Q can be;
- `fit`: `fit`; `user_code`: `audit`, and the user's own Python files;
- `train`: `train`, `evaluate`; `models`: `sample`, `reconstruct`, `encode`, `report`, `checks`;
- `limits`: every threshold with its source.
"""

__all__: list[str] = []
