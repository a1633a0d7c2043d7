"""`gorl train` and `gorl resume` in processes of their own, which can be killed, and ways of killing them.

This file is also the program that runs in those processes: `gorl` itself, but for a process that is told to kill itself
in the middle of writing its nth checkpoint.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time

from quick import quick_environment

# Stages of a second or two, so that there is time to be killed in; a checkpoint after each step of the schedule.
SMALL = [
    "--set=learner.num_envs=16",
    "--set=learner.unroll_length=5",
    "--set=learner.policy_width=8",
    "--set=learner.value_width=8",
    "--set=env.episode_length=10",
    "--set=decoder.width=8",
    "--set=refinement.num_episodes=8",
    "--set=refinement.num_validation_episodes=2",
    "--set=refinement.stride=1",
    "--set=refinement.batch_size=20",
    "--set=refinement.num_epochs=300",
    "--set=refinement.patience=300",
    "--set=evaluation_interval=80",
    "--set=evaluation_episodes=4",
    "--set=stage_steps=640,320",
]
METHODS = {
    "gorl-flow": ["--set=learner.num_minibatches=2"],
    "gorl-sac": [
        "--set=learner.buffer_size=400",
        "--set=learner.batch_size=16",
        "--set=learner.learning_starts=100",
        "--set=learner.updates_per_step=1",
    ],
}
KILLED = -signal.SIGKILL


class Process:
    """`gorl` with arguments."""

    def __init__(self, *arguments, cache, saves=0):
        # With the compiled programs on disk a process takes seconds; without optimisation, making them does as well.
        environment = quick_environment(
            JAX_COMPILATION_CACHE_DIR=str(cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            PYTHONUNBUFFERED="1",
        )
        command = [sys.executable, __file__, str(saves), *map(str, arguments)]
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.output = ""

    def wait_for(self, words):
        """Reads its output until a line has these words in it."""
        for line in self._process.stdout:
            self.output += line
            if words in line:
                return
        raise AssertionError(f"it ended without {words!r}: {self.output}{self._process.stderr.read()}")

    def send(self, number, delay=0.0):
        """Sends it a signal after a while."""
        time.sleep(delay)
        self._process.send_signal(number)

    def end(self):
        """Waits for its end; returns the exit code and what it printed to both."""
        rest, error = self._process.communicate(timeout=120)
        return self._process.returncode, self.output + rest, error


def kill(moment, command, run, cache, draw):
    """Runs a command that goes on with a run, and kills it at a moment."""
    process = Process(*command, cache=cache, saves=draw.randint(1, 3) if moment == "saving" else 0)
    if moment == "compiling":  # nothing is saved yet
        process.wait_for("compiling")
        process.send(signal.SIGKILL, draw.uniform(0.0, 1.5))
    elif moment == "phase":
        process.wait_for(f"{80 * draw.randint(1, 5)} env steps")
        process.send(signal.SIGKILL, draw.uniform(0.0, 0.05))
    elif moment == "refinement":
        process.wait_for("stage 0          640 env steps")
        process.send(signal.SIGKILL, draw.uniform(0.0, 0.2))
    code, output, error = process.end()
    assert code == KILLED, (moment, code, output, error)
    if moment == "saving":
        assert any((run / "checkpoints").glob(".*")), "a checkpoint was to be half written"
    check_files(run)


def check_files(run):
    """Whatever has been written is whole."""
    for path in run.glob("*.json"):
        json.loads(path.read_text())
    if (run / "curve.csv").exists():
        rows(run)
    assert len(list((run / "checkpoints").glob("[0-9]*"))) <= 3  # the third is one that was not removed any more


def rows(run):
    """The rows of the curve, without the time that they took."""
    with (run / "curve.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in table)
    return [{name: text for name, text in row.items() if name != "wall_seconds"} for row in table]


def main():
    """Runs `gorl`, with the first argument taken off."""
    saves = int(sys.argv.pop(1))

    def kill_while_saving():
        real, count = os.fsync, 0

        def fsync(handle):
            nonlocal count
            name = os.readlink(f"/proc/self/fd/{handle}")
            if "/checkpoints/" in name and name.endswith(".unfinished"):
                count += 1
                if count == saves:
                    os.ftruncate(handle, os.fstat(handle).st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            real(handle)

        os.fsync = fsync

    if saves:
        kill_while_saving()
    from gorl_cli.__main__ import main as gorl

    gorl()


if __name__ == "__main__":
    main()
