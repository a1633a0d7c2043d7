"""The benchmark of solvers, on a random policy of MultiGoal, against Euler steps written out in numpy."""

import json

import answering
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gorl
from benchmarks import solvers

ENV = gorl.EnvConfig("MultiGoal", episode_length=20)


@pytest.fixture(scope="module")
def comparison(make_policy):
    return solvers.Comparison(ENV, [make_policy(2, 2)], 64, 12)


@pytest.fixture
def policy_file(tiny, make_policy, tmp_path):
    """A file of one policy, as `gorl.save_policy` leaves it."""
    sizes = {"policy_width": 16, "policy_depth": 1, "value_width": 1, "value_depth": 1}
    changes = {f"learner.{name}": value for name, value in sizes.items()}
    config = gorl.replace(tiny, {**changes, "decoder": gorl.FlowMatching(width=16, depth=1, num_steps=4)})

    def write(**options):
        gorl.save_policy(tmp_path / "policy.eqx", make_policy(2, 2, **options), config)
        return tmp_path / "policy.eqx"

    return write


@pytest.fixture
def invoke(tmp_path):
    def run(*arguments):
        options = ["--task", "MultiGoal", "--pairs", "32", "--episodes", "10", "--out", tmp_path / "results"]
        return answering.run(solvers.app, *options, *arguments)

    return run


@pytest.fixture
def euler(written_out_field):
    """Equal Euler steps from each latent, in double precision."""

    def follow(decoder, observations, latents, num_steps):
        mean, std = np.float64(decoder.statistics.mean), np.sqrt(np.float64(decoder.statistics.variance))
        ends = []
        for observation, latent in zip(np.float64(observations), np.float64(latents), strict=True):
            velocity = written_out_field(decoder.velocity, (observation - mean) / std)
            point = latent
            for step in range(num_steps):
                point = point + velocity(point, step / num_steps) / num_steps
            ends.append(np.tanh(point))
        return np.array(ends)

    return follow


@pytest.mark.parametrize("num_steps", [1, 5])
def test_the_error_is_that_of_euler_steps_written_out(comparison, euler, num_steps):
    (decoder,), (batch,) = comparison.decoders, comparison.pairs
    finest = euler(decoder, *batch, 400)
    finer = 2 * finest - euler(decoder, *batch, 200)  # Richardson's extrapolation, which leaves an error of 1e-6 or so
    expected = np.sqrt(np.mean((euler(decoder, *batch, num_steps) - finer) ** 2))
    assert expected > 1e-3
    np.testing.assert_allclose(comparison.error(solvers.Variant("Euler", num_steps)), expected, rtol=1e-2)


def test_errors_fall_with_steps_and_with_the_tolerance(comparison):
    for line in (
        [solvers.Variant("Euler", steps) for steps in (1, 4, 20)],
        [solvers.Variant("Heun", steps) for steps in (1, 4)],
        [solvers.Variant("Tsit5", tolerance=tolerance) for tolerance in (1e-1, 1e-4)],
    ):
        errors = [comparison.error(variant) for variant in line]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 2 * errors[-1] > 0


def test_evaluations_are_counted(comparison):
    def evaluations(variant):
        return solvers.velocity_evaluations(variant.of(comparison.decoders[0]), *comparison.pairs[0])

    counted = [
        evaluations(solvers.Variant(solver, steps))
        for solver, steps in (("Euler", 3), ("Heun", 2), ("Midpoint", 2), ("Tsit5", 2))
    ]
    # The last stage of a step of Tsit5 is the first of the next.
    assert counted == [3, 4, 4, 13]
    adaptive = [evaluations(solvers.Variant("Tsit5", tolerance=tolerance)) for tolerance in (1e-1, 1e-6)]
    assert 6 < adaptive[0] < adaptive[1]


def test_returns_are_compared_episode_by_episode(comparison):
    assert comparison.change(solvers.FINE).mean == 0.0
    variant = solvers.Variant("Euler", 1)
    (policy,), (decoder,) = comparison.policies, comparison.decoders
    key = jax.random.fold_in(comparison.episode_key, 0)
    coarse, exact = (
        np.float64(gorl.evaluate(ENV, eqx.tree_at(lambda p: p.decoder.decoder, policy, of), key, num_episodes=12))
        for of in (variant.of(decoder), solvers.FINE.of(decoder))
    )
    change = comparison.change(variant)
    assert change.is_confidence
    assert change.mean == pytest.approx(np.mean(coarse - exact))
    half = scipy.stats.t.ppf(0.975, 11) * np.std(coarse - exact, ddof=1) / np.sqrt(12)
    assert change.high - change.mean == pytest.approx(half)


