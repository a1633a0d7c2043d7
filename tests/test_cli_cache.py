"""What the command line keeps of compiled programs."""

import os
import subprocess
import sys

import pytest

TRAIN = (
    "train", "MultiGoal", "--seeds", "1", "--stages", "1", "--steps", "80", "--set=learner.num_envs=4",
    "--set=learner.unroll_length=5", "--set=learner.num_minibatches=1", "--set=env.episode_length=5",
    "--set=evaluation_episodes=2",
)  # fmt: skip


@pytest.fixture
def gorl_in(tmp_path):
    """Trains in a process of its own, whose user's cache is a directory that nothing is in yet."""

    def run(*options, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        return subprocess.run(
            [sys.executable, "-m", "gorl_cli", *options, *TRAIN, "--out", str(tmp_path / "run")],
            env=inherited | {"XDG_CACHE_HOME": str(tmp_path / "user"), **environment},
            capture_output=True,
            text=True,
        )

    return run


def programs(directory):
    return {path.name for path in directory.glob("*-cache")}


def test_programs_are_kept_and_used_the_next_time(gorl_in, tmp_path):
    first = gorl_in()
    assert first.returncode == 0, first.stderr
    kept = programs(tmp_path / "user" / "gorl")
    assert any("advance" in name for name in kept), kept
    (tmp_path / "run").rename(tmp_path / "first")
    second = gorl_in(JAX_LOG_COMPILES="1", JAX_EXPLAIN_CACHE_MISSES="1")
    assert second.returncode == 0, second.stderr
    assert programs(tmp_path / "user" / "gorl") == kept
    assert "Persistent compilation cache hit for 'jit__advance_batch'" in second.stderr
    policies = [(tmp_path / name / "policies.eqx").read_bytes() for name in ("first", "run")]
    assert policies[0] == policies[1], "a program from disk has to be the program"


def test_the_cache_can_be_moved_and_turned_off(gorl_in, tmp_path):
    assert gorl_in("--cache", "off").returncode == 0
    assert not (tmp_path / "user" / "gorl").exists()  # matplotlib keeps something there as well
    (tmp_path / "run").rename(tmp_path / "off")
    assert gorl_in("--cache", str(tmp_path / "mine")).returncode == 0
    assert programs(tmp_path / "mine")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert gorl_in(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax")).returncode == 0
    assert programs(tmp_path / "jax")
    assert not (tmp_path / "user" / "gorl").exists()  # matplotlib keeps something there as well


def test_a_cache_that_cannot_be_is_refused(gorl_in, tmp_path):
    (tmp_path / "file").write_text("")
    done = gorl_in("--cache", str(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr.startswith("gorl: --cache ")
    assert "Give another, or off." in done.stderr
    assert not (tmp_path / "run").exists()
