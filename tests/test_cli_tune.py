"""`gorl tune`."""

import csv
import re

import numpy as np
import pytest
from test_cli import SMALL
from test_cli_report import Page

import gorl
from gorl_cli._run import Run
from gorl_cli._space import default_search, make_space, searches

optuna = pytest.importorskip("optuna")

QUICK = [option for option in SMALL if not any(name in option for name in ("stage_steps", "decoder", "refinement"))]
QUICK += ["--method", "ppo", "--steps", "160", "--seeds", "2", "--parallel", "2"]
SEARCH = ["--search=learner.learning_rate=1e-4:1e-2:log", "--search=learner.clip_epsilon=0.1|0.2"]


@pytest.fixture(scope="module")
def small(tiny):
    return gorl.replace(tiny, {"stage_steps": (160,), "decoder": gorl.Identity()})


def test_values_are_in_the_space_and_make_the_config(small):
    asked = {"learner.learning_rate": "1e-4:1e-2:log", "learner.clip_epsilon": "0.1|0.2", "learner.num_epochs": "1:3"}
    space = make_space(small, asked, {"learner.discount": "0.9"})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        values = space.suggest(study.ask())
        learner = space.config(values).learner
        assert 1e-4 <= learner.learning_rate <= 1e-2
        assert learner.clip_epsilon in (0.1, 0.2)
        assert learner.num_epochs in (1, 2, 3)
        assert learner.discount == 0.9
        assert float(values["learner.learning_rate"]) == learner.learning_rate


def test_the_preset_is_tried_first_if_the_space_holds_it(small):
    rate = small.learner.learning_rate
    start = make_space(small, {"learner.learning_rate": f"{rate / 2}:{rate * 2}", "env.episode_length": "20|30"}, {})
    assert start.start() == {"learner.learning_rate": rate, "env.episode_length": "20"}
    assert make_space(small, {"learner.learning_rate": f"{rate * 2}:{rate * 3}"}, {}).start() is None


@pytest.mark.parametrize("method", ["gorl-flow", "fpo", "fpo++", "dppo", "gorl-sac", "gorl-reppo"])
def test_the_default_space_of_each_learner_takes_one_program(method):
    import jax

    preset = gorl.preset("MultiGoal", "laptop", method)
    space = make_space(preset, default_search(preset, {}), {})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.config(space.suggest(study.ask())) for _ in range(4)]
    assert len({jax.tree.structure(config) for config in configs}) == 1
    assert len({config.learner.learning_rate for config in configs}) == 4


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, output_of):
    """A study of three trials, two of them side by side."""
    directory = tmp_path_factory.mktemp("tune") / "out"
    return directory, output_of("tune", "MultiGoal", "--trials", "3", *SEARCH, *QUICK, "--out", directory)


