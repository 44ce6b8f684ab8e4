"""How often the checks of `kullback logprobs` find a simulated fault, and cry wolf, as JSON.

Run: python benchmarks/logprob_checks.py [--files 100] [--first-seed 0]

Files of 20,000 tokens in 40 sequences, vocabulary 40, from known next-token distributions
(tests/lm/simulated_logs.py). Of each fault: files in which the check meant for it found it, and
files in which any other check found something. Of clean files: those in which any check did.
"""

import argparse
import collections
import json
import sys
import time
from pathlib import Path

import numpy as np

from kullback.lm import check_logprobs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from lm.simulated_logs import CLEAN, FAULTS, table


def count(make, check, files, first_seed):
    """Return files in which `check` found something, in which others did, and which."""
    found = others = 0
    which = collections.Counter()
    for seed in range(first_seed, first_seed + files):
        columns, options = make(np.random.default_rng(seed))
        names = {one.name for one in check_logprobs(table(columns), p="log_p", q="log_q",
                                                    **options).found}  # fmt: skip
        found += check in names
        others += bool(names - {check})
        which.update(names)
    return {"files": files, "found": found, "others": others, "which": dict(which)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    start, rows = time.perf_counter(), {}
    for name, make in CLEAN.items():
        rows[name] = count(make, None, given.files, given.first_seed)
    for name, (make, check) in FAULTS.items():
        rows[name] = count(make, check, given.files, given.first_seed)
        print(name, rows[name], file=sys.stderr)
    print(json.dumps({"rows": rows, "seconds": round(time.perf_counter() - start)}, indent=2))


if __name__ == "__main__":
    main()
