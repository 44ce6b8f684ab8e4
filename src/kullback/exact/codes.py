"""Codes for symbols from a table: the bits that KL counts, really spent (MATH 3.3 to 3.5, 3.7).

Which to use: `expected_length` and `extra_bits` for what a code costs; `shannon_lengths` and
`huffman_code` for whole-bit codewords, `kraft_sum` to see that they fit; `encode` and `decode` for
real bytes, with Huffman (whole bits a symbol) or ANS (the entropy itself, to within about 0.002 %).
Both coders are constriction's; it comes with the extra `codec`.

A table here is one row of probabilities `[outcomes]` that sums to 1; symbols are 0 … outcomes − 1.
Everything is in **bits**. Bytes hold the code alone: the decoder is told table, count and coder.
Damage is not always noticed; checksums belong to the container around the bytes.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kullback.core import DataError, describe, import_extra, require, require_type

from . import tables
from .table_sums import read

__all__ = [
    "Coder",
    "decode",
    "encode",
    "expected_length",
    "extra_bits",
    "huffman_code",
    "kraft_sum",
    "shannon_lengths",
]

Coder = Literal["huffman", "ans"]
Words = Sequence[str | None]
_WORD = np.dtype("<u4")  # constriction works in 32-bit words; bytes are little-endian everywhere


def shannon_lengths(p: Tensor) -> Tensor:
    """Return Shannon's codeword lengths `⌈log₂ 1/p⌉`, in bits.

    Exact: read from the exponent of the float, not from a rounded logarithm. Not differentiable.
    Reference: Shannon (1948), "A mathematical theory of communication", section 9.

    Args:
        p: Probabilities `[*batch, outcomes]`.

    Returns:
        The same shape, in bits; +inf where there is no mass.

    Raises:
        ArgumentTypeError: For anything but a float tensor.
        ArgumentValueError: For rows that are no distributions.

    Example:
        >>> shannon_lengths(torch.tensor([0.5, 0.3, 0.2, 0.0]))
        tensor([1., 2., 3., inf])
    """
    mass = read(p).prob.detach()
    exponent = torch.frexp(mass).exponent  # mass = m·2^e with ½ ≤ m < 1, so ⌈−log₂ mass⌉ = 1 − e
    return (1 - exponent).to(mass.dtype).masked_fill(mass == 0, math.inf)


def huffman_code(p: Tensor) -> list[str | None]:
    """Return a Huffman code: one string of 0s and 1s per outcome, None where there is no mass.

    Its expected length is the smallest of any prefix code, between H(p) and H(p) + 1 bits. A single
    outcome with mass needs no bits: "".
    Reference: Huffman (1952), "A method for the construction of minimum-redundancy codes".

    Args:
        p: Probabilities `[outcomes]`.

    Returns:
        A list with one codeword or None per outcome.

    Raises:
        ArgumentTypeError: For anything but a float tensor.
        ArgumentValueError: Where p is not one row that is a distribution.
        MissingExtraError: Without constriction.

    Example:
        >>> huffman_code(torch.tensor([0.5, 0.25, 0.25]))
        ['0', '10', '11']
    """
    mass = _masses(p)
    words: list[str | None] = [None] * len(mass)
    support = np.flatnonzero(mass)
    symbol, tree = _huffman(mass[support], "Encoder")
    for index, outcome in enumerate(support):
        coder = symbol.QueueEncoder()
        coder.encode_symbol(index, tree)
        packed, bits = coder.get_compressed()
        words[outcome] = "".join(str(packed[i // 32] >> (i % 32) & 1) for i in range(bits))
    return words


def kraft_sum(code: Tensor | Words) -> Tensor:
    """Return Kraft's sum `Σ 2^−length`: a prefix code with these lengths exists iff it is ≤ 1.

    Reference: Cover and Thomas (2006), "Elements of Information Theory", theorem 5.2.1.

    Args:
        code: Lengths `[*batch, outcomes]` in bits, or codewords such as `huffman_code` returns;
            +inf or None (no codeword) adds nothing.

    Returns:
        `[*batch]`, a pure number.

    Raises:
        ArgumentTypeError: For anything but a tensor or a sequence.
        ArgumentValueError: For a word that has other characters than 0 and 1.

    Example:
        >>> kraft_sum(torch.tensor([1.0, 2.0, 2.0])), kraft_sum(["0", "10"])
        (tensor(1.), tensor(0.7500))
    """
    lengths = _lengths(code)
    return torch.exp2(-lengths.to(torch.promote_types(lengths.dtype, torch.float32))).sum(-1)


def expected_length(code: Tensor | Words, p: Tensor) -> Tensor:
    """Return `Σ p(x)·length(x)`, in bits: the mean length of a symbol's codeword for data from p.

    Args:
        code: Lengths `[*batch, outcomes]` in bits, or codewords such as `huffman_code` returns.
        p: Probabilities `[*batch, outcomes]`; they may differ from those the code was made for.

    Returns:
        `[*batch]`, in bits; +inf where an outcome with mass has no codeword (+inf or None).

    Raises:
        ArgumentTypeError: For a code or a p of another type.
        ArgumentValueError: When code and p have different numbers of outcomes, or for rows of p
            that are no distributions.

    Example:
        >>> expected_length(torch.tensor([2.0, 1.0, 2.0]), torch.tensor([0.5, 0.25, 0.25]))
        tensor(1.7500)
        >>> expected_length(["10", "0", "11"], torch.tensor([0.5, 0.25, 0.25]))
        tensor(1.7500)
    """
    lengths, mass = _lengths(code), read(p).prob
    same = lengths.shape[-1] == mass.shape[-1]
    require(same, "code", f"{mass.shape[-1]} outcomes, as p has", lengths.shape[-1])
    lengths = lengths.to(mass.device)
    return (mass * lengths.masked_fill(mass == 0, 0)).sum(-1)


def extra_bits(p: Tensor, q: Tensor) -> Tensor:
    """Return `KL(p‖q) / ln 2`: extra bits a symbol for data from p coded with q.

    Args:
        p: Probabilities `[*batch, outcomes]`, of the data.
        q: Probabilities `[*batch, outcomes]`, that the code was made for.

    Returns:
        `[*batch]`, in bits, differentiable: `tables.kl` in bits.

    Raises:
        ArgumentTypeError: For anything but float tensors.
        ArgumentValueError: For rows that are no distributions, or other outcomes in q.

    Example:
        >>> extra_bits(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25]))
        tensor(0.2500)
    """
    return tables.kl(p, q) / math.log(2)


def encode(symbols: Tensor, p: Tensor, *, coder: Coder = "ans") -> bytes:
    """Encode a sequence of symbols with the code made for p; the cost is `H(data, p)` a symbol.

    Args:
        symbols: Integers `[count]`, from 0 to outcomes − 1.
        p: Probabilities `[outcomes]` that the code is made for; the data may follow others.
        coder: "huffman" spends whole bits on every symbol; "ans" spends `log₂ 1/p` bits a symbol,
            and up to 8 bytes more in all.

    Returns:
        The code alone: no count, no table.

    Raises:
        ArgumentTypeError: For anything but tensors.
        ArgumentValueError: For a symbol outside the table or without mass in it, a p that is no
            distribution, or an unknown coder.
        MissingExtraError: Without constriction.

    Example:
        >>> symbols = torch.tensor([0, 1, 0, 2])
        >>> data = encode(symbols, torch.tensor([0.5, 0.25, 0.25]), coder="huffman")
        >>> len(data)  # 6 bits
        1
    """
    mass = _checked(p, coder)
    require_type(symbols, Tensor, "symbols", "torch.tensor([...])")
    whole = symbols.ndim == 1 and not symbols.is_floating_point() and not symbols.is_complex()
    require(whole, "symbols", "integers [count]", describe(symbols))
    sequence = symbols.cpu().numpy().astype(np.int64)
    _require_all(
        (sequence >= 0) & (sequence < len(mass)), sequence, f"numbers from 0 to {len(mass) - 1}"
    )
    _require_all(mass[sequence] > 0, sequence, "only outcomes that p gives mass", "another p")
    support = np.flatnonzero(mass)
    indices = np.searchsorted(support, sequence).astype(np.int32)
    if len(support) == 1 or len(indices) == 0:
        return b""
    write = _huffman_encode if coder == "huffman" else _ans_encode
    return write(indices, mass[support])


def decode(data: bytes, p: Tensor, *, count: int, coder: Coder = "ans") -> Tensor:
    """Decode `count` symbols: the inverse of `encode` with the same p and coder.

    Args:
        data: What `encode` returned.
        p: Probabilities `[outcomes]`, the same bit for bit, since the code is rebuilt from them.
        count: How many symbols were encoded.
        coder: "ans" or "huffman", as in `encode`.

    Returns:
        int64 `[count]`.

    Raises:
        ArgumentTypeError: For data that are no bytes.
        ArgumentValueError: For a negative count, a p that is no distribution, or an unknown coder.
        DataError: When the bytes are not a code of exactly `count` symbols, as far as that can be
            detected: bits left over or missing. ANS decodes most damaged data, and a count too
            large, to wrong symbols without an error.
        MissingExtraError: Without constriction.

    Example:
        >>> p, symbols = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0, 1, 0, 2])
        >>> decode(encode(symbols, p), p, count=4)
        tensor([0, 1, 0, 2])
    """
    mass = _checked(p, coder)
    require_type(data, bytes, "data")
    require(isinstance(count, int) and count >= 0, "count", "an integer of at least 0", count)
    support = np.flatnonzero(mass)
    if len(support) == 1 or count == 0:
        _require_data(not data, "no bytes, since nothing is left to say")
        return torch.full((count,), int(support[0]), dtype=torch.int64)
    read_back = _huffman_decode if coder == "huffman" else _ans_decode
    write = _huffman_encode if coder == "huffman" else _ans_encode
    indices = read_back(data, mass[support], count)
    _require_data(write(indices, mass[support]) == data, f"a code of {count} symbols and no more")
    return torch.from_numpy(support[indices])


def _lengths(code: Any) -> Tensor:
    """Return the lengths of a code, as they are or of its words."""
    if isinstance(code, Tensor):
        return code
    words = isinstance(code, Sequence) and not isinstance(code, str)
    hint = "lengths in bits, or words as from huffman_code"
    require_type(code if words else None, (Tensor, Sequence), "code", hint)
    for word in code:
        good = word is None or (isinstance(word, str) and set(word) <= {"0", "1"})
        require(good, "code", "words of 0s and 1s, None for none", repr(word), hint)
    return torch.tensor([math.inf if word is None else float(len(word)) for word in code])


def _require_all(good: Any, sequence: Any, expected: str, hint: str = "") -> None:
    """Name the first symbol that is not as it should be."""
    wrong = np.flatnonzero(~good)
    got = f"{sequence[wrong[0]]} at place {wrong[0]}" if len(wrong) else ""
    require(not len(wrong), "symbols", expected, got, hint)


def _masses(p: Tensor) -> Any:
    """Return one checked row of probabilities as float64 NumPy."""
    mass = read(p).prob.detach()
    require(mass.ndim == 1, "p", "one table [outcomes]", describe(mass))
    return mass.cpu().double().numpy()


def _checked(p: Tensor, coder: str) -> Any:
    require(coder in ("huffman", "ans"), "coder", "'huffman' or 'ans'", repr(coder))
    return _masses(p)


def _huffman(mass: Any, kind: str) -> tuple[Any, Any]:
    symbol = import_extra("constriction", "codec").symbol
    return symbol, getattr(symbol.huffman, f"{kind}HuffmanTree")(mass)


def _huffman_encode(indices: Any, mass: Any) -> bytes:
    symbol, tree = _huffman(mass, "Encoder")
    queue = symbol.QueueEncoder()
    for index in indices.tolist():
        queue.encode_symbol(index, tree)
    words, bits = queue.get_compressed()
    return bytes(words.astype(_WORD).tobytes()[: -(-bits // 8)])


def _huffman_decode(data: bytes, mass: Any, count: int) -> Any:
    symbol, tree = _huffman(mass, "Decoder")
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), dtype=_WORD).astype(np.uint32)
    queue = symbol.QueueDecoder(words)
    try:
        return np.array([queue.decode_symbol(tree) for _ in range(count)], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"data: expected {count} symbols; the bits ran out") from error


def _ans(mass: Any) -> tuple[Any, Any]:
    stream = import_extra("constriction", "codec").stream
    return stream, stream.model.Categorical(mass, perfect=False)


def _ans_encode(indices: Any, mass: Any) -> bytes:
    stream, model = _ans(mass)
    message = stream.stack.AnsCoder()
    message.encode_reverse(indices, model)
    return bytes(message.get_compressed().astype(_WORD).tobytes())


def _ans_decode(data: bytes, mass: Any, count: int) -> Any:
    stream, model = _ans(mass)
    _require_data(len(data) % 4 == 0, "whole 32-bit words")
    words = np.frombuffer(data, dtype=_WORD).astype(np.uint32)
    try:
        message = stream.stack.AnsCoder(words)
    except ValueError as error:
        raise DataError("data: expected an ANS message; the last word is zero") from error
    return message.decode(model, count)


def _require_data(good: bool, expected: str) -> None:  # noqa: FBT001
    if not good:
        raise DataError(f"data: expected {expected}. Try: the same p, count and coder as in encode")
