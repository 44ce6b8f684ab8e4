"""Old names that still work, with a warning: of moved modules, and of arguments (`renamed`).

`install` puts one finder behind Python's own. It knows the names in `MOVED` and nothing else, so no
other import is touched. An old name gives a module with the names of the new one and a
`DeprecationWarning` that says where they are now. What a package offers (`kullback.tokens.kl`) has
not moved.
"""

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

__all__ = ["MOVED", "install", "renamed"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_NEW = {
    "cli.named_distributions": "measure.named_distributions",
    "core.student": "core.estimate",
    "data.assemble": "data.loading",
    "data.folder": "data.pictures",
    "data.picture": "data.pictures",
    "data.resize": "data.pictures",
    "exact.excess": "exact.bregman",
    "exact.families.inverse_gaussian": "exact.families.continuous",
    "exact.families.mixture": "exact.families.gaussian",
    "exact.families.orders": "exact.families.renyi",
    "exact.families.triangular": "exact.families.pair",
    "exact.log_tables": "exact.table_sums",
    "exact.row_sums": "exact.table_sums",
    "report.audit_charts": "report.audit_report",
    "report.audit_page": "report.audit_report",
    "report.audit_text": "report.audit_report",
    "report.code_words": "report.explain_tables",
    "report.directions_plot": "report.fit_plot",
    "report.facts": "report.run_page",
    "report.gallery": "report.run_page",
    "report.guide": "report.run_page",
    "report.layout": "report.text_layout",
    "report.markup": "report.charts",
    "report.origin": "report.run_page",
    "report.page": "report.run_page",
    "report.profile": "report.divergence_plot",
    "report.repeats": "report.divergence_plot",
    "report.terminal": "report.evaluation_text",
    "report.words": "report.evaluation_text",
    "sampled.classifier": "sampled.two_sample",
    "sampled.densities": "sampled.distributions",
    "sampled.draw": "sampled.kl_from_distributions",
    "sampled.draw_from": "sampled.distributions",
    "sampled.draws": "sampled.summary_stats",
    "sampled.entrants": "sampled.summary_stats",
    "sampled.exact_or_sampled": "sampled.divergences",
    "sampled.forms": "sampled.estimators",
    "sampled.log_weights": "sampled.importance_weights",
    "sampled.moments": "sampled.estimators",
    "sampled.neighbours": "sampled.nearest_neighbours",
    "sampled.pareto": "sampled.tails",
    "sampled.parts": "sampled.control_variates",
    "sampled.seen": "sampled.summary_stats",
    "sampled.terms": "sampled.estimators",
    "sampled.trust": "sampled.error_bars",
    "tokens.algebra": "tokens.backends.interface",
    "tokens.allowed": "tokens.divergences.top_k",
    "tokens.arguments": "tokens.divergences.logits",
    "tokens.auditing.calls": "tokens.auditing.worlds",
    "tokens.auditing.closed": "tokens.auditing.worlds",
    "tokens.auditing.looking": "tokens.auditing.run",
    "tokens.auditing.response": "tokens.auditing.worlds",
    "tokens.auditing.targets": "tokens.auditing.matching",
    "tokens.auditing.words": "tokens.auditing.findings",
    "tokens.blocks": "tokens.divergences.hidden_states",
    "tokens.chunked": "tokens.backends.chunked",
    "tokens.distill": "tokens.losses.distillation",
    "tokens.distill_hidden": "tokens.deprecated",
    "tokens.divergences.pointwise": "tokens.divergences.slices",
    "tokens.drawn": "tokens.losses.sampled_tokens",
    "tokens.heads": "tokens.divergences.hidden_states",
    "tokens.hidden": "tokens.deprecated",
    "tokens.losses.rewards": "tokens.losses.policy",
    "tokens.measure": "tokens.divergences.logits",
    "tokens.native": "tokens.backends.native",
    "tokens.native_policy": "tokens.losses.native_policy",
    "tokens.normalising": "tokens.losses.sequence_sums",
    "tokens.over_sequences": "tokens.losses.sequence_sums",
    "tokens.pointwise": "tokens.divergences.slices",
    "tokens.policy": "tokens.losses.policy",
    "tokens.policy_kl": "tokens.losses.policy_kl",
    "tokens.parallel": "tokens.deprecated",
    "tokens.precision": "tokens.divergences.rounding",
    "tokens.reference": "tokens.backends.reference",
    "tokens.rewards": "tokens.losses.policy",
    "tokens.shards": "tokens.divergences.sharded",
    "tokens.slices": "tokens.divergences.slices",
    "tokens.slopes": "tokens.losses.sampled_tokens",
    "tokens.task": "tokens.backends.interface",
    "tokens.triton_backend": "tokens.backends.triton_backend",
    "tokens.triton_kernels": "tokens.backends.triton_kernels",
    "tokens.triton_slopes": "tokens.backends.triton_kernels",
    "tokens.truncated": "tokens.divergences.top_k",
    "vae.bounds": "vae.evidence",
    "vae.by_hand": "vae.fast.elbo_step",
    "vae.flat": "vae.fast.flat",
    "vae.fused": "vae.fast.fused",
    "vae.kinds": "vae.architecture",
    "vae.logistics": "vae.likelihoods",
    "vae.native_step": "vae.fast.native_step",
    "vae.nonfinite": "vae.loop",
    "variational.adam": "variational.optimise.stochastic",
    "variational.anchored": "variational.optimise.control_variate",
    "variational.batch_and_match": "variational.optimise.batch_and_match",
    "variational.beyond": "variational.diagnostics.diagnose",
    "variational.bounds": "variational.diagnostics.error_bounds",
    "variational.by_quadrature": "variational.optimise.grid",
    "variational.constraints": "variational.target.parameters",
    "variational.cooled": "variational.optimise.annealing",
    "variational.corrections": "variational.diagnostics.moment_corrections",
    "variational.deterministic": "variational.optimise.deterministic",
    "variational.diagnosis": "variational.diagnostics.diagnose",
    "variational.families.factors": "variational.families.gaussians",
    "variational.families.full_rank": "variational.families.gaussians",
    "variational.families.low_rank": "variational.families.gaussians",
    "variational.families.mean_field": "variational.families.gaussians",
    "variational.forward": "variational.optimise.forward_kl",
    "variational.frame": "variational.families.family",
    "variational.gaussian": "vae.diagonal_gaussian",
    "variational.lbfgs": "variational.optimise.lbfgs",
    "variational.losses": "variational.optimise.losses",
    "variational.noise": "variational.optimise.starts",
    "variational.parameters": "variational.target.parameters",
    "variational.pieces": "variational.target.batched_eval",
    "variational.probe": "variational.diagnostics.missed_modes",
    "variational.progress": "variational.optimise.progress",
    "variational.reference": "variational.diagnostics.reference_comparison",
    "variational.rows": "variational.target.minibatch",
    "variational.start": "variational.optimise.starts",
    "variational.start_large": "variational.optimise.starts",
    "variational.stochastic": "variational.optimise.stochastic",
    "variational.summary": "variational.diagnostics.summary",
    "variational.verdict": "variational.diagnostics.verdict",
    "variational.wide": "variational.diagnostics.defensive_sampling",
    "variational.window": "variational.optimise.stochastic",
}
MOVED: dict[str, str] = {f"kullback.{old}": f"kullback.{new}" for old, new in _NEW.items()}


class _Finder(MetaPathFinder, Loader):
    """Finds the modules in `MOVED`, and loads each as a copy of the names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        words = f"{module.__name__} has moved: import from {new}, or from the package above it"
        warnings.warn(words, DeprecationWarning, stacklevel=2)
        names = vars(importlib.import_module(new))
        vars(module).update({key: names[key] for key in names if not key.startswith("__")})


def install() -> None:
    """Make the old names importable; once, and behind every other finder.

    Example:
        >>> install()
        >>> sum(isinstance(finder, _Finder) for finder in sys.meta_path)
        1
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def renamed(**names: str) -> Callable[[_Function], _Function]:
    """Return a decorator by which a function still takes old names of its arguments, and warns.

    Args:
        names: New name to old one, as in `renamed(p="p_logits")`.

    Example:
        >>> import pytest
        >>> @renamed(p="p_logits")
        ... def first(p):
        ...     return p[0]
        >>> with pytest.warns(DeprecationWarning, match="first: p_logits is now p"):
        ...     first(p_logits=[1.0, 2.0])
        1.0
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def called(*arguments: Any, **options: Any) -> Any:
            found = {new: old for new, old in names.items() if old in options}
            for new, old in found.items():
                if new in options:
                    raise TypeError(f"{function.__name__}: {new} was given, and {old} too")
                options[new] = options.pop(old)
            if found:
                words = ", ".join(f"{old} is now {new}" for new, old in found.items())
                text = f"{function.__name__}: {words}"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function(*arguments, **options)

        return called  # type: ignore[return-value]

    return decorate
