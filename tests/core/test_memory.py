"""Freed memory stays with the process inside `memory_kept`, and is given back after it."""

import sys

import pytest
import torch

from kullback.core import memory, memory_kept

resource = pytest.importorskip("resource")
glibc = pytest.mark.skipif(memory._glibc() is None, reason="malloc is not glibc's")
NUMBERS = 2**24  # 64 MB: 16,384 pages of 4 KB


def faults_of(times):
    """Count the pages that are faulted in anew while a tensor is made and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(NUMBERS).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_memory_that_was_freed_is_not_faulted_in_again():
    with memory_kept():  # a few times it grows: what lies beside it keeps it from its old place
        assert min(faults_of(1) for _ in range(12)) < NUMBERS * 4 // resource.getpagesize() // 2


@glibc
def test_it_is_given_back_afterwards():
    def resident():
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * resource.getpagesize()

    before = resident()
    with memory_kept():
        faults_of(2)
    assert resident() - before < NUMBERS  # a quarter of what was held
    assert sys.platform.startswith("linux")


def test_unwanted_it_changes_nothing():
    with memory_kept(wanted=False):
        assert torch.ones(3).sum() == 3.0
