"""Several processes of one command, as torchrun starts them: who each one is, and what they send.

Which to use: `joined` around the work of a command; `current` in a library function, for the
processes of a `torch.distributed` group that exists already; `Processes` then sends. `speaks` says
whether this process may write to the terminal: the first one does, and another one only with an
error that the first did not meet. No torch is imported before there are two processes.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .errors import RunError, require
from .limits import COLLECTIVE_SECONDS, SECONDS_TO_SPEAK

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LostProcessError",
    "Processes",
    "current",
    "joined",
    "leave",
    "own_gpu",
    "place",
    "speaks",
]


# what errors of torch's sums have in their text
SENDING_ERRORS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class LostProcessError(RunError):
    """Another process of the group has ended, or did not answer in time."""


@dataclass(slots=True)
class Processes:
    """This process's number and how many there are; every method is called by all of them.

    Args:
        rank: From 0, the first one, which alone writes files and prints.
        size: How many processes there are; with 1 nothing is sent.
        calls: Collectives so far.
        sent: Bytes of the tensors in them so far (what crosses the network depends on the
            algorithm: 2(N−1)/N of them for a ring).

    Example:
        >>> Processes(1, 4).share(10)
        slice(2, 5, None)
    """

    rank: int = 0
    size: int = 1
    calls: int = 0
    sent: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return which of `count` items are this process's: consecutive, in the order of ranks."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum_(self, values: "Tensor") -> "Tensor":
        """Replace a tensor by its sum over all processes; the same bits in each."""
        if self.size > 1:
            from torch import distributed

            with self._sending(values):
                distributed.all_reduce(values)
        return values

    def copy_first_(self, values: "Tensor") -> "Tensor":
        """Replace a tensor by that of the first process."""
        if self.size > 1:
            from torch import distributed

            with self._sending(values):
                distributed.broadcast(values, 0)
        return values

    def reduce_(self, values: "Tensor", owner: int) -> None:
        """Replace a tensor by its sum over all processes in its owner; elsewhere it is lost.

        On a CPU the others send it, and the owner adds: (N−1)/N of it is sent by each on average.
        gloo's reduce sends 1.10 of it by two and 1.03 by four, its reduce-scatter is an all-reduce.
        """
        if self.size == 1:
            return
        from torch import distributed

        with self._sending(values):
            if values.is_cuda:
                distributed.reduce(values, owner)
            elif self.rank != owner:
                distributed.send(values, owner)
            else:
                found = values.new_empty(values.shape)
                for rank in range(self.size):
                    if rank != owner:
                        distributed.recv(found, rank)
                        values += found

    def all_gather_(self, whole: "Tensor", own: "Tensor") -> None:
        """Fill a tensor `[size · n]` with those `[n]` of all, in order; own may be in it.

        On a CPU by a broadcast of each: gloo's all-gather holds the whole twice, and takes four
        times the processor time (30 million numbers by two: 118 ms, 22 by broadcasts).
        """
        if self.size == 1:
            return
        import torch
        from torch import distributed

        with self._sending(whole):
            if whole.is_cuda:
                older = "all_gather_into_tensor"  # its name before torch 2.13
                gather = getattr(distributed, "all_gather_single", None)
                (gather or getattr(distributed, older))(whole, own)
                return
            parts = torch.split(whole, own.numel())
            if parts[self.rank].data_ptr() != own.data_ptr():
                parts[self.rank].copy_(own)
            for rank, part in enumerate(parts):
                distributed.broadcast(part, rank)

    def collect(self, own: "Tensor") -> "Iterator[Tensor]":
        """Yield in the first process the tensors of all, one after the other; elsewhere send it."""
        if self.size == 1:
            yield own
            return
        from torch import distributed

        if not self.first:
            with self._sending(own):
                distributed.send(own, 0)
            return
        yield own
        found = own.new_empty(own.shape)  # one for all: of no use after the next
        for rank in range(1, self.size):
            with self._sending(found):
                distributed.recv(found, rank)
            yield found

    def hand_out(self, own: "Tensor", parts: "Iterable[Tensor]") -> None:
        """Fill a tensor with the first process's part for this one; parts: of no use elsewhere."""
        from torch import distributed

        if not self.first:
            with self._sending(own):
                distributed.recv(own, 0)
            return
        for rank, part in enumerate(parts):
            if rank == 0:
                own.copy_(part)
                continue
            with self._sending(own):
                distributed.send(part.to(own).contiguous(), rank)

    def told(self, value: Any) -> Any:
        """Return what the first process has: anything that JSON holds."""
        if self.size == 1:
            return value
        import torch

        text = json.dumps(value).encode()
        length = self.copy_first_(torch.tensor([len(text)]))
        found = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            found = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return json.loads(bytes(self.copy_first_(found).tolist()))

    def wait(self) -> None:
        """Wait for all."""
        if self.size > 1:
            import torch

            self.sum_(torch.zeros(1))

    def require_same(self, what: str, value: Any) -> None:
        """Raise an ArgumentValueError in every process unless all have the same value."""
        if self.size == 1:
            return
        import torch

        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        own = torch.tensor(list(digest))
        others = int(self.sum_((self.copy_first_(own.clone()) != own).any().long()))
        expected = f"the same {what} in all {self.size}"
        require(others == 0, "processes", expected, f"others than in the first in {others}")

    @contextmanager
    def _sending(self, values: "Tensor") -> Iterator[None]:
        """Count what is sent, and name the error of a process that is gone."""
        self.calls += 1
        self.sent += values.numel() * values.element_size()
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error

    @contextmanager
    def watched(self) -> "Iterator[None]":
        """Name the error of a process that is gone where a block sends in other ways too.

        Raises:
            LostProcessError: Another process ended inside the block.
        """
        try:
            yield
        except RuntimeError as error:
            if not any(sign in str(error) for sign in SENDING_ERRORS):
                raise  # of the computation
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> LostProcessError:
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        what = f"did not answer in {_seconds():g} s" if late else "has ended or was killed"
        return LostProcessError(f"processes: another of the {self.size} {what}")


