"""What `kullback fit` does once its arguments are read: fit, judge, print, draw, keep."""

from typing import Any

import torch

from kullback.core import RunError, write_atomic
from kullback.exact import quadrature
from kullback.report.directions_plot import plot_directions
from kullback.report.fit_plot import plot_fit
from kullback.variational.archive import save
from kullback.variational.by_quadrature import Projection, find_box, project
from kullback.variational.fit import Fit
from kullback.variational.fit import fit as fit_density
from kullback.variational.reference import compare
from kullback.variational.summary import assess, resample, summarise
from kullback.variational.target import Target

from .fit_options import FitOptions
from .reference_file import read_reference
from .session import print_json, say
from .streams import write
from .target_file import TargetFile
from .user_code import user_code

__all__ = ["fit_both", "fit_one"]

NODES = {1: 600, 2: 150}


def fit_one(file: TargetFile, options: FitOptions) -> None:
    """Fit in one direction; print the verdict and the table, or JSON; draw and keep if asked.

    Errors: `RunError` for an improper target, of which there is nothing to print.
    """
    with user_code(file.path):
        target = _target(file)
        reference = None if options.reference is None else read_reference(options.reference, target)
        generator = torch.Generator().manual_seed(options.seed)
        found = fit_density(
            target,
            family=options.family,
            direction="forward" if options.direction == "forward" else "reverse",
            evaluation_draws=options.draws,
            generator=generator,
        )
        if found.improper:
            raise RunError(f"{file.name}: {found.reason}")
        bad = target.explain(found.draws)
        if bad:
            say(f"warning: {bad}")
        judged = assess(found, generator=generator)
        table = summarise(found, judged)
        draws = target.constrain(found.draws)
        if options.resample:
            draws = resample(found, options.draws, judged, generator=generator)
        against = None if reference is None else compare(target, draws, reference)
    if options.plot is not None:
        svg = plot_fit(draws, reference=reference, trace=found.trace, title=judged.verdict)
        write_atomic(options.plot, svg)
    if options.out is not None:
        save(found, options.out, judged, force=options.force)
    if options.json:
        held = {} if against is None else {"reference": against.to_dict()}
        fields = _facts(file, found, options) | judged.to_dict() | table.to_dict() | held
        print_json(fields)
    else:
        held_to = "" if against is None else f"\n{against}\n"
        write(f"{table}\n{held_to}\n{_numbers(found, judged)}\n")
    _said(options)


def _facts(file: TargetFile, found: Fit, options: FitOptions) -> dict[str, Any]:
    return {
        "target": file.name,
        "family": type(found.family).__name__,
        "direction": found.direction,
        "method": found.method,
        "converged": found.converged,
        "reason": found.reason,
        "seed": options.seed,
        "draws": options.draws,
    }


def fit_both(file: TargetFile, options: FitOptions) -> None:
    """Find the nearest Gaussian and mixture in both directions, exactly, by quadrature."""
    with user_code(file.path):
        target = _target(file)
        lower, upper = find_box(target.log_density, target.dim)
        with torch.no_grad():
            p = quadrature.posterior(
                target.log_density, lower=lower, upper=upper, nodes=NODES[target.dim]
            )
        names = ["one Gaussian"]
        counts = [1]
        if options.components > 1:
            names.append(f"{options.components} Gaussians")
            counts.append(options.components)
        found = [
            [
                project(p, "forward", components=count),
                project(p, "reverse", components=count),
            ]
            for count in counts
        ]
    if options.plot is not None:
        write_atomic(options.plot, plot_directions(p, found, names))
    pairs = [(name, one) for name, row in zip(names, found, strict=True) for one in row]
    if options.json:
        print_json(
            {
                "target": file.name,
                "log_evidence": float(p.log_evidence),
                "quadrature_error": p.error,
                "fits": [_exact(name, one) for name, one in pairs],
            }
        )
    else:
        lines = [f"{'q':<14}{'minimises':<12}{'KL(p‖q)':>10}{'KL(q‖p)':>10}   nats, exact"]
        for name, one in pairs:
            what = "KL(p‖q)" if one.direction == "forward" else "KL(q‖p)"
            lines.append(f"{name:<14}{what:<12}{one.forward:>z10.4f}{one.reverse:>z10.4f}")
        write("\n".join(lines) + "\n")
    _said(options)


def _target(file: TargetFile) -> Target:
    extra = {} if file.data is None else {"data": file.data, "log_prior": file.log_prior}
    return Target.of(file.log_density, file.parameters, **extra)


def _numbers(found: Fit, judged: Any) -> str:
    """Write the figures behind the verdict, one a line."""
    rows = [
        ("ELBO", str(judged.elbo)),
        ("evidence bound", str(judged.evidence_bound)),
        ("KL(q‖p)", str(judged.kl)),
        ("Pareto k-hat", f"{judged.k_hat:.2f}"),
        ("effective draws", f"{judged.ess_fraction:.1%} of {len(found.draws):,}"),
        ("sd of log weights", f"{judged.sd_log_weights:.3g} nats"),
        ("fit", f"{type(found.family).__name__}, {found.method}: {found.reason}"),
    ]
    lines = [f"{name:<19}{value}" for name, value in rows]
    lines += [f"- {reason}" for reason in judged.reasons]
    if judged.resampling:
        lines.append(f"- no importance resampling: {judged.resampling}")
    return "\n".join(lines)


def _exact(name: str, one: Projection) -> dict[str, Any]:
    return {
        "q": name,
        "direction": one.direction,
        "kl_p_q": one.forward,
        "kl_q_p": one.reverse,
        "elbo": one.steps[-1].elbo,
        "steps": len(one.steps),
    }


def _said(options: FitOptions) -> None:
    for name, path in (("plot", options.plot), ("out", options.out)):
        if path is not None:
            say(f"{name}: {path}")
