"""What P, Q, a joint table and samples can be, turned into tensors or torch distributions.

Which to use: `read_one` and `read_pair` for distributions, `read_array` for plain numbers.
Tables: lists, tuples, dictionaries of names and masses, NumPy arrays, pandas Series and DataFrames
(told by what they offer: neither is imported for it), tensors, and text such as "0.5, 0.25, 25%".
Distributions: torch's, SciPy's frozen ones, and text such as "N(0, 1)".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback.core import ArgumentTypeError, ArgumentValueError, message, require

from .named_distributions import FAMILIES, family_of, parse
from .scipy_distributions import from_scipy, is_scipy, shifted
from .typed_numbers import read_typed, short

__all__ = ["Given", "read_aligned", "read_array", "read_one", "read_pair"]

_KINDS = (
    "a table (list, dictionary, NumPy array, pandas Series, tensor), a torch or frozen SciPy "
    'distribution, or text such as "0.5,0.25,0.25" or "N(0,1)"'
)
_TEXTS = 'text such as "0.5,0.25,0.25" or "normal(0,1)"'
_FILES = (".csv", ".tsv", ".txt", ".dat", ".json", ".npy", ".npz")
_SHOWN = 5  # names of outcomes in a message


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """P or Q as read: a table `[*batch, outcomes]` or a distribution, and names where it has any.

    labels: names of the outcomes, the last axis. rows: names along the axis before it.
    shift: of a distribution, what x is moved by; `source` is what it came from.
    made: whether the tensor was made here, and so may change its device.
    """

    value: Any
    labels: tuple[Any, ...] = ()
    rows: tuple[Any, ...] = ()
    shift: Tensor | None = None
    source: Any = None
    made: bool = True

    @property
    def table(self) -> bool:
        """Whether it is a table."""
        return isinstance(self.value, Tensor)

    @property
    def distribution(self) -> Distribution:
        """The distribution, moved by its shift."""
        if self.shift is None:
            found: Distribution = self.value
            return found
        return shifted(self.value, self.shift, self.source)


def read_one(value: Any, *, name: str = "p", normalise: bool = False) -> Given:
    """Turn anything that stands for a distribution into a table or a torch distribution.

    Args:
        value: As the module says. Lists and integers become float64; floats keep their dtype.
        name: The argument's name in messages.
        normalise: Whether the weights of a mixture that is given as text may have any sum.

    Returns:
        The table or distribution. Whether a table sums to 1 is not looked at here.

    Raises:
        TypeError: For what stands for no distribution.
        ValueError: For text that cannot be read, parameters out of range, missing values.

    Example:
        >>> read_one("1/2, 25%, 25%").value
        tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
        >>> read_one({"a": 0.5, "b": 0.5}).labels
        ('a', 'b')
    """
    if isinstance(value, str):
        return _read_text(value, name, normalise=normalise)
    if isinstance(value, Distribution):
        return Given(value)
    if is_scipy(value):
        law, shift = from_scipy(value, name)
        return Given(law, shift=shift, source=value)
    if isinstance(value, Mapping):
        given = Given(read_array(list(value.values()), name), tuple(map(_label, value)))
    else:
        table = read_array(value, name, expected=_KINDS)
        labels, rows = _labels_of(value)
        given = Given(table, labels, rows, made=not isinstance(value, Tensor))
    hint = "[x, 1 - x] for the chance x of one of two outcomes"
    require(given.value.ndim >= 1, name, "a table [*batch, outcomes]", "a single number", hint)
    return given


def read_pair(p: Any, q: Any, *, normalise: bool = False) -> tuple[Any, Any]:
    """Turn P and Q into two tables or two distributions that fit each other.

    Args:
        p: Anything that `read_one` takes.
        q: The same. Where both name their outcomes, they are matched by name.
        normalise: As in `read_one`.

    Returns:
        Two tensors or two torch distributions. A shift that both SciPy distributions share is left
        out: it changes no divergence.

    Raises:
        TypeError: For one table and one distribution, or what stands for neither.
        ValueError: For names of outcomes that only one of them has; as in `read_one`.

    Example:
        >>> read_pair({"a": 0.9, "b": 0.1}, {"b": 0.5, "a": 0.5})[1]
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    first = read_one(p, name="p", normalise=normalise)
    second = read_one(q, name="q", normalise=normalise)
    if first.table != second.table:
        kinds = {True: "a table", False: "a distribution"}
        got = f"{kinds[first.table]} and {kinds[second.table]}"
        hint = "torch.distributions.Categorical(table), or the distribution's probs as a table"
        expected = "two tables or two distributions"
        raise ArgumentTypeError(message("p and q", expected, got, hint))
    if first.table:
        second = _matched(first, second)
    _require_batches(first, second)
    if first.table:
        return _fitted(first, second)
    if first.shift is not None and second.shift is not None and _same(first.shift, second.shift):
        return first.value, second.value
    return first.distribution, second.distribution