def current() -> Processes:
    """Return the processes of the `torch.distributed` group, or this one alone without a group.

    Returns:
        A new record; its counts begin at 0.

    Example:
        >>> current()
        Processes(rank=0, size=1, calls=0, sent=0)
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


def _started() -> int:
    """Return how many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _seconds() -> float:
    """Return how long a process waits for another before it gives up."""
    return float(os.environ.get("KULLBACK_COLLECTIVE_SECONDS") or COLLECTIVE_SECONDS)


_elected = False


def speaks() -> bool:
    """Say whether this process may write to the terminal.

    Returns:
        True for the first process and where there is one only; for another one after it has met an
        error that the first one did not tell.

    Example:
        >>> speaks()
        True
    """
    return _elected or _started() == 1 or int(os.environ.get("RANK") or 0) == 0


def place() -> tuple[int, int]:
    """Return which process of torchrun's this is, and how many it started.

    Variables of other launchers (`WORLD_SIZE` alone) do not count: there is then one process.

    Returns:
        Number from 0, and size.

    Example:
        >>> place()
        (0, 1)
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK") or 0), _started()


def leave(code: int) -> None:
    """Exit with a code, from the main thread of a command.

    One of several processes leaves without the interpreter's own end: threads of torch's sums then
    sometimes abort it ("terminate called without an active exception"), for which torchrun says
    that the command has failed.

    Args:
        code: The exit code.

    Example:
        >>> try:
        ...     leave(3)
        ... except SystemExit as end:
        ...     print(end.code)
        3
    """
    if _started() > 1:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def own_gpu(device: str) -> str:
    """Return the GPU of this process where "cuda" stands for any; other devices as they are.

    Args:
        device: "cuda", "cpu", …

    Returns:
        With several processes `cuda:LOCAL_RANK`.

    Raises:
        ArgumentValueError: More processes on this machine than it has GPUs, or one GPU for all.

    Example:
        >>> own_gpu("cpu")
        'cpu'
    """
    if _started() == 1 or not device.startswith("cuda"):
        return device
    import torch

    hint = "device cuda, of which each process takes its own"
    require(device == "cuda", "device", "one GPU a process", repr(device), hint)
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
    expected = f"a GPU for each of the {here} processes of this machine"
    require(here <= gpus, "device", expected, f"{gpus}", f"--nproc-per-node {gpus}, or device cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK') or 0}"


@contextmanager
def joined(*, gpus: bool = False) -> Iterator[Processes]:
    """Join the other processes that torchrun started, for the time of a block.

    Sums of tensors on the CPU go through gloo, those on a GPU through NCCL. With one process
    nothing is joined. A process waits `KULLBACK_COLLECTIVE_SECONDS` (1,800 where it is not set) for
    another one.

    Args:
        gpus: Whether tensors on GPUs will be sent.

    Yields:
        The processes.

    Raises:
        LostProcessError: Another process ended inside the block.

    Example:
        >>> with joined() as processes:
        ...     processes.size
        1
    """
    if _started() == 1:
        yield Processes()
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(iter(rendezvous("env://")))
    nccl = gpus and torch.cuda.is_available() and distributed.is_nccl_available()
    if nccl:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_seconds()),
    )
    try:
        yield current()
        current().wait()  # torchrun ends all when one ends badly, a report half written
    except Exception as error:
        _elect(store, rank, error)
        raise
    distributed.destroy_process_group()


def _elect(store: Any, rank: int, error: Exception) -> None:
    """Let one process alone tell its error: the first one, where it has one too."""
    global _elected
    key = "kullback error told"
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, before it is said why
    try:
        if rank == 0:
            store.set(key, "0")
            return
        last = time.monotonic() + SECONDS_TO_SPEAK
        while not store.check([key]):
            if time.monotonic() > last:
                _elected = store.add(f"{key} by another", 1) == 1
                break
            time.sleep(0.1)
    except RuntimeError:  # torchrun, which holds the store, is gone
        return
    if _elected and error.args:
        error.args = (f"process {rank}: {error}", *error.args[1:])
