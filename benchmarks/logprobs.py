"""KL from 1e6 to 1e8 logged log-probabilities: kullback, hand-written DuckDB SQL, pandas, Polars.

Run: python benchmarks/logprobs.py [--rows 1e6 1e7] [--repeats 3] [--threads 2] [--folder DIR]

A Parquet file of step, sequence, position, log_p and log_q (float32), 500 tokens a sequence and
2,000 sequences a step. Every contender gives, by step: k1, k2, k3 and best λ with errors clustered
by sequence, the naive errors, the mean of q/p, the effective sample size, clipped shares, Pareto
k-hat's tail. kullback also makes its checks and reads a sample for them. Each run is a process of
its own; `seconds` and `cpu_seconds` (of all threads) are each the least of the repeats, inside the
process, imports apart; `peak_mib` is what the process held at most, above what it held before the
call. On a machine with other work the processor time is the one to compare.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LENGTH, SEQUENCES = 500, 2000
CONTENDERS = ("kullback", "duckdb_sql", "polars", "pandas")
PANDAS_MOST = 20_000_000  # rows: beyond, it does not fit this machine's memory
SQL = """
with tokens as (select step, sequence, log_p::double as p, log_q::double - log_p::double as x
  from read_parquet('{path}')
  where log_p > -700 and log_p <= 1e-4 and log_p <> -100
    and log_q > -700 and log_q <= 1e-4 and log_q <> -100),
features as (select *, case when abs(x) < 0.01
  then x*x*(0.5 + x*(1/6.0 + x*(1/24.0 + x*(1/120.0 + x*(1/720.0 + x/5040.0)))))
  else exp(x) - 1 - x end as b from tokens)
select step, sequence, count(*) n, sum(p) p, sum(x) f1, sum(b) f2, sum(0.5*x*x) f3, sum(x*x) f11,
  sum(x*b) f12, sum(b*b) f22, sum(0.25*x*x*x*x) f33, sum((x+b)*(x+b)*(x+b)) ccc,
  count_if(x > 0.1823) high, count_if(x < -0.2231) low
