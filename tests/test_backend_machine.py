"""How many cores and how much memory a process may use."""

import math
import os

import pytest

from gorl._backend._machine import memory_of_machine
from gorl.internal import num_cores


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine on which the affinity mask allows eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.fixture
def cgroups(tmp_path):
    """Makes a directory as Linux has it in /sys/fs/cgroup."""

    def make(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return tmp_path

    return make


def version_1(quota, period=100_000):
    return {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),  # a part of a core is a core
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "3200000 100000"}, 8),
        ({"cpu.max": "max 100000"}, 8),
        (version_1(300_000), 3),
        (version_1(-1), 8),  # no limit
        (version_1(0), 8),
        ({}, 8),  # another system
        ({"cpu.max": "of something else"}, 8),
    ],
)
@pytest.mark.usefixtures("eight_cores")
def test_the_smaller_of_the_affinity_mask_and_the_quota_of_the_container(cgroups, files, cores):
    assert num_cores(cgroups(files)) == cores


def test_without_an_affinity_mask_the_cores_of_the_machine_count(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert num_cores(tmp_path) == 6


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"memory.max": 2**30}, 2**30),
        ({"memory.max": "max"}, 2**33),
        ({"memory/memory.limit_in_bytes": 2**31}, 2**31),
        ({"memory/memory.limit_in_bytes": 2**63 - 4096}, 2**33),  # no limit
        ({}, 2**33),  # another system
    ],
)
def test_the_smaller_of_the_memory_of_the_machine_and_the_limit_of_the_container(cgroups, monkeypatch, files, memory):
    eight_gibibytes = {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**21}
    monkeypatch.setattr(os, "sysconf", eight_gibibytes.__getitem__, raising=False)
    assert memory_of_machine(cgroups(files)) == memory


def test_without_a_known_memory_there_is_no_limit(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory_of_machine(tmp_path) == math.inf
