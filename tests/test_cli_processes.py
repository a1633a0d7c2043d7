"""`gorl train` and `gorl resume` in several processes on one machine."""

import concurrent.futures
import signal
import socket

import pytest
from killing import Process, rows

import gorl
from gorl_cli._processes import join

RUN = (
    "train", "MultiGoal", "--method", "ppo", "--seeds", "2", "--steps", "4000", "--set=learner.num_envs=4",
    "--set=learner.unroll_length=5", "--set=learner.num_minibatches=1", "--set=learner.num_epochs=1",
    "--set=learner.policy_width=4", "--set=learner.value_width=4", "--set=env.episode_length=5",
    "--set=evaluation_episodes=2", "--set=evaluation_interval=400",
)  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def join_with(port, count, index, timeout=20):
    meeting = ("--coordinator", f"127.0.0.1:{port}", "--coordinator-timeout", timeout)
    return (*meeting, "--num-processes", count, "--process-id", index)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def both(cache, monkeypatch):
    """Begins `gorl` in two processes with a device each, with arguments that may differ."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    begun = []

    def begin(*arguments, of_second=None):
        port = free_port()
        for index, own in enumerate((arguments, of_second or arguments)):
            begun.append(Process(*own, *join_with(port, 2, index), cache=cache))
        return begun[-2:]

    yield begin
    for process in begun:
        process.send(signal.SIGKILL)
        process.end()


def one(*arguments, cache):
    """Runs `gorl` in one process with two devices to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        code, _, error = Process(*arguments, cache=cache).end()
    assert code == 0, error


@pytest.fixture(scope="module")
def curve(cache, tmp_path_factory):
    """The curve of the run in one process with two devices."""
    run = tmp_path_factory.mktemp("one") / "run"
    one(*RUN, "--out", run, cache=cache)
    return rows(run)


def test_sigterm_at_one_process_saves_once_and_ends_both_and_two_processes_go_on(both, curve, tmp_path):
    run = tmp_path / "run"
    first, second = both(*RUN, "--checkpoint-every", "inf", "--out", run)
    first.wait_for("400 env steps")
    second.send(signal.SIGTERM)
    code, _, error = first.end()
    assert code == 128 + signal.SIGTERM, error
    assert "process 0 of 2, with 1 of 2 devices" in error
    assert f"stopped; go on with: gorl resume {run}" in error
    code, out, error = second.end()
    assert code == 128 + signal.SIGTERM, error
    assert "process 1 of 2, with 1 of 2 devices" in error
    assert "env steps" not in out
    assert len(list((run / "checkpoints").iterdir())) == 1
    assert not (run / "summary.json").exists()

    for process in both("resume", run):
        code, _, error = process.end()
        assert code == 0, error
        assert "bit for bit" not in error
    assert (run / "summary.json").exists()
    assert rows(run) == curve


def test_after_sigkill_of_one_process_the_other_ends_with_a_sentence_and_one_process_goes_on(
    both, cache, curve, tmp_path
):
    run = tmp_path / "run"
    first, second = both(*RUN, "--checkpoint-every", "0", "--out", run)
    first.wait_for("400 env steps")
    second.send(signal.SIGKILL)
    code, _, error = first.end()
    assert code == 1
    assert "gorl: process 1 of 2 is gone, so process 0 of 2 ends: go on from the newest checkpoint" in error
    assert list((run / "checkpoints").glob("[0-9]*"))
    assert not (run / "summary.json").exists()

    one("resume", run, cache=cache)
    assert rows(run) == curve


def test_processes_with_different_commands_are_refused(both, tmp_path):
    run = tmp_path / "run"
    command = (*RUN, "--out", run)
    for process in both(*command, of_second=(*command, "--set=learner.learning_rate=0.5")):
        code, out, error = process.end()
        assert (code, out) == (2, "")
        assert "gorl: process 1 differs from process 0 in the config: start every process with the same" in error
    assert not run.exists()


def test_what_process_0_refuses_ends_every_process(both, tmp_path):
    (tmp_path / "run").write_text("a file")
    processes = both(*RUN, "--out", tmp_path / "run")
    for process in processes:
        code, out, error = process.end()
        assert (code, out) == (2, "")
        assert f"--out {tmp_path / 'run'} is a file: give a directory." in error


# --- Bad options, and processes that do not meet. ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-processes", 2), "--coordinator and --process-id must be given as well"),
        (("--coordinator", "node:1", "--process-id", 0), "--num-processes must be given as well"),
        (("--coordinator", "node", "--num-processes", 2, "--process-id", 0), "--coordinator node is no address"),
        (("--coordinator", "node:0", "--num-processes", 2, "--process-id", 0), "--coordinator node:0 is no address"),
        (join_with(1, 2, 2), "--process-id must be from 0 to 1, one for each process, not 2."),
        (join_with(1, 0, 0), "--num-processes must be at least 1, not 0."),
        (join_with(1, 2, 1, timeout=0), "--coordinator-timeout must be above 0 seconds, not 0."),
        (("--coordinator", "auto", "--process-id", 0), "leave out --num-processes and --process-id"),
        (("--coordinator", "auto"), "--coordinator auto finds no cluster here: start the command with srun"),
    ],
)
def test_bad_options_are_refused(command, tmp_path, options, message):
    code, out, error = command(*RUN, *options, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_does_not_answer_is_refused(command, tmp_path):
    code, out, error = command(*RUN, *join_with(free_port(), 2, 1, timeout=0.3), "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "process 0 did not answer at --coordinator 127.0.0.1:" in error
    assert not (tmp_path / "run").exists()


def refusals(port, processes, timeout=20):
    """What each of some processes, given by their number and their index, is refused with."""

    def meet(pair):
        with pytest.raises(gorl.InputError) as refused:
            join(f"127.0.0.1:{port}", *pair, timeout)
        return str(refused.value)

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(meet, processes))


def test_processes_that_do_not_come_are_named():
    assert (
        refusals(free_port(), [(4, 0), (4, 2)], timeout=1)
        == ["process 1, 3 of 4 did not come within 1 s: start all processes, or give a longer --coordinator-timeout."]
        * 2
    )


def test_a_process_id_given_twice_is_refused_by_all():
    assert (
        refusals(free_port(), [(4, 0), (4, 1), (4, 1)])
        == ["--process-id 1 was given to two processes: give each its own, from 0 to 3."] * 3
    )


def test_another_number_of_processes_is_refused_by_all():
    assert (
        refusals(free_port(), [(4, 0), (3, 1)])
        == ["process 1 has --num-processes 3, and process 0 has 4: give every process the same number."] * 2
    )


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as taken:
        (refusal,) = refusals(taken.getsockname()[1], [(2, 0)])
    assert "process 0 cannot listen there (Address already in use). Give --process-id 0 once" in refusal


def test_what_is_no_process_of_gorl_is_ignored():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(refusals, port, [(2, 0)], timeout=2)
        while not waiting.done():
            try:
                with socket.create_connection(("127.0.0.1", port)) as other:
                    other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            except OSError:
                continue
            break
        (refusal,) = waiting.result()
    assert refusal.startswith("process 1 of 2 did not come within 2 s")