from features group by step, sequence
"""
TAIL = """
select step, x from (select step, log_q::double - log_p::double as x from read_parquet('{path}'))
qualify row_number() over (partition by step order by x desc) <= 513
"""


def make(path, rows):
    """Write the file, a million rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, done, writer = np.random.default_rng(0), 0, None
    while done < rows:
        size = min(1_000_000, rows - done)
        sequence = (np.arange(size) + done) // LENGTH
        log_p = -rng.exponential(0.8, size)
        x = 0.05 * rng.standard_normal(size) - 0.00125
        table = pa.table({
            "step": (sequence // SEQUENCES).astype(np.int32),
            "sequence": sequence,
            "position": ((np.arange(size) + done) % LENGTH).astype(np.int32),
            "log_p": log_p.astype(np.float32),
            "log_q": np.minimum(log_p + x, 0).astype(np.float32),
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=500_000)
        done += size
    writer.close()


def figures(sums):
    """From sums by sequence (columns of NumPy arrays) to the figures of each step."""
    found = {}
    order = np.argsort(sums["step"], kind="stable")
    sums = {name: np.asarray(values)[order] for name, values in sums.items()}
    steps, starts = np.unique(sums["step"], return_index=True)
    for step, rows in zip(steps, np.split(np.arange(len(order)), starts[1:]), strict=True):
        n = sums["n"][rows].astype(float)
        f1, f2, f3 = (sums[name][rows] for name in ("f1", "f2", "f3"))
        total = n.sum()
        lam = 0.95
        for terms in (-f1, f3, f2, -f1 + lam * (f1 + f2)):
            mean = terms.sum() / total
            error = np.sqrt(((terms - mean * n) ** 2 / (1 - n / total)).sum()) / total
            found[step] = (mean, error)
    return found


def run_kullback(path, duckdb):
    import ibis

    from kullback.lm import logprobs
    from kullback.lm.engines import connect

    engine = connect()
    engine.connection.raw_sql(f"set threads = {duckdb}")
    report = logprobs(path, p="log_p", q="log_q", by="step", engine=engine)
    return report.overall[0].token["k1"].estimate.value, ibis.__version__


def run_duckdb_sql(path, threads):
    import duckdb

    connection = duckdb.connect()
    connection.sql(f"set threads = {threads}")
    sums = connection.sql(SQL.format(path=path)).fetchnumpy()
    connection.sql(TAIL.format(path=path)).fetchnumpy()
    figures(sums)
    return -float(sums["f1"].sum() / sums["n"].sum()), duckdb.__version__


def run_polars(path, threads):
    import polars as pl

    p, q = (pl.col(name).cast(pl.Float64) for name in ("log_p", "log_q"))
    live = (p > -700) & (p <= 1e-4) & (p != -100) & (q > -700) & (q <= 1e-4) & (q != -100)
    x, b, c = pl.col("x"), pl.col("b"), pl.col("x") + pl.col("b")
    tokens = pl.scan_parquet(path).filter(live).select("step", "sequence", p=p, x=q - p)
    rows = tokens.with_columns(b=x.exp() - 1 - x)
    sums = rows.group_by("step", "sequence").agg(
        n=pl.len(), p=pl.col("p").sum(), f1=x.sum(), f2=b.sum(), f3=(0.5 * x * x).sum(),
        f11=(x * x).sum(), f12=(x * b).sum(), f22=(b * b).sum(), f33=(0.25 * x * x * x * x).sum(),
        ccc=(c * c * c).sum(), high=(x > 0.1823).sum(), low=(x < -0.2231).sum(),
    ).collect(engine="streaming")  # fmt: skip
    tokens.group_by("step").agg(x.top_k(513)).collect(engine="streaming")
    figures({name: sums[name].to_numpy() for name in sums.columns})
    return -float(sums["f1"].sum() / sums["n"].sum()), pl.__version__


def run_pandas(path, threads):
    import pandas as pd

    frame = pd.read_parquet(path, columns=["step", "sequence", "log_p", "log_q"])
    p, q = frame.log_p.astype(float), frame.log_q.astype(float)
    frame = frame[(p > -700) & (p <= 1e-4) & (p != -100) & (q > -700) & (q <= 1e-4) & (q != -100)]
    x = q - p
    b = np.expm1(x) - x
    columns = {"p": p, "f1": x, "f2": b, "f3": 0.5 * x * x, "f11": x * x, "f12": x * b,
               "f22": b * b, "f33": 0.25 * x**4, "ccc": (x + b) ** 3, "high": x > 0.1823,
               "low": x < -0.2231, "n": 1}  # fmt: skip
    rows = frame[["step", "sequence"]].assign(**columns)
    sums = rows.groupby(["step", "sequence"], sort=False).sum().reset_index()
    rows.groupby("step").f1.nlargest(513)
    figures({name: sums[name].to_numpy() for name in sums.columns})
    return -float(sums.f1.sum() / sums.n.sum()), pd.__version__


def held(which):
    """Memory of this process in MiB: VmRSS now, VmHWM at most so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def one(contender, path, threads):
    """Run one contender in this process, and print what it took."""
    run = {"kullback": run_kullback, "duckdb_sql": run_duckdb_sql, "polars": run_polars,
           "pandas": run_pandas}[contender]  # fmt: skip
    if contender == "kullback":
        import duckdb  # noqa: F401
        import ibis

        import kullback.lm.logprob_report  # noqa: F401

        ibis.duckdb.connect()
    before = held("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    k1, version = run(path, threads)
    row = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu,
           "k1": k1, "version": version,
           "peak_mib": held("VmHWM") - before}  # fmt: skip
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "PATH"))
    given = parser.parse_args()
    if given.one:
        one(*given.one, given.threads)
        return
    folder = given.folder or Path(tempfile.mkdtemp())
    table = []
    for rows in map(int, given.rows):
        path = folder / f"logprobs_{rows}.parquet"
        if not path.exists():
            make(path, rows)
        best = {}
        for _ in range(given.repeats):  # contenders in turns, so that a busy minute hits all
            for contender in CONTENDERS:
                if contender == "pandas" and rows > PANDAS_MOST:
                    continue
                command = [sys.executable, __file__, "--one", contender, str(path),
                           "--threads", str(given.threads)]  # fmt: skip
                row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                held_before = best.setdefault(contender, row)
                for name in ("seconds", "cpu_seconds"):
                    held_before[name] = min(held_before[name], row[name])
        for contender, row in best.items():
            ratios = {label: row[name] / best["duckdb_sql"][name] for label, name in
                      (("times_sql", "seconds"), ("cpu_times_sql", "cpu_seconds"))}  # fmt: skip
            table.append({"rows": rows, "contender": contender, **row, **ratios})
            print(table[-1], file=sys.stderr)
    print(json.dumps({"machine": platform.platform(), "threads": given.threads, "table": table},
                     indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
