"""Stan models, compiled here and called in this process: many points a call, and no server.

Which to use: `stan_model`, of which `Target.from_stan` makes the target. Stan's compiler (stanc)
and its C++ come with the httpstan wheel, PyStan's own engine; the model is compiled with `stan.cpp`
of this folder behind it and kept in the user's cache folder. Nothing is downloaded.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback.core import (
    ArgumentTypeError,
    ArgumentValueError,
    DataError,
    MissingExtraError,
    RunError,
    compiling,
    message,
    require,
)
from kullback.variational import limits

from .programs import Compiling, Model
from .simulation import Simulation

__all__ = ["stan_model"]

Numbers = NDArray[Any]
_SHIM = Path(__file__).with_name("stan.cpp")
_FLAGS = ("-O3", "-std=c++14", "-w", "-fPIC", "-shared", "-D_REENTRANT", "-DSTAN_THREADS")
_MACROS = ("BOOST_DISABLE_ASSERTS", "BOOST_PHOENIX_NO_VARIADIC_EXPRESSION")
_ABI = "-D_GLIBCXX_USE_CXX11_ABI=0"  # of the libraries in the wheel (manylinux2014)
_LIBRARIES = ("sundials_cvodes", "sundials_idas", "sundials_nvecserial", "tbb")
_PREDICTED = ("_rep", "_pred", "_hat", "_tilde", "_new", "_sim")  # endings of y_rep and its like
_LIKELIHOOD = ("log_lik", "log_likelihood", "loglik")


def stan_model(model: str | Path, data: Mapping[str, Any] | str | Path | None) -> Model:
    """Compile a Stan program, or take it from the cache, and give it its data.

    model: a path to a .stan file, or the program itself. data: values by name, or a JSON file.
    Errors: `MissingExtraError` without httpstan; `ArgumentValueError` for a program that stanc
    refuses, data that do not fit its declarations, or a program without parameters; `DataError`
    for files that cannot be read; `RunError` where it cannot be compiled.
    """
    code, folder = _program(model)
    given = _data(data)
    engine, timer = _Engine.find(), Compiling()
    about = engine.about(code, folder)
    declared = _declared(given, about["inputs"])  # before the compiler, which takes half a minute
    with timer.timed():
        library = engine.compiled(code, folder)
    loaded = _Loaded.of(_Program(library, tuple(about["generated quantities"])), declared)
    require(loaded.dim > 0, "model", "one with parameters to fit", "none")
    return Model(
        score=loaded.score,
        constrain=lambda z: loaded.values(z, generated=False),
        names=loaded.names,
        compiling=timer,
        reason=lambda: loaded.words,
        unconstrain=loaded.unconstrain,
        simulation=_simulation(loaded, given),
        data=declared,
        first_index=1,
        missing="declare the missing values as parameters (Stan User's Guide, Missing Data)",
    )


def _program(model: str | Path) -> tuple[str, Path]:
    """Return the text of a program and the folder of its includes."""
    text = str(model)
    if isinstance(model, str) and "{" in text:
        return text, Path()
    right = isinstance(model, str | Path) and text.endswith(".stan")
    hint = "a path, or the program's text"
    if not right:
        got = repr(text[:40]) if isinstance(model, str | Path) else type(model).__name__
        raise ArgumentValueError(message("model", "a .stan file", got, hint))
    try:
        return Path(model).read_text(encoding="utf-8"), Path(model).parent
    except (OSError, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise DataError(f"{model}: cannot be read: {words}") from error


def _data(data: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    """Return values by name, read from JSON where a file is given."""
    if data is None:
        return {}
    if isinstance(data, str | Path):
        try:
            data = json.loads(Path(data).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{data}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise DataError(f"{data}: not JSON: {error}") from error
    if not isinstance(data, Mapping):
        got = type(data).__name__
        raise ArgumentTypeError(message("data", "values by name, or a .json file", got))
    return data


def _declared(data: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Numbers]:
    """Return the data as the program declares them: integers or reals, of its ranks."""
    missing = [name for name in inputs if name not in data]
    require(not missing, "data", f"values of {[*inputs]}", f"none for {missing}")
    return {name: _array(name, data[name], about) for name, about in inputs.items()}


def _array(name: str, value: Any, about: Mapping[str, Any]) -> Numbers:
    """Return one value as an array of int32 or float64."""
    place, rank = f"data[{name!r}]", about["dimensions"]
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O" and any(one is None for one in array.flat):
            raise TypeError  # NumPy would make NaN of it
        array = array.astype(np.float64) if array.dtype.kind in "UO" else array  # "NaN", "inf"
    except (ValueError, TypeError):
        got = "null, text, or rows of other lengths"
        raise ArgumentValueError(message(place, "a full array of numbers", got)) from None
    require(array.dtype.kind in "biuf", place, "numbers", str(array.dtype))
    if array.size == 0 and array.ndim < rank:
        array = array.reshape((*array.shape, *(0 for _ in range(rank - array.ndim))))
    axes = "a number" if rank == 0 else f"an array of {rank} axes"
    require(array.ndim == rank, place, axes, list(array.shape))
    if about["type"] != "int":
        return array.astype(np.float64)
    bounds = np.iinfo(np.int32)
    whole = bool(np.all((array == np.floor(array)) & (abs(array) <= bounds.max)))
    require(whole, place, "whole numbers of 32 bits, as it is declared int", "others")
    return array.astype(np.int32)


@dataclass(frozen=True, slots=True)
class _Program:
    """A compiled program: its library and the names of its generated quantities."""

    library: ctypes.CDLL
    generated: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Engine:
    """The folder of the httpstan wheel, which has stanc, headers and libraries."""

    folder: Path
    version: str

    @classmethod
    def find(cls) -> "_Engine":
        """Find the wheel, without importing it: its server is not needed."""
        try:
            found = importlib.util.find_spec("httpstan")
        except ValueError:  # a module without a spec
            found = None
        if found is None or found.origin is None:
            words = "httpstan is not installed; it comes with: pip install 'kullback[stan]'"
            raise MissingExtraError(words)
        return cls(Path(found.origin).parent, importlib.metadata.version("httpstan"))

    def about(self, code: str, includes: Path) -> dict[str, Any]:
        """Return what a program declares, by block and name; refuse what is not numbers."""
        about: dict[str, Any] = json.loads(self._stanc(code, includes, "--info"))
        _check_types(about)
        return about

    def compiled(self, code: str, includes: Path) -> ctypes.CDLL:
        """Translate a program to C++ and compile it, or load it from the cache."""
        cpp = self._stanc(code, includes, "--print-cpp") + _SHIM.read_text(encoding="utf-8")
        compiler = compiling.find_compiler(".cpp")
        hint = "apt install g++, or the command line tools of a Mac"
        if compiler is None:
            raise RunError(f"a Stan model needs a C++ compiler, and none was found. Try: {hint}")
        parts = (cpp, self.version, str(self.folder), compiler, _FLAGS, sys.platform)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
        try:
            return _kept(f"stan-{key}.so", lambda made: self._compile(compiler, cpp, made))
        except OSError as error:
            raise RunError(f"the compiled Stan model cannot be kept or loaded: {error}") from error

    def _stanc(self, code: str, includes: Path, what: str) -> str:
        with tempfile.TemporaryDirectory(prefix="kullback-") as folder:
            file = Path(folder) / "model.stan"
            file.write_text(code, encoding="utf-8")
            command = [str(self.folder / "stanc"), what, "--name", "kullback_model"]
            command += ["--include-paths=.", "--filename-in-msg=model", str(file)]
            done = subprocess.run(  # in the folder of includes, so that no path is in the C++
                command, cwd=includes.resolve(), capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            words = done.stderr.strip()
            raise ArgumentValueError(f"model: not a Stan program that stanc accepts:\n{words}")
        return done.stdout

    def _compile(self, compiler: str, cpp: str, made: Path) -> None:
        source, libraries = made.with_suffix(".cpp"), self.folder / "lib"
        source.write_text(cpp, encoding="utf-8")
        macros = [f"-D{name}" for name in _MACROS]
        linked = [f"-L{libraries}", *(f"-l{name}" for name in _LIBRARIES)]
        linked.append(f"-Wl,-rpath,{libraries}")
        command = [compiler, *_FLAGS, _ABI, *macros, f"-I{self.folder / 'include'}"]
        command += [str(source), "-o", str(made), *linked]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=limits.STAN_COMPILE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"{compiler} took more than {error.timeout:.0f} s") from error
        if done.returncode != 0:
            raise RunError(f"{compiler} cannot compile the model: {done.stderr.strip()[-800:]}")


def _check_types(about: Mapping[str, Any]) -> None:
    """Refuse variables that are no arrays of numbers: complex ones and tuples."""
    blocks = ("inputs", "parameters", "transformed parameters", "generated quantities")
    for block in blocks:
        odd = [name for name, one in about[block].items() if one.get("type") not in ("int", "real")]
        require(not odd, "model", f"{block} of reals or integers", f"other types: {odd}")


def _kept(name: str, compile_to: Callable[[Path], None]) -> ctypes.CDLL:
    """Load a library from the cache folder, made first if it is not there."""
    try:
        folder = compiling.cache_folder()
    except OSError:  # no home, or one that others write to: for this process only
        folder = Path(tempfile.mkdtemp(prefix="kullback-"))
    path = folder / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            made = Path(own) / name
            compile_to(made)
            made.replace(path)
    return ctypes.CDLL(str(path))


def _simulation(loaded: "_Loaded", data: Mapping[str, Any]) -> Simulation | None:
    """Sort the generated quantities by their names, as ArviZ's users write them."""
    names = loaded.program.generated
    if not names:
        return None
    likelihood = {name for name in names if name.startswith(_LIKELIHOOD)}
    predicted = {name for name in names if name.endswith(_PREDICTED)} - likelihood
    rest = set(names) - likelihood - predicted
    bases = [name[: -len(end)] for name in predicted for end in _PREDICTED if name.endswith(end)]

    def generated(kept: set[str], values: Mapping[str, Tensor], seed: int) -> dict[str, Numbers]:
        count = len(next(iter(values.values())))
        points = [loaded.unconstrain({k: v[i] for k, v in values.items()}) for i in range(count)]
        found = loaded.values(torch.from_numpy(np.stack(points)), generated=True, seed=seed)
        return {name: found[name] for name in names if name in kept}

    return Simulation(
        observed={name: data[name] for name in sorted(bases) if name in data},
        log_likelihood=partial(generated, likelihood, seed=0) if likelihood else None,
        predictive=partial(generated, predicted) if predicted else None,
        quantities=partial(generated, rest) if rest else None,
    )


