"""How often is a verdict right? Fits to targets whose moments are known, judged and counted.

    python benchmarks/verdicts.py gather choosing counting   # fit; keep the evidence of every fit
    python benchmarks/verdicts.py gather counting --shard 3/14 --out 3.json    # a part of them,
    python benchmarks/verdicts.py merge counting --from *.json                 # and all parts
    python benchmarks/verdicts.py gather trying --seed 4000  # the list on which changes are tried
    python benchmarks/verdicts.py                            # judge what was kept, and count
    python benchmarks/verdicts.py --ablation                 # the same with each limit dropped

`gather` makes fits to the targets of two lists (verdict_targets.py; limits were chosen on the
first): what `kullback.variational.fit` returns for "auto", a full-rank and a mean-field Gaussian
and a Student-t, and the full-rank Gaussian spoilt on purpose, in one of four ways. It keeps the
`Evidence` that `diagnose_beyond` has from 4,000 draws of q, beside the true errors. Judging is a
function of that record alone, so limits are compared without a new fit.
A level is right when every bound on every mean and standard deviation holds; "good" counts fits
whose means are all within 0.2 sd and whose sds are within 20 %.
"""

import argparse
import dataclasses
import functools
import gzip
import json
import math
import sys
import time
from pathlib import Path

import torch
from measuring import RESULTS, finish, machine, shortened
from torch import distributions as law
from verdict_targets import LISTS, targets

import kullback.variational
from kullback.variational import limits
from kullback.variational.diagnostics.diagnose import diagnose_beyond
from kullback.variational.diagnostics.evidence import Evidence, Sample
from kullback.variational.diagnostics.verdict import judge
from kullback.variational.limits import LIMITS, Limits

FITS = ("auto", "full_rank", "mean_field", "student_t")
SPOILT = ("shifted", "shrunk", "inflated", "nearly")  # one of them for each target, in turn
DRAWS = 4000
LIMIT = 0.2  # what a fit that deserved trust would keep
LEVELS = ("trust", "partly", "do not trust")


@functools.lru_cache(maxsize=2)
def fitted(target, family, seed=0):
    """What `fit` returns for a family, by its defaults."""
    return kullback.variational.fit(
        lambda z: target.log_density(z[None])[0],
        target.dims,
        family=family,
        evaluation_draws=DRAWS,
        generator=torch.Generator().manual_seed(seed),
        progress=False,
    )


def spoilt(target, fit, generator):
    """The full-rank Gaussian, moved or resized on purpose: draws, log density."""
    frame = fitted(target, "full_rank").family.absorb()
    mean, scale = frame.shift, frame.factor
    way = torch.randn(len(mean), generator=generator, dtype=torch.float64)
    way = scale @ (way / way.norm())
    mean = mean + {"shifted": 0.4, "nearly": 0.02}.get(fit, 0.0) * way
    scale = scale * {"shrunk": 0.7, "inflated": 1.4, "nearly": 0.99}.get(fit, 1.0)
    noise = torch.randn(DRAWS, target.dims, generator=generator, dtype=torch.float64)
    q = law.MultivariateNormal(mean, scale_tril=scale)
    return mean + noise @ scale.T, q.log_prob, True


def made(target, fit, generator):
    """Draws, log density, and whether the fit converged."""
    if fit in SPOILT:
        return spoilt(target, fit, generator)
    found = fitted(target, fit)
    return found.draws, found.family.log_prob, found.converged


def gathered(target, fit, generator):
    """Fit, diagnose, and return the evidence beside the true errors, in sd of q's draws."""
    draws, log_prob, converged = made(target, fit, generator)
    draws = draws.clone().requires_grad_()
    log_p, log_q = target.log_density(draws), log_prob(draws)
    scores = tuple(torch.autograd.grad(log.sum(), draws)[0] for log in (log_p, log_q))
    sample = Sample(
        draws=draws.detach(),
        log_p=log_p.detach(),
        log_q=log_q.detach(),
        scores=scores,
        of=target.values,
        converged=converged,
    )
    values = target.values(sample.draws)
    row = {
        "kind": target.kind,
        "dims": target.dims,
        "fit": fit,
        "mean_off": ((values.mean(0) - target.mean) / values.std(0)).abs().tolist(),
        "sd_off": (target.sd / values.std(0)).log().abs().tolist(),
    }
    look = functools.partial(diagnose_beyond, target.log_density, log_prob, sample)
    row["evidence"] = look(generator=torch.Generator().manual_seed(1)).evidence.to_dict()
    for name, change in SEARCHES.items() if fit in ("auto", "full_rank") else ():
        kept = {key: getattr(limits, key) for key in change}
        for key, value in change.items():
            setattr(limits, key, value)
        other = look(generator=torch.Generator().manual_seed(1)).evidence.to_dict()
        for key, value in kept.items():
            setattr(limits, key, value)
        if json.dumps(other) != json.dumps(row["evidence"]):
            row[name] = other
    return row


