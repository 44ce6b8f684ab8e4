"""One function called on many inputs in other processes, which import nothing of the user's.

`in_processes` gives the results in the order of the inputs, whatever the number of processes. The
interpreter runs one thread at a time, so threads decode small pictures no faster than one does.
A process is `python -c` with a pipe for inputs and one for results, not a `multiprocessing` one:
that would run the user's script again, which then needs an `if __name__ == "__main__"`. It ends
when its pipe closes, also where the parent was killed. Where one cannot be started, or dies, its
inputs are worked on in the parent.
"""

import contextlib
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

from .. import limits

__all__ = ["available_cores", "in_processes", "serve"]

_Input = TypeVar("_Input")
_Result = TypeVar("_Result")
_START = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from kullback.data.pictures.workers import serve; serve()"
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_MEMORY = str(limits.KEPT_MEMORY)  # glibc gives memory of small files back, and faults it in again
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": _MEMORY, "MALLOC_MMAP_THRESHOLD_": _MEMORY}
_GONE = (OSError, EOFError, ValueError, pickle.UnpicklingError)  # of a pipe whose process died


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    function: Callable[[_Input], _Result], inputs: Sequence[_Input], processes: int
) -> Iterator[_Result]:
    """Yield `function(x)` for every input x, in their order, worked out in other processes.

    Args:
        function: One that can be pickled: of a module of this package, or a partial of one. What
            it raises in a process it raises again in the parent, where it is called once more.
        inputs: That can be pickled.
        processes: How many.

    Yields:
        The results.
    """
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    started = [_Process(function) for _ in range(processes)]
    for process in started:
        idle.put(process)

    def ask(x: _Input) -> _Result:
        process = idle.get()
        try:
            return process.ask(x)  # type: ignore[no-any-return]
        finally:
            idle.put(process)

    pool = ThreadPoolExecutor(processes)
    try:
        yield from pool.map(ask, inputs)
    finally:  # also after Ctrl-C, or where the caller has seen enough: what is not begun is left
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            process.end()
        pool.shutdown()


class _Process:
    """One process and its pipes, or none any more: then `ask` calls the function itself."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.child: subprocess.Popen[bytes] | None = None
        path = [place or os.getcwd() for place in sys.path if isinstance(place, str)]  # noqa: PTH109
        with contextlib.suppress(OSError, ValueError, TypeError):  # no interpreter, no memory
            self.child = subprocess.Popen(
                [sys.executable, "-I", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**_KEEP_MEMORY, **os.environ, **_ONE_THREAD},
            )
        with contextlib.suppress(*_GONE):
            self._send(path)
            self._send(function)

    def ask(self, x: Any) -> Any:
        if self.child is not None:
            try:
                self._send(x)
                return pickle.load(self.child.stdout)  # type: ignore[arg-type]
            except _GONE:
                self.end()
        return self.function(x)

    def end(self) -> None:
        """Stop the process and wait for its end."""
        child, self.child = self.child, None
        if child is None:
            return
        child.kill()
        with contextlib.suppress(OSError, ValueError), child:
            pass  # closes the pipes and waits

    def _send(self, x: Any) -> None:
        if self.child is None:
            return
        pipe: IO[bytes] = self.child.stdin  # type: ignore[assignment]
        pickle.dump(x, pipe, protocol=pickle.HIGHEST_PROTOCOL)
        pipe.flush()


def serve() -> None:
    """Answer inputs from standard input until it ends; the body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent acts
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no result
    warnings.simplefilter("ignore")
    source = sys.stdin.buffer
    function = pickle.load(source)
    gc.freeze()  # the modules are not searched for garbage again and again
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(function(pickle.load(source)), results, pickle.HIGHEST_PROTOCOL)
            results.flush()
