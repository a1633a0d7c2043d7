"""`gorl distill`."""

import json

import jax
import numpy as np
import pytest

import gorl
from gorl_cli._run import Run

SMALL = ("--set", "decoder.width=16", "--set", "refinement.num_epochs=2", "--set", "refinement.num_noise_samples=1")


@pytest.fixture(scope="module")
def distilled(finished_run, tmp_path_factory):
    """The directory of a distilled run, and what the command printed."""
    from gorl_cli._distill import distill
    from gorl_cli._settings import settings

    out = tmp_path_factory.mktemp("distilled") / "run"
    distill(finished_run, out, settings([*SMALL[1::2]]), 0)
    return out


def test_it_leaves_a_finished_run_of_one_pass(distilled, finished_run):
    run = Run.open(distilled)
    assert run.is_finished
    assert (run.method, run.seed_numbers) == (finished_run.method, finished_run.seed_numbers)
    assert run.config.decoder == gorl.MeanFlow(width=16, depth=1)
    policy = run.policy(6)
    assert isinstance(policy.decoder.decoder, gorl.MeanFlowDecoder)
    encoders = [gorl.of_seed(some.policies(), 1).encoder.network.layers[0].weight for some in (run, finished_run)]
    np.testing.assert_array_equal(*encoders)


def test_the_returns_in_its_summary_are_those_of_teacher_and_student(distilled, finished_run):
    summary = json.loads((distilled / "summary.json").read_text())
    run = Run.open(distilled)
    _, play_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 2))  # of the third seed, 7
    for known, some in (("best_policy_return", run), ("teacher_return", finished_run)):
        expected = gorl.evaluate(run.config.env, gorl.of_seed(some.policies(), 2), play_key, num_episodes=64).mean()
        np.testing.assert_allclose(summary[known]["7"], expected, rtol=1e-4)
    assert summary["distilled_from"] == str(finished_run.directory)


def test_other_commands_take_it(distilled, command, tmp_path):
    code, output, _ = command("eval", distilled, "--episodes", 4)
    assert code == 0
    assert "all" in output
    assert command("export", distilled, "-o", tmp_path / "policy.stablehlo")[0] == 0
    code, _, error = command("resume", distilled)
    assert code == 2
    assert "is finished" in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--set", "decoder.width=0"), "decoder.width must be an integer at least 1"),
        (("--set", "decoder.widht=8"), "did you mean 'width'"),
        (("--set", "learner.policy_width=8"), "--set learner.policy_width is no part of a distillation"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(command, finished_run, tmp_path, options, sentence):
    code, _, error = command("distill", finished_run.directory, "-o", tmp_path / "run", *options)
    assert code == 2
    assert sentence in error
    assert not (tmp_path / "run").exists()


def test_a_directory_in_use_and_a_run_that_is_not_finished_are_refused(command, finished_run, tiny, tmp_path):
    code, _, error = command("distill", finished_run.directory, "-o", finished_run.directory)
    assert code == 2
    assert "is already in use" in error
    unfinished = Run(tmp_path / "unfinished", tiny, "gorl-flow", 0, 1, 30.0)
    unfinished.directory.mkdir()
    unfinished.create()
    code, _, error = command("distill", unfinished.directory, "-o", tmp_path / "run")
    assert code == 2
    assert "finish it first, with gorl resume" in error


def test_a_method_without_a_decoder_has_nothing_to_distill(tiny, tmp_path, make_policy, command):
    config = gorl.replace(tiny, {"learner.policy_width": 16, "learner.value_width": 1, "stage_steps": (1600,)})
    run = Run(tmp_path / "plain", config, "ppo", 0, 1, 30.0)
    run.directory.mkdir()
    run.create()
    policies = jax.tree.map(lambda leaf: leaf[None], make_policy(2, 2, fitted=False))
    gorl.save_policy(
        run.policies_file, policies, gorl.replace(config, {"decoder": gorl.FlowMatching(16, 1, num_steps=4)})
    )
    run.summary_file.write_text(json.dumps({"env_steps": run.env_steps, "best_policy_return": {"0": 1.0}}))
    code, _, error = command("distill", run.directory, "-o", tmp_path / "run")
    assert code == 2
    assert "no decoder that was fitted" in error
    assert not (tmp_path / "run").exists()