SEARCHES = {
    "without ridges": {"MAX_FOLLOWED_DIMENSIONS": 0},
    "without a second look": {"MORE_WIDE_DRAWS": limits.WIDE_DRAWS},
}


def kept_in(name):
    """The file that holds the evidence of a list's fits."""
    return RESULTS / f"verdict_evidence_{name}.json.gz"


def gather(name, options):
    """Make the fits of one list, or of a part of it, and keep their evidence."""
    rows, begin = [], time.process_time()
    for place, target in part_of(name, options):
        generator = torch.Generator().manual_seed(options.seed + place)
        for fit in (*FITS, SPOILT[place % len(SPOILT)]):
            try:
                rows.append(gathered(target, fit, generator) | {"place": place})
            except kullback.core.KullbackError as error:
                sys.stderr.write(f"{name} {place}: {target.kind}, {fit}: {error}\n")
        used = time.process_time() - begin
        sys.stderr.write(f"{name} {place}: {target.kind}, {target.dims}; {used:.0f} s in all\n")
        if options.out:
            options.out.write_text(json.dumps(shortened(rows, 4)))
    if not options.out:
        write(name, options.seed, rows)


def part_of(name, options):
    """Places and targets of a shard `i/n`, i from 1, the dearest first and dealt in turn."""
    first, shards = (int(number) for number in options.shard.split("/"))
    chosen = sorted(enumerate(targets(name, options.seed)), key=lambda one: -one[1].dims)
    return chosen[first - 1 :: shards]


def merge(name, options):
    """Put the parts of a list together, in the order of a whole run."""
    rows = [row for part in options.parts for row in json.loads(part.read_text())]
    fits = (*FITS, *SPOILT)
    rows.sort(key=lambda row: (row["place"], fits.index(row["fit"])))
    pairs = {(row["place"], row["fit"]) for row in rows}
    wanted = (len(FITS) + 1) * len(targets(name, options.seed))
    sys.stderr.write(f"{name}: {len(rows)} fits, {len(pairs)} different ones, of {wanted}\n")
    write(name, options.seed, rows)


def write(name, seed, rows):
    held = {"machine": machine(1), "seed": seed, "draws": DRAWS, "rows": shortened(rows, 4)}
    RESULTS.mkdir(exist_ok=True)
    kept_in(name).write_bytes(gzip.compress(json.dumps(held).encode(), mtime=0))


def read(name):
    """The rows of a list, with evidence as records."""
    rows = json.loads(gzip.decompress(kept_in(name).read_bytes()))["rows"]
    for row in rows:
        for key in ("evidence", *SEARCHES):
            if key in row:
                row[key] = Evidence.from_dict(row[key])
    return rows


def judged(row, limits=LIMITS):
    """The level of a row, whether its bounds hold, and whether the fit was good."""
    verdict = judge(row["evidence"], limits)
    mean_off, sd_off = (torch.tensor(row[name]).double() for name in ("mean_off", "sd_off"))
    held = (mean_off <= verdict.bounds.mean).all() and (sd_off <= verdict.bounds.log_sd).all()
    good = mean_off.max() <= LIMIT and sd_off.max() <= math.log1p(LIMIT)
    return {"level": verdict.level, "held": bool(held), "good": bool(good)}


def count(rows, limits=LIMITS):
    """Say for each level how many fits have it, how often bounds held and fits were good."""
    every = [judged(row, limits) for row in rows]
    counted = {}
    for level in LEVELS:
        these = [one for one in every if one["level"] == level]
        counted[level] = {
            "fits": len(these),
            "bounds_held": sum(one["held"] for one in these) / max(1, len(these)),
            "fit_was_good": sum(one["good"] for one in these) / max(1, len(these)),
        }
    return counted