def test_observations_are_those_that_the_policy_meets(comparison, make_policy):
    observations, latents = solvers.pairs(ENV, make_policy(2, 2), 64, jax.random.key(0))
    assert observations.shape == latents.shape == (64, 2)
    assert len(np.unique(observations, axis=0)) == 64
    few, _ = solvers.pairs(gorl.EnvConfig("MultiGoal", episode_length=2), make_policy(2, 2), 64, jax.random.key(0))
    assert few.shape == (64, 2)  # drawn again where there are too few


def test_results_are_left_after_each_row(invoke, policy_file, tmp_path, monkeypatch):
    monkeypatch.setattr(solvers, "VARIANTS", (solvers.BASELINE, solvers.Variant("Heun", 2)))
    seen = []

    def watched(path, content):
        write(path, content)
        seen.append(json.loads(path.read_text()))

    write = solvers.write
    monkeypatch.setattr(solvers, "write", watched)
    code, out, _ = invoke("--run", policy_file())
    assert code == 0
    assert [(content["finished"], len(content["rows"])) for content in seen] == [(False, 1), (True, 2)]
    baseline, heun = seen[-1]["rows"]
    assert (baseline["evaluations"], heun["evaluations"]) == (10, 4)
    assert 0.2 < baseline["ratio_to_euler_10"] < 5  # timed twice: noise
    low, high = heun["return_change_95"]
    assert low <= heun["return_change"] <= high
    assert "Heun" in out
    assert seen[-1]["repeats"] == solvers.REPEATS
    assert (tmp_path / "results" / "MultiGoal.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--task", "MultiGaol"), "did you mean 'MultiGoal'?"),
        (("--steps", "many"), "--steps must be a whole number such as 2e5, not 'many'."),
        (("--steps", "inf"), "--steps must be a whole number such as 2e5, not 'inf'."),
        (("--steps", "5"), "shorter than one iteration"),
        (("--seeds", "0"), "--seeds"),
        (("--episodes", "9"), "--episodes"),
        (("--solver", "Eular"), "did you mean 'Euler'"),
        (("--run", "nowhere.eqx"), "no policy can be read from nowhere.eqx"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(invoke, arguments, sentence):
    code, _, err = invoke(*arguments)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1


def test_a_policy_that_does_not_fit_is_refused(invoke, policy_file, tmp_path):
    assert "give --seeds 1" in invoke("--run", policy_file(), "--seeds", "2")[2]
    assert "has not been fitted" in invoke("--run", policy_file(fitted=False))[2]
    code, _, err = invoke("--run", policy_file(), "--task", "PointMass")
    assert code == 2
    assert "was trained on MultiGoal" in err


def test_policies_of_other_methods_are_refused(make_policy):
    policy = make_policy(2, 2)
    with pytest.raises(gorl.InputError, match="no stages"):
        solvers.flow_decoder(make_policy(2, 2, plain=True))
    gaussian = gorl.Gaussian().init(gorl.RunningStatistics.empty(2), 2, jax.random.key(0))
    other = gorl.Policy(policy.encoder, gorl.StagedDecoder(gaussian, jnp.asarray(True)), 2, 2)
    with pytest.raises(gorl.InputError, match="GaussianDecoder"):
        solvers.flow_decoder(other)


def test_seeds_of_a_run_are_taken_one_by_one(finished_run):
    policies = solvers.loaded(finished_run.directory, "MultiGoal", 2)
    assert len(policies) == 2
    assert not bool(
        jnp.all(policies[0].encoder.network.layers[0].weight == policies[1].encoder.network.layers[0].weight)
    )


@pytest.mark.parametrize("path", sorted(solvers.RESULTS.glob("solvers/*.json")), ids=lambda path: path.stem)
def test_the_committed_results_can_be_drawn(path):
    content = json.loads(path.read_text())
    assert solvers.figure(content["task"], content["rows"]).startswith(b"\x89PNG")
