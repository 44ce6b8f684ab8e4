"""The gradient audit: what a policy loss descends, by enumeration of worlds small enough for it.

Which to use: `kullback.tokens.audit`. Here: `worlds` are the tiny worlds, `calls` calls the loss
and takes its gradient, `targets` are the divergences with their exact gradients, `matching` and
`closed` say which of them a field of gradients is, `response` how hard one token is pushed,
`findings` what was found, `words` says it, and `run` puts them together.
"""

__all__: list[str] = []
