"""What the command line tells JAX: where compiled programs are kept, and the number of devices."""

import os
import subprocess
import sys

import pytest

import gorl
from gorl_cli._environment import keep_programs, use_every_core

TRAIN = (
    "train", "MultiGoal", "--seeds", "1", "--stages", "1", "--steps", "80", "--set=learner.num_envs=4",
    "--set=learner.unroll_length=5", "--set=learner.num_minibatches=1", "--set=env.episode_length=5",
    "--set=evaluation_episodes=2",
)  # fmt: skip


@pytest.fixture
def gorl_in(tmp_path):
    """`gorl` in a process of its own, as a user has it, whose cache is a directory that nothing is in yet."""

    def run(*arguments, **environment):
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        return subprocess.run(
            [sys.executable, "-m", "gorl_cli", *map(str, arguments)],
            env=inherited | {"XDG_CACHE_HOME": str(tmp_path / "user"), **environment},
            capture_output=True,
            text=True,
        )

    return run


def programs(directory):
    return {path.name for path in directory.glob("*-cache")}


def test_programs_are_kept_and_used_the_next_time(gorl_in, tmp_path):
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # rather than where it took long enough this time
    first = gorl_in(*TRAIN, "--out", tmp_path / "first", **always)
    assert first.returncode == 0, first.stderr
    kept = programs(tmp_path / "user" / "gorl")
    assert any("advance" in name for name in kept), kept
    second = gorl_in(*TRAIN, "--out", tmp_path / "second", **always, JAX_LOG_COMPILES="1", JAX_EXPLAIN_CACHE_MISSES="1")
    assert second.returncode == 0, second.stderr
    assert programs(tmp_path / "user" / "gorl") == kept
    assert "Persistent compilation cache hit for 'jit__advance_seeds'" in second.stderr
    policies = [(tmp_path / name / "policies.eqx").read_bytes() for name in ("first", "second")]
    assert policies[0] == policies[1], "a program from disk has to be the program"


def test_the_cache_can_be_moved_and_turned_off(gorl_in, finished_run, tmp_path):
    evaluate = ("eval", finished_run.directory, "--episodes", 1, "--seed", 5)
    assert gorl_in("--cache", "off", *evaluate).returncode == 0
    assert not (tmp_path / "user" / "gorl").exists()  # matplotlib keeps something there as well
    assert gorl_in("--cache", tmp_path / "mine", *evaluate).returncode == 0
    assert programs(tmp_path / "mine")
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "other-cache").write_text("a program of somebody else's, kept without a limit")
    done = gorl_in(*evaluate, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax"))
    assert done.returncode == 0
    assert "cache" not in done.stderr
    assert len(programs(tmp_path / "jax") - {"other-cache"}) > 0
    assert (tmp_path / "jax" / "other-cache").exists()
    assert not (tmp_path / "user" / "gorl").exists()


def test_a_cache_that_cannot_be_is_refused(gorl_in, tmp_path):
    (tmp_path / "file").write_text("")
    done = gorl_in("--cache", tmp_path / "file", *TRAIN, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("gorl: --cache ")
    assert "Give another, or off." in done.stderr
    assert not (tmp_path / "run").exists()


LIMIT = "JAX_COMPILATION_CACHE_MAX_SIZE"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The environment variables of a process of which nothing is known but where its cache is."""
    variables = {"XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", variables)
    return variables


def test_the_limit_is_that_of_a_directory_of_gorls_own(environment, tmp_path):
    keep_programs(None)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "gorl")
    assert environment[LIMIT] == str(2 * 1024**3)


@pytest.mark.parametrize("limit", ["-1", "1000"])
def test_a_limit_of_the_users_stays(environment, limit):
    environment[LIMIT] = limit
    keep_programs(None)
    assert environment[LIMIT] == limit


def test_a_directory_of_the_users_has_no_limit_but_theirs(environment, tmp_path):
    keep_programs(tmp_path / "mine")
    assert LIMIT not in environment
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "theirs")
    keep_programs(None)
    assert LIMIT not in environment
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "theirs")
    environment[LIMIT] = "1000"
    keep_programs(tmp_path / "mine")
    assert environment[LIMIT] == "1000"


def test_programs_that_would_keep_others_from_being_stored_are_removed(environment, tmp_path):
    own = tmp_path / "gorl"
    own.mkdir()
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (own / name).touch()
    environment[LIMIT] = "-1"
    keep_programs(None)
    assert programs(own) == {"whole-cache", "half-cache"}, "without a limit nothing is in the way"
    del environment[LIMIT], environment["JAX_COMPILATION_CACHE_DIR"]
    keep_programs(None)
    assert programs(own) == {"whole-cache"}


# --- Devices. ---


def test_each_core_is_a_device(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    use_every_core()
    assert os.environ["JAX_NUM_CPU_DEVICES"] == str(gorl.internal.num_cores())


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


def test_the_number_of_cores_is_found_without_importing_jax():
    script = (
        "import os, sys\n"
        "os.environ.pop('JAX_NUM_CPU_DEVICES', None)\n"
        "from gorl_cli._environment import use_every_core\n"
        "use_every_core()\n"
        "assert int(os.environ['JAX_NUM_CPU_DEVICES']) >= 1\n"
        "assert 'jax' not in sys.modules and 'gorl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