def rows(directory):
    with (directory / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_study_is_a_directory_of_runs_and_a_table(tuned):
    directory, output = tuned
    assert [row["run"] for row in rows(directory)] == [f"trial-00{index}" for index in (0, 0, 1, 1, 2, 2)]
    for row in rows(directory):
        run = Run.open(directory / row["run"])
        assert run.config.learner.learning_rate == float(row["learner.learning_rate"])
        assert run.config.learner.clip_epsilon == float(row["learner.clip_epsilon"])
        assert float(row["best_policy_return"]) == run.summary()["best_policy_return"][row["seed"]]
    assert "3 trials: 3 trained to the end" in output
    assert "gorl train MultiGoal --method ppo" in output


def test_the_study_of_optuna_has_the_returns_and_every_evaluation(tuned):
    directory, _ = tuned
    backend = optuna.storages.journal.JournalFileBackend(str(directory / "study.log"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    for trial in study.trials:
        run = Run.open(directory / f"trial-{trial.number:03}")
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert trial.value == pytest.approx(run.summary()["best_policy_return_mean"])
        curve = [float(row["return_mean"]) for row in run.curve()]
        assert trial.intermediate_values == pytest.approx(
            {index: (curve[2 * index] + curve[2 * index + 1]) / 2 for index in range(len(curve) // 2)}
        )


def test_a_study_that_has_its_trials_is_shown_again(tuned, command):
    directory, _ = tuned
    before = (directory / "sweep.csv").read_bytes()
    code, output, _ = command("tune", "MultiGoal", "--trials", 3, *SEARCH, *QUICK, "--out", directory)
    assert code == 0
    assert "compiling" not in output
    assert "3 trials: 3 trained to the end" in output
    assert (directory / "sweep.csv").read_bytes() == before


def test_a_directory_of_another_study_is_refused(tuned, command):
    directory, _ = tuned
    other = ["--search=learner.learning_rate=1e-3:1e-2"]
    code, _, error = command("tune", "MultiGoal", "--trials", 9, *other, *QUICK, "--out", directory)
    assert code == 2
    assert "holds another study, in which search is learner.learning_rate=1e-4:1e-2:log" in error
    assert error.count("\n") == 1
    assert "is a study of gorl tune" in command("resume", directory)[2]


PAYING = """
import equinox as eqx
import jax
import jax.numpy as jnp


class State(eqx.Module):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Paying:
    observation_size = 1
    action_size = 1
    episode_length = 10

    def reset(self, key):
        return State(jax.random.uniform(key, (1,)), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        return State(state.obs, jnp.ones(()), jnp.zeros(()))
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, output_of):
    """A study whose seed draws poor trials late, one by one. Its task pays 1 for each step: every return is known."""
    place = tmp_path_factory.mktemp("pruned")
    (place / "my_paying.py").write_text(PAYING)
    quick = [option for option in QUICK if "episode_length" not in option]
    options = [
        *quick,
        "--seeds",
        "1",
        "--seed",
        "11",
        "--parallel",
        "1",
        "--search=env.episode_length=5|10",
        "--trials",
        "7",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        yield place / "out", output_of("tune", "my_paying:Paying", *options, "--out", place / "out")


def test_a_trial_that_is_worse_is_pruned_at_an_evaluation(pruned):
    directory, output = pruned
    backend = optuna.storages.journal.JournalFileBackend(str(directory / "study.log"))
    trials = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend)).trials
    complete, stopped = [], []
    for trial in trials:
        length = int(trial.params["env.episode_length"])
        assert set(trial.intermediate_values.values()) == {length}
        # From the sixth on, what returns less than the median of those before.
        if len(complete) >= 5 and length < np.median(complete):
            assert trial.state == optuna.trial.TrialState.PRUNED
            assert len(trial.intermediate_values) == 1
            stopped.append(f"trial-{trial.number:03}")
        else:
            assert trial.state == optuna.trial.TrialState.COMPLETE
            complete.append(length)
    assert stopped
    for name in stopped:
        assert re.search(rf"5 │ +5\.0 │ +0 │ {name}", output)
        assert not Run.open(directory / name).is_finished
    assert f"7 trials: {len(complete)} trained to the end, {len(stopped)} pruned" in output
    assert {row["run"] for row in rows(directory)} == {f"trial-{trial.number:03}" for trial in trials} - set(stopped)


def test_a_study_is_plotted_and_reported_with_what_was_pruned(pruned, command, tmp_path, monkeypatch):
    directory, _ = pruned
    num_finished = len({row["run"] for row in rows(directory)})
    monkeypatch.setattr("gorl_cli._report._acting", lambda run: {"note": "nobody acts here"})
    code, _, error = command("report", directory, "-o", tmp_path / "out.html")
    assert code == 0, error
    page = Page((tmp_path / "out.html").read_text())
    assert f"A sweep of 7 settings, {num_finished} of them finished" in page.text
    assert sorted(run["label"] for run in page.runs) == [f"trial-{index:03}" for index in range(7)]
    # The best comes first, and everything that was pruned comes last.
    assert [run["mean"]["return_mean"][-1] for run in page.runs] == sorted(
        (float(row["best_policy_return"]) for row in rows(directory)), reverse=True
    ) + [5.0] * (7 - num_finished)
    code, _, error = command("plot", directory, "-o", tmp_path / "curves.png")
    assert code == 0, error
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trials", "0"], "--trials must be at least 1, not 0"),
        (["--parallel", "0"], "--parallel must be at least 1, not 0"),
        (["--search", "learner.lerning_rate=1e-4:1e-2"], "'learning_rate'"),
        (["--search", "learner.learning_rate"], "FIELD=LOW:HIGH"),
        (["--search", "learner.learning_rate=1e-2:1e-4"], "is empty"),
        (["--search", "learner.learning_rate=1e-3"], "is no range"),
        (["--search", "learner.learning_rate=1e-4:1e-2:lg"], "is no range"),
        (["--search", "learner.entropy_coefficient=0:1:log"], "begin above 0"),
        (["--search", "learner.clip_epsilon=-1:1"], "learner.clip_epsilon must be a number above 0"),
        (["--search", "decoder.solver=Euler:Heun"], "is no range of numbers"),
        (
            ["--search", "learner.learning_rate=1e-4:1e-2", "--set", "learner.learning_rate=1e-3"],
            "leave one of them out",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(command, tmp_path, arguments, sentence):
    code, output, error = command("tune", "MultiGoal", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert output == ""
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_search_twice_is_refused():
    with pytest.raises(gorl.InputError, match="is there twice"):
        searches(["learner.discount=0.9:0.99", "learner.discount=0.8:0.99"])


def test_without_optuna_the_command_says_what_to_install(command, tmp_path, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    code, _, error = command("tune", "MultiGoal", "--out", tmp_path / "out")
    assert code == 2
    assert "pip install 'gorl[tune]'" in error
    assert list(tmp_path.iterdir()) == []
