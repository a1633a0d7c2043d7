import math

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import gorl
from gorl._method import find_method
from gorl._prepare import prepare

NAMES = [
    "gorl-flow",
    "gorl-diffusion",
    "gorl-meanflow",
    "gorl-sac",
    "gorl-reppo",
    "dsrl",
    "ppo",
    "fpo",
    "fpo++",
    "dppo",
    "sac",
    "reppo",
]


class LaplaceEncoder(gorl.AbstractEncoder):
    """Somebody else's idea of a policy."""

    location: eqx.nn.Linear
    statistics: gorl.RunningStatistics

    def sample(self, observation, key):
        location = self.mode(observation)
        latent = location + jax.random.laplace(key, location.shape)
        return latent, self.log_density(observation, latent)

    @property
    def noise_shape(self):
        return (self.location.out_features,)

    def from_noise(self, observation, noise):
        quantile = -jnp.sign(noise) * jnp.log(jax.scipy.special.erfc(jnp.abs(noise) / jnp.sqrt(2.0)))
        return self.location(self.statistics.normalise(observation)) + quantile

    def log_density(self, observation, latent):
        return -jnp.sum(jnp.abs(latent - self.mode(observation)))


class LaplaceLearner(gorl.AbstractClippedLearner):
    """The relative of PPO that goes with it."""

    on_actions: bool = eqx.field(static=True, default=True)

    def fresh_encoder(self, observation_size, latent_size, key):
        location = eqx.nn.Linear(observation_size, latent_size, key=key)
        return LaplaceEncoder(location, gorl.RunningStatistics.empty(observation_size))

    def policy_terms(self, encoder, observation, latent, extras):
        log_ratio = encoder.log_density(observation, latent) - extras
        return gorl.PolicyTerms(log_ratio[None], jnp.zeros(()), {"largest": jnp.max(jnp.abs(latent))})

    def policy_metric_names(self):
        return ("largest",)


laplace = gorl.Method("laplace", "PPO of a Laplace policy", LaplaceLearner(), laptop={"learner.clip_epsilon": 0.3})


@pytest.fixture
def registry(monkeypatch):
    """A copy of the methods that a test may add to."""
    monkeypatch.setattr("gorl._method._METHODS", gorl.methods())


def tiny(method):
    """A run of two iterations a stage with the preset of a method: compiling it takes far longer than running it."""
    config = gorl.preset(gorl.EnvConfig("MultiGoal", episode_length=8, training_length=4), method=method)
    method = method if isinstance(method, gorl.Method) else find_method(method)
    changes = {
        "learner.num_envs": 4,
        "learner.unroll_length": 2,
        "learner.num_unrolls": 1,
        "learner.policy_width": 4,
        "learner.policy_depth": 1,
        "learner.value_width": 4,
        "learner.value_depth": 1,
        "stage_steps": (16,) * config.num_stages,
        "evaluation_interval": 8,
        "evaluation_episodes": 2,
    }
    if not isinstance(method.learner, gorl.SAC):
        changes |= {"learner.num_minibatches": 2, "learner.num_epochs": 1}
    else:
        changes |= {"learner.buffer_size": 16, "learner.batch_size": 4, "learner.learning_starts": 8}
    if method.is_staged:
        refinement = gorl.Refinement(
            num_episodes=4, num_validation_episodes=1, num_noise_samples=1, batch_size=8, num_epochs=1
        )
        changes |= {"decoder.width": 4, "decoder.depth": 1, "refinement": refinement}
    return gorl.replace(config, changes)


def assert_trained(config, result, *seeds):
    evaluations = 2 * 3 if config.num_stages == 2 else 3  # as a stage begins and after each iteration
    assert result.returns.shape == (*seeds, 2)
    assert result.curve.returns.shape == (*seeds, evaluations, 2)
    assert jnp.isfinite(result.returns).all()
    assert jnp.isfinite(result.curve.returns).all()
    assert set(result.curve.metrics) == set(config.learner.metric_names())
    for name, figures in result.curve.metrics.items():
        begins = jnp.isnan(figures)
        assert begins[..., 0].all(), name
        assert begins.sum() == config.num_stages * math.prod(seeds), name
    assert jnp.isfinite(result.fits.validation_loss).all()


# --- The methods that are known. ---