def _require_batches(first: Given, second: Given) -> None:
    """Refuse batches that do not broadcast."""
    shapes = [
        list(given.value.shape[:-1] if given.table else given.value.batch_shape)
        for given in (first, second)
    ]
    pairs = zip(reversed(shapes[0]), reversed(shapes[1]), strict=False)
    fits = all(a == b or 1 in (a, b) for a, b in pairs)
    expected = "batch shapes that are equal or broadcast"
    require(fits, "p and q", expected, f"{shapes[0]} and {shapes[1]}")


def read_aligned(
    first: Any, second: Any, names: tuple[str, str], *, paired: bool, expected: str = "numbers"
) -> tuple[Tensor, Tensor]:
    """Turn two sets of samples into tensors; pandas objects are matched by name, not by place.

    Args:
        first: What `read_array` takes.
        second: The same.
        names: The arguments' names, for messages.
        paired: Whether both hold numbers of the same samples, so that a pandas index must agree.
            Where not, only the columns of two DataFrames must.
        expected: What may stand there, for the message.

    Returns:
        Two tensors, the second in the first one's order.

    Raises:
        TypeError: As `read_array`.
        ValueError: As `read_array`; for names that only one of them has.

    Example:
        >>> import pandas as pd
        >>> a, b = pd.Series([1.0, 2.0], index=["x", "y"]), pd.Series([2.0, 1.0], index=["y", "x"])
        >>> read_aligned(a, b, ("a", "b"), paired=True)[1]
        tensor([1., 2.], dtype=torch.float64)
    """
    given = []
    for value, name in zip((first, second), names, strict=True):
        array = read_array(value, name, expected=expected)
        labels, rows = _labels_of(value)
        if not paired:
            labels, rows = (labels if array.ndim == 2 else ()), ()
        given.append(Given(array, labels, rows))
    return given[0].value, _matched(given[0], given[1], names).value


def read_array(value: Any, name: str, *, expected: str = "numbers") -> Tensor:
    """Turn numbers into a float tensor: tensors as they are, with their gradients.

    Args:
        value: Nested lists or tuples, a NumPy array, anything that NumPy reads, or a tensor.
        name: The argument's name in messages.
        expected: What may stand there, for the message.

    Returns:
        The tensor; float64 unless the numbers are floats of another width.

    Raises:
        TypeError: For anything but real numbers.
        ValueError: For ragged lists and masked or missing values.

    Example:
        >>> read_array([[1, 0], [0.5, 0.5]], "p").dtype
        torch.float64
    """
    if isinstance(value, Tensor):
        return _dense(value, name)
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return _stacked(value, name)
    try:
        array = np.ma.asarray(value) if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    except ValueError as error:
        raise ArgumentValueError(message(name, "rows of one length", "ragged rows")) from error
    whole = not np.ma.is_masked(array)
    require(whole, name, "numbers without gaps", "masked values", "fill them first")
    if array.dtype.kind == "O":
        array = _from_objects(array, name, expected, value)
    if array.dtype.kind not in "fiu":
        got = type(value).__name__ if array.dtype.kind == "O" else f"{array.dtype} values"
        raise ArgumentTypeError(message(name, expected, got))
    keep = array.dtype.kind == "f" and array.dtype.itemsize <= np.dtype(np.float64).itemsize
    dtype = array.dtype.newbyteorder("=") if keep else np.dtype(np.float64)
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _dense(value: Tensor, name: str) -> Tensor:
    """Return a tensor with values in memory; integers, such as counts, as float64."""
    require(value.device.type != "meta", name, "a tensor with values", "one on the device 'meta'")
    value = value if value.layout == torch.strided else value.to_dense()
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return value.double() if whole else value


