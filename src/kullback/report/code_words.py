"""Code words to look at: a Huffman code of a table, in its canonical form, with no extra needed.

Which to use: `huffman_words` to show a code to a reader; `kullback.exact.codes` to write bytes.
"""

import heapq
from collections.abc import Sequence

__all__ = ["huffman_words"]


def huffman_words(masses: Sequence[float]) -> list[str | None]:
    """Return a prefix code of the smallest expected length, None for an outcome without mass.

    masses: ≥ 0, one or more above 0. Words of one length are counted upwards in the outcomes'
    order, shorter words first (the canonical form). A single outcome with mass needs no bits: "".
    Reference: Huffman (1952), "A method for the construction of minimum-redundancy codes".

    >>> huffman_words([0.25, 0.5, 0.25])
    ['10', '0', '11']
    """
    live = [place for place, mass in enumerate(masses) if mass > 0]
    parents = _tree([masses[place] for place in live])
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):  # a parent is always later than its children
        depths[node] = depths[parents[node]] + 1
    words: list[str | None] = [None] * len(masses)
    code, before = -1, 0
    for depth, place in sorted(zip(depths, live, strict=False)):
        code = (code + 1) << (depth - before)
        before = depth
        words[place] = f"{code:0{depth}b}" if depth else ""
    return words


def _tree(masses: Sequence[float]) -> list[int]:
    """Join the two lightest until one is left; return every node's parent, leaves first."""
    heap = [(mass, node) for node, mass in enumerate(masses)]
    heapq.heapify(heap)
    parents = [0] * len(masses)
    while len(heap) > 1:
        (first, a), (second, b) = heapq.heappop(heap), heapq.heappop(heap)
        parents[a] = parents[b] = len(parents)
        heapq.heappush(heap, (first + second, len(parents)))
        parents.append(0)
    return parents