def test_the_methods_by_name():
    assert list(gorl.methods()) == NAMES
    for name, method in gorl.methods().items():
        assert method.name == name
        assert method.summary
        assert find_method(name) is method
        assert method.is_staged == name.startswith("gorl-")


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_goes_through_json_and_can_be_trained(name, scale):
    for env in ("CheetahRun", "FingerSpin", "PendulumSwingup", "MultiGoal", "brax/hopper"):
        config = gorl.preset(env, scale, name)
        assert gorl.Config.from_json(config.to_json()) == config
        assert str(config.env) == env
    prepare(gorl.preset("MultiGoal", scale, name))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dsrl"])  # test_demonstrations.py trains that
def test_every_method_trains_over_seeds(name):
    config = tiny(name)
    train = jax.vmap(gorl.train, in_axes=(None, 0))
    # As many seeds as cost nothing: whether a gradient of SAC was NaN used to depend on the seed.
    result = train(config, jax.random.split(jax.random.key(0), 16))
    assert_trained(config, result, 16)
    assert not jnp.array_equal(result.curve.returns[0], result.curve.returns[1])


def test_a_method_without_a_decoder_trains_alone():
    config = tiny("dppo")
    assert_trained(config, gorl.train(config, jax.random.key(0)))


# --- One's own. ---


def test_a_method_of_ones_own_is_found_and_trains(registry):
    assert gorl.register(laplace) is laplace
    assert gorl.methods()["laplace"] is laplace
    config = tiny("laplace")
    assert isinstance(config.learner, LaplaceLearner)
    assert config.learner.clip_epsilon == 0.3
    assert gorl.Config.from_json(config.to_json()) == config
    result = gorl.train(config, jax.random.key(0))
    assert_trained(config, result)
    assert isinstance(result.policy.encoder, LaplaceEncoder)
    assert (jnp.abs(result.policy(jnp.array([0.1, -0.2]), jax.random.key(1))) <= 1).all()


def test_a_method_of_ones_own_need_not_be_registered():
    by_path = gorl.preset("MultiGoal", method=f"{__name__}:laplace")
    assert by_path == gorl.preset("MultiGoal", method=laplace)
    assert "laplace" not in gorl.methods()
    paper = gorl.preset("CheetahRun", "paper", laplace)
    assert isinstance(paper.learner, LaplaceLearner)
    assert paper.stage_steps == (180_000_000,)
    assert paper.learner.clip_epsilon == 0.2


def test_what_methods_returns_is_a_copy():
    gorl.methods().clear()
    assert list(gorl.methods()) == NAMES


# --- Bad input. ---


def test_a_name_can_be_registered_once(registry):
    gorl.register(laplace)
    for taken in (laplace, gorl.Method("ppo", "another", gorl.PPO(on_actions=True))):
        with pytest.raises(gorl.InputError, match=f"a method called '{taken.name}' already: choose another name"):
            gorl.register(taken)
    assert gorl.methods()["ppo"].summary != "another"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gorl-flw", "no method is called 'gorl-flw': did you mean 'gorl-flow'"),
        ("PPO", "no method is called 'PPO': did you mean 'ppo'"),
        ("fpo+", r"no method is called 'fpo\+': did you mean .*'fpo\+\+'"),
        ("td3", r"no method is called 'td3': there are 'dppo', 'dsrl', 'fpo', 'fpo\+\+', 'gorl-diffusion'"),
        ("", "no method is called ''"),
        ("nowhere.at_all:thing", "'nowhere.at_all:thing' cannot be imported: No module named 'nowhere'"),
        ("math:thing", "'math:thing' cannot be imported: .*has no attribute 'thing'"),
        (":thing", "':thing' cannot be imported"),
        (".relative:thing", "'.relative:thing' cannot be imported"),
        ("math:", "'math:' cannot be imported"),
        ("math:pi", "'math:pi' is no gorl.Method"),
        (f"{__name__}:LaplaceLearner", "LaplaceLearner' is no gorl.Method"),
    ],
)
def test_a_name_that_is_no_method(name, message):
    with pytest.raises(gorl.InputError, match=message):
        gorl.preset("MultiGoal", method=name)


def test_a_method_whose_parts_do_not_fit_is_refused():
    misfit = gorl.Method("misfit", "actions through a decoder", gorl.FPO(), gorl.FlowMatching())
    with pytest.raises(gorl.InputError, match="FPO learns actions themselves here, and takes no FlowMatching decoder"):
        gorl.preset("MultiGoal", method=misfit)
    misspelt = gorl.Method("misspelt", "a field that is not there", gorl.PPO(), laptop={"learner.klip_epsilon": 0.1})
    with pytest.raises(gorl.InputError, match="no field of PPO is called 'klip_epsilon': did you mean 'clip_epsilon'"):
        gorl.preset("MultiGoal", method=misspelt)
