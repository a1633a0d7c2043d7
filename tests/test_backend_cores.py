"""How many cores a process may use."""

import os

import pytest

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
