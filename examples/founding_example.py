"""The founding example, in a file: what a wrong belief costs, in real bytes (MATH 3.2 to 3.5).

A million symbols, half of them 0, a quarter 1, a quarter 2, are written with the right code and
with the code of someone who believes in (1/4, 1/2, 1/4). The difference is KL(p‖q).
Run: python examples/founding_example.py   (needs: pip install 'kullback[codec]')
"""

import math
import sys
import tempfile
from pathlib import Path

import torch

from kullback.core import MissingExtraError
from kullback.exact import codes, tables

COUNT = 1_000_000


def bits_in_a_file(symbols, table, coder):
    """Write, read back, compare, and return the bits a symbol that the file really takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "symbols.bin"
        path.write_bytes(codes.encode(symbols, table, coder=coder))
        again = codes.decode(path.read_bytes(), table, count=len(symbols), coder=coder)
        if not again.equal(symbols):
            sys.exit("the decoded symbols differ")
        return path.stat().st_size * 8 / len(symbols)


def main():
    truth, belief = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    symbols = torch.repeat_interleave(torch.arange(3), torch.tensor([2, 1, 1]) * (COUNT // 4))
    symbols = symbols[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    print(f"entropy H(p)          {tables.entropy(truth) / math.log(2):.3f} bits a symbol")
    print(f"cross-entropy H(p, q) {tables.cross_entropy(truth, belief) / math.log(2):.3f}")
    print(f"KL(p‖q)               {codes.extra_bits(truth, belief):.3f}")
    for coder in ("huffman", "ans"):
        right, wrong = (bits_in_a_file(symbols, table, coder) for table in (truth, belief))
        print(
            f"{coder:8} right code {right:.3f}, wrong code {wrong:.3f}, extra {wrong - right:.3f}"
        )
    quiz = torch.tensor([0.9, 0.1])
    days = (torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)) < COUNT // 10).long()
    print(
        f"a quiz on 1 day in 10: H = {tables.entropy(quiz) / math.log(2):.3f} bits a day;", end=" "
    )
    print(f"in a file {bits_in_a_file(days, quiz, 'ans'):.3f}")


if __name__ == "__main__":
    try:
        main()
    except MissingExtraError as error:
        sys.exit(f"This example writes real code, and the coder is missing: {error}")
