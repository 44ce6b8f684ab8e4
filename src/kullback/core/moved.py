"""Names that are imported on first use (`lazy`); old names of modules and arguments.

`lazy` keeps `import kullback` cheap. `import kullback.tokens.policy` still works, with a warning
(`MOVED`), and so do old names of arguments (`renamed`). `install` puts one finder behind Python's
own. It knows the names in `MOVED` and nothing else, so no other import is touched. An old name
gives a module with the names of the new one and a `DeprecationWarning` that says where they are
now. What a package offers (`kullback.tokens.kl`) has not moved.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any, TypeVar

__all__ = ["MOVED", "install", "lazy", "renamed"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_NEW = {
    "cli.audit": "cli.user_code",
    "cli.checks": "cli.models",
    "cli.evaluate": "cli.train",
    "cli.fitting": "cli.fit",
    "cli.measure": "cli.divergences",
    "cli.model_commands": "cli.models",
    "cli.named_distributions": "measure.named_distributions",
    "core.checks": "core.errors",
    "core.numpy_files": "core.files",
    "cli.output": "cli.models",
    "cli.showing": "cli.divergences",
    "cli.user_files": "cli.user_code",
    "core.student": "core.estimate",
    "data.assemble": "data.loading.split",
    "data.binary": "data.dataset",
    "data.cache": "data.pictures.cache",
    "data.embedded": "data.loading.sources",
    "data.folder": "data.pictures.folder",
    "data.grid": "data.quantisation",
    "data.picture": "data.pictures.decoding",
    "data.resize": "data.pictures.resizing",
    "data.workers": "data.pictures.workers",
    "exact.excess": "exact.bregman",
    "exact.families.inverse_gaussian": "exact.families.continuous",
    "exact.families.mixture": "exact.families.gaussian",
    "exact.families.orders": "exact.families.renyi",
    "exact.families.triangular": "exact.families.pair",
    "exact.log_tables": "exact.table_sums",
    "exact.row_sums": "exact.table_sums",
    "measure.from_samples": "measure.quantities",
    "report.audit_charts": "report.audit_page",
    "report.audit_report": "report.audit_page",
    "report.audit_text": "report.audit_page",
    "report.charts": "report.training_runs.run_charts",
    "report.code_words": "report.explain_tables",
    "report.directions_plot": "report.fit_plot",
    "report.facts": "report.training_runs.run_page",
    "report.gallery": "report.training_runs.run_page",
    "report.guide": "report.training_runs.run_page",
    "report.latent": "report.training_runs.run_charts",
    "report.logprobs_page": "report.language_models.logprobs_page",
    "report.drift_page": "report.language_models.drift_page",
    "report.layout": "report.text_layout",
    "report.markup": "report.html",
    "report.origin": "report.training_runs.run_page",
    "report.page": "report.training_runs.run_page",
    "report.record": "report.training_runs.run_page",
    "report.profile": "report.divergence_plot",
    "report.repeats": "report.divergence_plot",
    "report.terminal": "report.evaluation_text",
    "report.words": "report.evaluation_text",
    "report.run_charts": "report.training_runs.run_charts",
    "report.run_page": "report.training_runs.run_page",
    "sampled.classifier": "sampled.two_sample",
    "sampled.densities": "sampled.distributions",
    "sampled.draw": "sampled.distributions",
    "sampled.draws": "sampled.summary_stats",
    "sampled.entrants": "sampled.summary_stats",
    "sampled.exact_or_sampled": "sampled.divergences",
    "sampled.forms": "sampled.estimators",
    "sampled.kl_from_distributions": "sampled.distributions",
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
    "tokens.parallel": "tokens.deprecated",
    "tokens.pointwise": "tokens.divergences.slices",
    "tokens.policy": "tokens.losses.policy",
    "tokens.policy_kl": "tokens.losses.policy_kl",
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
    "vae.checkpoint": "vae.state",
    "vae.by_hand": "vae.elbo_step",
    "vae.device": "vae.run",
    "vae.diagonal_gaussian": "vae.latents",
    "vae.events": "vae.likelihoods",
    "vae.fast.elbo_step": "vae.elbo_step",
    "vae.fast.flat": "vae.state",
    "vae.fast.fused": "vae.networks",
    "vae.fast.native_step": "vae.elbo_step",
    "vae.flat": "vae.state",
    "vae.fused": "vae.networks",
    "vae.kinds": "vae.architecture",
    "vae.logistics": "vae.likelihoods",
    "vae.monitor": "vae.loop",
    "vae.native_step": "vae.elbo_step",
    "vae.nonfinite": "vae.loop",
    "vae.standardise": "vae.model",
    "vae.priors": "vae.latents",
    "vae.store": "vae.state.checkpoint",
    "variational.adam": "variational.optimise.stochastic",
    "variational.anchored": "variational.optimise.stochastic",
    "variational.batch_and_match": "variational.optimise.batch_and_match",
    "variational.beyond": "variational.diagnostics.diagnose",
    "variational.bounds": "variational.diagnostics.verdict",
    "variational.by_quadrature": "variational.optimise.grid",
    "variational.constraints": "variational.target.parameters",
    "variational.cooled": "variational.optimise.stochastic",
    "variational.corrections": "variational.diagnostics.evidence",
    "variational.deterministic": "variational.optimise.deterministic",
    "variational.diagnosis": "variational.diagnostics.diagnose",
    "variational.diagnostics.error_bounds": "variational.diagnostics.verdict",
    "variational.diagnostics.moment_corrections": "variational.diagnostics.evidence",
    "variational.diagnostics.nested_laplace": "variational.diagnostics.defensive_sampling",
    "variational.diagnostics.reference_comparison": "variational.diagnostics.summary",
    "variational.engine": "variational.stages",
    "variational.families.distribution": "variational.families.family",
    "variational.families.factors": "variational.families.gaussians",
    "variational.families.full_rank": "variational.families.gaussians",
    "variational.families.low_rank": "variational.families.gaussians",
    "variational.families.mean_field": "variational.families.gaussians",
    "variational.families.mixture": "variational.families.gaussians",
    "variational.families.student_t": "variational.families.gaussians",
    "variational.forward": "variational.optimise.forward_kl",
    "variational.frame": "variational.families.family",
    "variational.gaussian": "vae.latents",
    "variational.lbfgs": "variational.optimise.deterministic",
    "variational.losses": "variational.objectives",
    "variational.noise": "variational.optimise.deterministic",
    "variational.optimise.annealing": "variational.optimise.stochastic",
    "variational.optimise.control_variate": "variational.optimise.stochastic",
    "variational.optimise.lbfgs": "variational.optimise.deterministic",
    "variational.optimise.losses": "variational.objectives",
    "variational.optimise.progress": "variational.optimise",
    "variational.parameters": "variational.target.parameters",
    "variational.pieces": "variational.target.batches",
    "variational.plan": "variational.stages",
    "variational.posterior": "variational.fit",
    "variational.probe": "variational.diagnostics.missed_modes",
    "variational.progress": "variational.optimise",
    "variational.reference": "variational.diagnostics.summary",
    "variational.rows": "variational.target.batches",
    "variational.start": "variational.optimise.starts",
    "variational.start_large": "variational.optimise.starts",
    "variational.stochastic": "variational.optimise.stochastic",
    "variational.summary": "variational.diagnostics.summary",
    "variational.target.batched_eval": "variational.target.batches",
    "variational.target.minibatch": "variational.target.batches",
    "variational.verdict": "variational.diagnostics.verdict",
    "variational.wide": "variational.diagnostics.defensive_sampling",
    "variational.window": "variational.optimise.stochastic",
}
MOVED: dict[str, str] = {f"kullback.{old}": f"kullback.{new}" for old, new in _NEW.items()}


class _Finder(MetaPathFinder, Loader):
    """Finds the modules in `MOVED` and their folders; loads a copy of the names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = any(old.startswith(f"{fullname}.") for old in MOVED)  # that is gone
        known = folder or fullname in MOVED
        return spec_from_loader(fullname, self, is_package=folder) if known else None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ not in MOVED:
            return
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


def lazy(
    package: str, names: dict[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose `names` live in other modules.

    Args:
        package: The dotted name of the package, for the message.
        names: Public name to the module that holds it; a module that is itself the public name
            maps to itself.

    Returns:
        The two functions; `__getattr__` raises AttributeError for any other name.

    Example:
        >>> get, _ = lazy("demo", {"sqrt": "math"})
        >>> get("sqrt")(9.0)
        3.0
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(names[name])
        return module if names[name] == f"{package}.{name}" else getattr(module, name)

    return get, lambda: sorted(names)


def renamed(**names: str) -> Callable[[_Function], _Function]:
    """Return a decorator by which a function still takes old names of its arguments, and warns.

    Args:
        names: New name to old one, as in `renamed(p="p_logits")`.

    Returns:
        A decorator. The function it returns raises `TypeError` where one argument is given by both
        names, and gives a `DeprecationWarning` where the old one is used.

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
            if not options:
                return function(*arguments)
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