class _Loaded:
    """A model with its data: calls into the compiled library, which release the GIL."""

    def __init__(self, program: _Program, pointer: int) -> None:
        self.program, self.library, self.pointer = program, program.library, pointer
        self.words = ""
        self.unconstrained = tuple(self._lines(1, 0, 0))
        self.dim = len(self.unconstrained)

    @classmethod
    def of(cls, program: _Program, data: Mapping[str, Numbers]) -> "_Loaded":
        """Construct the model: Stan checks the data's bounds and sizes."""
        library, words = program.library, _Words()
        library.kullback_new.restype = ctypes.c_void_p
        library.kullback_names.restype = ctypes.c_int64
        for name in ("score", "values", "unconstrain"):
            getattr(library, f"kullback_{name}").restype = ctypes.c_int64
        reals = _Block({n: a for n, a in data.items() if a.dtype.kind == "f"}, np.float64)
        ints = _Block({n: a for n, a in data.items() if a.dtype.kind == "i"}, np.int32)
        seed = ctypes.c_uint64(0)
        pointer = library.kullback_new(*reals.arguments, *ints.arguments, seed, *words.arguments)
        if pointer is None:
            raise ArgumentValueError(f"data: refused by the model: {words}")
        return cls(program, pointer)

    def __del__(self) -> None:
        self.library.kullback_free(ctypes.c_void_p(self.pointer))

    def _lines(self, *which: int) -> list[str]:
        sizes = ctypes.c_int64(0)
        model = ctypes.c_void_p(self.pointer)
        needed = self.library.kullback_names(model, *which, None, sizes)
        words = _Words(needed + 1)
        self.library.kullback_names(model, *which, *words.arguments)
        return str(words).splitlines()

    def shapes(self, *, generated: bool) -> dict[str, tuple[int, ...]]:
        """Return the sides of every value, in the order of `values`."""
        lines = (line.split() for line in self._lines(0, 1, int(generated)))
        return {name: tuple(map(int, sides)) for name, *sides in lines}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name the entries of z: `theta[1,2]`, or `theta{1}` where they are not theta's own.

        Stan names the entries of an array of vectors in another order than z has them, so the
        places of a value with two axes or more are found by moving one entry of z at a time.
        """
        shapes = self.shapes(generated=False)
        parts = [name.partition(".")[::2] for name in self.unconstrained]
        rows: dict[str, list[int]] = {}
        for row, (base, _) in enumerate(parts):
            rows.setdefault(base, []).append(row)
        names = [""] * self.dim
        for base, own in rows.items():
            shape = shapes[base]
            places = [parts[row][1].replace(".", ",") for row in own]
            if len(own) != math.prod(shape):
                places = []
            elif len(shape) > 1:
                places = self._places(base, own, shape)
            for i, row in enumerate(own):
                indexed = f"{base}[{places[i]}]" if places and shape else base
                names[row] = indexed if places else f"{base}{{{i + 1}}}"
        return tuple(names)

    def _places(self, base: str, rows: list[int], shape: tuple[int, ...]) -> list[str]:
        """Return which entry of a value each entry of z moves, `1,2`; none if it moves several."""
        places = []
        for row in rows:
            z = torch.zeros(2, self.dim, dtype=torch.float64)
            z[1, row] = 1.0
            still, moved = self.values(z, generated=False)[base].reshape(2, -1)
            changed = np.flatnonzero(still != moved)
            if len(changed) != 1:
                return []
            place = np.unravel_index(int(changed[0]), shape)
            places.append(",".join(str(int(one) + 1) for one in place))
        return places

    def score(self, z: Tensor) -> tuple[Numbers, Numbers]:
        """Return log p `[n]` and its gradient `[n, dim]`; NaN at points that Stan refuses."""
        points = _points(z)
        log_p, gradient = np.empty(len(points)), np.empty_like(points)
        self._call("score", points, _address(log_p), _address(gradient))
        return log_p, gradient

    def values(self, z: Tensor, *, generated: bool, seed: int = 0) -> dict[str, Numbers]:
        """Return parameters, transformed ones and, if asked, generated quantities, by name."""
        points, shapes = _points(z), self.shapes(generated=generated)
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        flat = np.empty((len(points), sum(sizes)))
        options = ctypes.c_int(int(generated)), ctypes.c_uint64(seed), ctypes.c_int64(sum(sizes))
        self._call("values", points, *options, _address(flat))
        parts = np.split(flat, np.cumsum(sizes)[:-1], axis=1)
        return {
            name: _from_columns(part, shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def unconstrain(self, values: Mapping[str, Any]) -> Numbers:
        """Return z `[dim]` of one value of every parameter, by name."""
        parameters = [line.split()[0] for line in self._lines(0, 0, 0)]
        missing = [name for name in parameters if name not in values]
        require(not missing, "values", f"one of each of {parameters}", f"none of {missing}")
        given = {name: np.asarray(values[name], dtype=np.float64) for name in parameters}
        block, z, words = _Block(given, np.float64), np.empty(self.dim), _Words()
        model, dim = ctypes.c_void_p(self.pointer), ctypes.c_int64(self.dim)
        call = self.library.kullback_unconstrain
        if call(model, *block.arguments, dim, _address(z), *words.arguments) < 0:
            raise ArgumentValueError(f"values: refused by the model: {words}")
        return z

    def _call(self, name: str, points: Numbers, *rest: Any) -> None:
        words = _Words()
        first = (ctypes.c_void_p(self.pointer), *map(ctypes.c_int64, points.shape))
        call = getattr(self.library, f"kullback_{name}")
        refused = call(*first, _address(points), *rest, *words.arguments)
        if refused < 0:
            raise RunError(f"Stan: {words}")
        if refused:
            self.words = str(words).strip()


class _Words:
    """Room for what the library says."""

    def __init__(self, size: int = limits.STAN_MESSAGE) -> None:
        self.buffer = ctypes.create_string_buffer(size)
        self.arguments = (self.buffer, ctypes.c_int64(size))

    def __str__(self) -> str:
        return self.buffer.value.decode("utf-8", "replace")


class _Block:
    """Named arrays of one dtype as the library takes them: names, ranks, sides, numbers."""

    def __init__(self, arrays: Mapping[str, Numbers], dtype: type) -> None:
        sides = [side for array in arrays.values() for side in array.shape]
        flat: list[Numbers] = [array.astype(dtype).ravel(order="F") for array in arrays.values()]
        self.kept = (
            np.array([array.ndim for array in arrays.values()], dtype=np.int64),
            np.array(sides, dtype=np.int64),
            np.concatenate([np.empty(0, dtype), *flat]),
        )
        self.arguments = ("\n".join(arrays).encode(), *map(_address, self.kept))


def _address(array: Numbers) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _points(z: Tensor) -> Numbers:
    return np.ascontiguousarray(z.detach().numpy(), dtype=np.float64)


def _from_columns(flat: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Return `[n, *shape]` of columns in Stan's order, the first index fastest."""
    stacked = flat.reshape(len(flat), *reversed(shape))
    return np.ascontiguousarray(stacked.transpose(0, *range(len(shape), 0, -1)))
