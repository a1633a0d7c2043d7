"""What the command line tells JAX of the cores of a CPU."""

import os

import pytest

from gorl_cli._cores import use_every_core


def test_each_core_is_a_device(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    use_every_core()
    assert 1 <= int(os.environ["JAX_NUM_CPU_DEVICES"]) <= os.cpu_count()


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_NUM_CPU_DEVICES", "7"), ("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=7")],
)
def test_what_the_environment_says_stays(monkeypatch, name, value):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv(name, value)
    use_every_core()
    assert os.environ[name] == value
    assert os.environ.get("JAX_NUM_CPU_DEVICES", "7") == "7"
