"""Codes: the founding example in real bytes, optimality by enumeration, and what is refused."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.core import DataError, MissingExtraError
from kullback.exact import codes, tables

pytest.importorskip("constriction")
P, Q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])


def founding_file(count=1_000_000):
    """Exactly half 0, a quarter 1, a quarter 2, in an order that says nothing."""
    symbols = torch.repeat_interleave(torch.arange(3), torch.tensor([2, 1, 1]) * (count // 4))
    return symbols[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("coder", ["huffman", "ans"])
def test_a_million_symbols_cost_what_the_notes_say(coder, tmp_path):
    """MATH 3.3 to 3.5: 1.500 bits a symbol, 1.750 with the wrong code, 0.250 extra, in a file."""
    symbols, sizes = founding_file(), []
    for table in (P, Q):
        path = tmp_path / f"{coder}.bin"
        path.write_bytes(codes.encode(symbols, table, coder=coder))
        sizes.append(path.stat().st_size * 8 / len(symbols))
        again = codes.decode(path.read_bytes(), table, count=len(symbols), coder=coder)
        assert again.equal(symbols)
    slack = 1e-12 if coder == "huffman" else 1e-4  # whole bits exactly; two words and 2^-24 tables
    assert sizes[0] == pytest.approx(1.5, abs=slack)
    assert sizes[1] == pytest.approx(1.75, abs=slack)
    assert sizes[1] - sizes[0] == pytest.approx(codes.extra_bits(P, Q).item(), abs=slack)


def test_the_quiz_costs_less_than_half_a_bit():
    """A quiz on 1 day of 10 surprises by 0.469 bits a day: ANS pays that, Huffman a whole bit."""
    quiz = torch.tensor([0.9, 0.1])
    days = (torch.arange(100_000) % 10 == 0).long()
    bits = {c: len(codes.encode(days, quiz, coder=c)) * 8 / len(days) for c in ("huffman", "ans")}
    assert bits["huffman"] == 1.0
    assert bits["ans"] == pytest.approx(tables.entropy(quiz).item() / math.log(2), abs=1e-3)
    assert f"{bits['ans']:.3f}" in ("0.469", "0.470")


def prefix_lengths(outcomes, longest):
    """Every set of codeword lengths that Kraft allows: every prefix code there is."""
    for lengths in itertools.product(range(1, longest + 1), repeat=outcomes):
        if sum(2.0**-n for n in lengths) <= 1:
            yield lengths


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=4, max_size=4))
def test_huffman_is_the_best_prefix_code_by_enumeration(weights):
    p = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    words = codes.huffman_code(p)
    lengths = torch.tensor([float(len(word)) for word in words]).double()
    best = min(
        sum(w * n for w, n in zip(weights, row, strict=True)) for row in prefix_lengths(4, 4)
    )
    assert codes.expected_length(lengths, p).item() == pytest.approx(best / sum(weights), rel=1e-12)
    assert codes.kraft_sum(lengths) == codes.kraft_sum(words) == 1
    assert codes.expected_length(words, p) == codes.expected_length(lengths, p)
    pairs = itertools.permutations(words, 2)
    assert not any(second.startswith(first) for first, second in pairs)


def test_words_compose_with_their_cost():
    words = codes.huffman_code(torch.tensor([0.5, 0.0, 0.25, 0.25]))
    assert words[1] is None
    assert codes.kraft_sum(words) == 1
    assert codes.expected_length(words, torch.tensor([0.5, 0.0, 0.25, 0.25])) == 1.5
    assert codes.expected_length(words, torch.full((4,), 0.25)) == math.inf
    assert codes.huffman_code(torch.tensor([0.0, 1.0])) == [None, ""]
    assert codes.expected_length([None, ""], torch.tensor([0.0, 1.0])) == 0.0


def test_huffman_words_are_the_bits_in_the_file():
    words = codes.huffman_code(Q)
    symbols = founding_file(400)
    text = "".join(words[s] for s in symbols.tolist())
    data = np.frombuffer(codes.encode(symbols, Q, coder="huffman"), dtype=np.uint8)
    bits = np.unpackbits(data, bitorder="little")[: len(text)]
    assert "".join(map(str, bits)) == text


def test_shannon_lengths():
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.4, 0.3, 0.2, 0.1]])
    lengths = codes.shannon_lengths(p)
    assert lengths.tolist() == [[1, 2, 2, math.inf], [2, 2, 3, 4]]
    assert (codes.kraft_sum(lengths) <= 1).all()
    entropy = tables.entropy(p) / math.log(2)
    cost = codes.expected_length(lengths, p)
    assert ((entropy <= cost + 1e-6) & (cost < entropy + 1)).all()
    for exponent in (1, 10, 100):  # powers of two exactly, and their neighbours
        mass = torch.tensor([2.0**-exponent], dtype=torch.float64)
        row = torch.stack([mass, 1 - mass], -1)
        assert codes.shannon_lengths(row)[0, 0] == exponent
    assert codes.expected_length(lengths[0], torch.full((4,), 0.25)) == math.inf


table = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda w: sum(w) > 0)


@settings(deadline=None, max_examples=60)
@given(table, st.integers(0, 200), st.sampled_from(["huffman", "ans"]), st.integers(0, 99))
def test_what_is_encoded_is_decoded(weights, count, coder, seed):
    p = torch.tensor(weights, dtype=torch.float64)
    p = p / p.sum()
    symbols = torch.zeros(0, dtype=torch.int64)
    if count:
        generator = torch.Generator().manual_seed(seed)
        symbols = torch.multinomial(p, count, replacement=True, generator=generator)
    data = codes.encode(symbols, p, coder=coder)
    assert codes.decode(data, p, count=count, coder=coder).equal(symbols)
    ideal = tables.surprisal(p)[symbols].sum().item() / math.log(2)
    if coder == "ans":
        assert len(data) * 8 <= ideal * (1 + 1e-4) + 64


def test_a_wrong_count_or_cut_bytes_are_noticed():
    symbols = founding_file(1000)
    for coder, wrongs in (("huffman", (980, 1100)), ("ans", (980,))):
        data = codes.encode(symbols, P, coder=coder)
        for wrong in wrongs:
            with pytest.raises(DataError, match="data: expected"):
                codes.decode(data, P, count=wrong, coder=coder)
        for cut in (data[:-4], data + b"\x01\x02\x03\x04"):
            with pytest.raises(DataError, match="data: expected"):
                codes.decode(cut, P, count=1000, coder=coder)
    with pytest.raises(DataError, match="whole 32-bit words"):
        codes.decode(b"123", P, count=3)
    with pytest.raises(DataError, match="last word is zero"):
        codes.decode(bytes(8), P, count=3)
    with pytest.raises(DataError, match="no bytes"):
        codes.decode(b"1234", torch.tensor([1.0]), count=3)


def test_a_missing_coder_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kullback\[codec\]'"):
        codes.encode(torch.tensor([0, 1]), P)


SYMBOLS = torch.tensor([0, 1, 2])
REFUSED = [
    (lambda: codes.encode([0, 1], P), TypeError, "symbols: expected Tensor"),
    (lambda: codes.encode(SYMBOLS.float(), P), ValueError, r"integers \[count\]; got float32"),
    (lambda: codes.encode(SYMBOLS[None], P), ValueError, r"integers \[count\]; got int64 \[1, 3\]"),
    (lambda: codes.encode(SYMBOLS + 1, P), ValueError, "numbers from 0 to 2; got 3 at place 2"),
    (lambda: codes.encode(SYMBOLS - 1, P), ValueError, "numbers from 0 to 2; got -1 at place 0"),
    (
        lambda: codes.encode(SYMBOLS, torch.tensor([0.5, 0.5, 0.0])),
        ValueError,
        "p gives mass; got 2 at place 2",
    ),
    (
        lambda: codes.encode(SYMBOLS, P, coder="zip"),
        ValueError,
        "coder: expected 'huffman' or 'ans'",
    ),
    (lambda: codes.encode(SYMBOLS, P[None]), ValueError, r"p: expected one table \[outcomes\]"),
    (lambda: codes.encode(SYMBOLS, 2 * P), ValueError, "p: expected rows of probs that sum to 1"),
    (lambda: codes.decode("x", P, count=1), TypeError, "data: expected bytes; got str"),
    (lambda: codes.decode(b"", P, count=-1), ValueError, "count: expected an integer"),
    (lambda: codes.decode(b"", P, count=1.5), ValueError, "count: expected an integer"),
    (lambda: codes.kraft_sum([1, 2]), ValueError, "code: expected words of 0s and 1s.* got 1"),
    (lambda: codes.kraft_sum("01"), TypeError, "code: expected Tensor or Sequence"),
    (lambda: codes.expected_length(["0", "1"], P), ValueError, "code: expected 3 outcomes.* got 2"),
]


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