def changed(rows, **fields):
    """Rows whose evidence has some of it taken away."""
    return [row | {"evidence": dataclasses.replace(row["evidence"], **fields)} for row in rows]


def swapped(rows, name):
    """Rows with the evidence that was gathered without one of the searches."""
    return [row | {"evidence": row.get(name, row["evidence"])} for row in rows]


WIDER = {"pooled": None, "tails": None, "unreached": 0.0, "endless": False}
MODES = {"elsewhere": 0.0, "away": None}
EVIDENCE = {
    "no draws of wider laws": lambda rows: changed(rows, **WIDER),
    "no scores": lambda rows: changed(rows, scored=False, residual=None, pushed=None),
    "no search for modes": lambda rows: changed(rows, **MODES),
    "no test of convergence": lambda rows: changed(rows, converged=True),
    "no ridges": lambda rows: swapped(rows, "without ridges"),
    "no second look": lambda rows: swapped(rows, "without a second look"),
}
HUGE = 1e300
NEVER = {  # values at which a limit does nothing; limits that act together go together
    "light, heavy": {"light": HUGE, "heavy": 2 * HUGE},
    "misled": {"misled": -HUGE},
    "unreached": {"unreached": math.inf},
    "shape, near": {"shape": math.inf},
}


def dropped(name):
    """Limits with one of them out of use; `heavy` and `large` go with `light` and `small`."""
    fields = {f.name: getattr(LIMITS, f.name) for f in dataclasses.fields(Limits)}
    return Limits(**(fields | NEVER[name]))


def ablation(rows):
    """Count with each limit dropped, and with each kind of evidence taken away.

    "own draws only" is what there is with mini-batches of rows and above 100 dimensions.
    """
    own = changed(rows, **WIDER, **MODES)
    table = {"all limits": count(rows)}
    table |= {f"no limit {name}": count(rows, dropped(name)) for name in NEVER}
    table |= {name: count(change(rows)) for name, change in EVIDENCE.items()}
    table |= {"own draws only": count(own)}
    table |= {f"own draws only, no limit {name}": count(own, dropped(name)) for name in NEVER}
    return table | {"own draws only, no scores": count(EVIDENCE["no scores"](own))}


def printed(table):
    """The ablation as lines: fits, share whose bounds held, share that was good, for each level."""
    cells = "  ".join(f"{level:>20}" for level in LEVELS)
    lines = [f"{'':<40}{cells}"]
    for name, counted in table.items():
        shown = (
            f"{c['fits']:>5} {c['bounds_held']:>7.1%} {c['fit_was_good']:>6.1%}"
            for c in counted.values()
        )
        lines.append(f"{name:<40}{'  '.join(shown)}")
    return "\n".join(lines)


def by(rows, name):
    """Counts for every value of a column."""
    values = dict.fromkeys(row[name] for row in rows)
    return {value: count([row for row in rows if row[name] == value]) for value in values}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"gather or merge, and lists: {', '.join(LISTS)}")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--shard", default="1/1", help="gather: only part i of n, as i/n")
    parser.add_argument("--out", type=Path, help="gather: the file of a part")
    parser.add_argument("--from", dest="parts", type=Path, nargs="+", help="merge: these files")
    parser.add_argument("--ablation", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in options.what if name in LISTS] or list(LISTS)
    if "gather" in options.what:
        for name in names:
            gather(name, options)
        if options.out:
            return
    if "merge" in options.what:
        for name in names:
            merge(name, options)
    kept = {name: read(name) for name in names if kept_in(name).exists()}
    if options.ablation:
        tables = {name: ablation(rows) for name, rows in kept.items()}
        finish("verdicts_ablation", tables, digits=4)
        for name, table in tables.items():
            sys.stdout.write(f"\n{name}: fits, bounds held, good\n{printed(table)}\n")
        return
    result = {"machine": machine(1), "draws": DRAWS}
    for name, rows in kept.items():
        defaults = [row for row in rows if row["fit"] not in SPOILT]
        result[name] = {
            "fits": len(rows),
            "counts": count(rows),
            "of_the_defaults": count(defaults),
            "by_fit": by(rows, "fit"),
            "by_kind": by(rows, "kind"),
        }
    finish("verdicts", result, digits=4)


if __name__ == "__main__":
    main()