def _from_objects(array: Any, name: str, expected: str, value: Any) -> Any:
    """Read fractions, decimals and pandas' own numbers; refuse all other objects."""
    missing = array.ndim and any(item is None for item in array.flat)
    require(not missing, name, "numbers without gaps", "None among them", "fill them first")
    try:
        if not array.ndim:
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        got = type(value).__name__ if not array.ndim else f"{type(value).__name__} of other things"
        raise ArgumentTypeError(message(name, expected, got)) from error


def _stacked(values: Any, name: str) -> Tensor:
    rows = [read_array(value, name) for value in values]
    shapes = {tuple(row.shape) for row in rows}
    require(len(shapes) == 1, name, "rows of one length", "ragged rows")
    dtype = rows[0].dtype
    for row in rows:
        dtype = torch.promote_types(dtype, row.dtype)
    return torch.stack([row.to(dtype) for row in rows])


def _labels_of(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the names of outcomes and of rows that a pandas Series or DataFrame has."""
    index, columns = getattr(value, "index", None), getattr(value, "columns", None)
    if not hasattr(value, "to_numpy") or not hasattr(index, "tolist"):
        return (), ()
    names = tuple(map(_label, index.tolist()))  # type: ignore[union-attr]
    return (names, ()) if columns is None else (tuple(map(_label, columns.tolist())), names)


def _label(name: Any) -> Any:
    """Return a name that equals itself, which NaN does not."""
    return "NaN" if isinstance(name, float) and name != name else name


def _matched(first: Given, second: Given, names: tuple[str, str] = ("p", "q")) -> Given:
    """Return the second table in the first one's order of outcomes (and of rows)."""
    value = second.value
    for axis, mine, other in (
        (-1, first.labels, second.labels),
        (-2, first.rows, second.rows),
    ):
        if mine and other and mine != other:
            value = value.index_select(axis, _order(mine, other, names))
    return replace(second, value=value)


def _order(mine: tuple[Any, ...], other: tuple[Any, ...], names: tuple[str, str]) -> Tensor:
    which, what = " and ".join(names), "outcomes" if names == ("p", "q") else "names"
    once = len(set(mine)) == len(mine) and len(set(other)) == len(other)
    require(once, which, "each outcome once in an index", "an index that repeats one")
    both = set(mine) & set(other)
    strangers = [label for label in (*mine, *other) if label not in both]
    shown = ", ".join(map(str, strangers[:_SHOWN]))
    hint = f"{names[0]}.align({names[1]}, fill_value=0), or .to_numpy() to match by place"
    got = f"{shown} in only one of them"
    require(not strangers, which, f"the same {what}", got, hint)
    places = {label: place for place, label in enumerate(other)}
    return torch.tensor([places[label] for label in mine])


def _fitted(first: Given, second: Given) -> tuple[Tensor, Tensor]:
    """Return both tables on one device: one made here goes to that of the other."""
    p, q = first.value, second.value
    if first.made:
        return p.to(q.device), q
    return p, q.to(p.device) if second.made else q


def _same(first: Tensor, second: Tensor) -> bool:
    return bool((first == second).all()) and first.ndim == second.ndim


def _read_text(text: str, name: str, *, normalise: bool) -> Given:
    typed = read_typed(text)
    if typed is not None:
        labels, numbers = typed
        return Given(torch.tensor(numbers, dtype=torch.float64), labels)
    if "(" in text:
        return Given(parse(text, name=name, normalise=normalise, remedy="normalise=True"))
    family = family_of(text)
    hint = f"{family}(...), written {FAMILIES[family].usage}" if family else ""
    if text.strip().lower().endswith(_FILES):
        hint = "numpy.loadtxt or pandas.read_csv for a file, or the command: kullback kl FILE FILE"
    raise ArgumentValueError(message(name, _TEXTS, short(text), hint))
