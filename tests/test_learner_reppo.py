import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats

import gorl
from gorl import REPPO, Experience
from gorl._gaussian import divergence, log_prior
from gorl._trainable import split_trainable

OBSERVATION_SIZE, LATENT_SIZE, TIME, ENVS = 3, 2, 6, 4


def small_reppo(**changes):
    sizes = {"policy_width": 16, "policy_depth": 2, "value_width": 16, "value_depth": 2}
    rollout = {"num_envs": ENVS, "unroll_length": TIME, "num_unrolls": 1, "num_minibatches": 2, "num_epochs": 2}
    reppo = REPPO(**{**sizes, **rollout, **changes})
    reppo.check()
    return jax.tree.map(jnp.asarray, reppo)


def shaken_memory(reppo, shaken):
    """A memory whose networks say something about what they see."""
    learner_state = reppo.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    statistics = learner_state.encoder.statistics.update(
        1 + 2 * jax.random.normal(jax.random.key(1), (50, OBSERVATION_SIZE))
    )
    networks = (shaken(learner_state.encoder.network), shaken(learner_state.critic))
    learner_state = eqx.tree_at(lambda m: (m.encoder.network, m.critic), learner_state, networks)
    return eqx.tree_at(lambda m: m.encoder.statistics, learner_state, statistics)


def random_experience(learner_state, key):
    keys = jax.random.split(key, 5)
    steps = (TIME, ENVS)
    observation = jax.random.normal(keys[0], (*steps, OBSERVATION_SIZE))
    sample = jax.vmap(jax.vmap(learner_state.encoder.sample))
    latent, extras = sample(observation, jax.random.split(keys[1], steps))
    kind = jax.random.randint(keys[2], steps, 0, 4)
    return Experience(
        observation=observation,
        latent=latent,
        extras=extras,
        action=latent,
        reward=jax.random.uniform(keys[3], steps),
        terminated=kind == 1,
        truncated=kind == 2,
        next_observation=jax.random.normal(keys[4], (*steps, OBSERVATION_SIZE)),
    )


def scipy_kl(mean, std, other_mean, other_std):
    """By a sum over a grid, dimension by dimension."""
    total = 0.0
    for parameters in zip(mean, std, other_mean, other_std, strict=True):
        m, s, other_m, other_s = map(float, parameters)
        grid = np.linspace(m - 12 * s, m + 12 * s, 20001)
        own, other = scipy.stats.norm.logpdf(grid, m, s), scipy.stats.norm.logpdf(grid, other_m, other_s)
        total += np.trapezoid(np.exp(own) * (own - other), grid)
    return total


def test_the_divergence_of_two_gaussians_against_an_integral():
    rng = np.random.default_rng(0)
    for _ in range(5):
        mean, other_mean = rng.normal(size=(2, 3))
        std, other_std = rng.uniform(0.3, 2.0, (2, 3))
        found = divergence(*map(jnp.asarray, (mean, std, other_mean, other_std)))
        np.testing.assert_allclose(found, scipy_kl(mean, std, other_mean, other_std), rtol=1e-4)


def test_the_prior_is_normal_on_latents_and_uniform_on_actions():
    latent = jax.random.normal(jax.random.key(0), (5, 2))
    np.testing.assert_allclose(
        log_prior(latent, on_actions=False), scipy.stats.norm.logpdf(latent).sum(axis=1), rtol=1e-5
    )
    slope = np.log(1 - np.tanh(np.float64(latent)) ** 2)
    np.testing.assert_allclose(log_prior(latent, on_actions=True), (slope - np.log(2)).sum(axis=1), rtol=1e-4)


def test_a_fresh_critic_says_nought_and_a_fresh_encoder_is_the_prior():
    reppo = small_reppo()
    learner_state = reppo.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    observation, latent = jax.random.normal(jax.random.key(1), (2, 40, OBSERVATION_SIZE))
    values = reppo._values(learner_state.critic, learner_state.encoder.statistics, observation, latent[:, :LATENT_SIZE])
    np.testing.assert_allclose(values, 0, atol=0.5)  # of bins that are 1.3 wide
    mean, std = jax.vmap(learner_state.encoder.distribution)(observation)
    np.testing.assert_allclose(mean, 0, atol=1e-6)
    np.testing.assert_allclose(std, 1, rtol=1e-5)


@pytest.mark.parametrize("on_actions", [False, True])
def test_what_is_to_be_learned_against_a_slow_loop(shaken, on_actions):
    reppo = small_reppo(discount=0.9, trace_decay=0.7, reward_scale=2.0, initial_temperature=0.3, on_actions=on_actions)
    learner_state = shaken_memory(reppo, shaken)
    experience = random_experience(learner_state, jax.random.key(2))
    batch = reppo._batch(learner_state, experience, jax.random.key(3))
    assert experience.terminated.any()
    assert experience.truncated.any()
    # What it drew at the next observations is in the batch: their worth is had one by one.
    next_latent = np.asarray(batch.next_latent).reshape(TIME, ENVS, LATENT_SIZE)
    worth, cost = np.zeros((2, TIME, ENVS))
    for t in range(TIME):
        for env in range(ENVS):
            seen, latent = experience.next_observation[t, env], jnp.asarray(next_latent[t, env])
            mean, std = learner_state.encoder.distribution(seen)
            value = reppo._values(learner_state.critic, learner_state.encoder.statistics, seen[None], latent[None])[0]
            own = scipy.stats.norm.logpdf(latent, mean, std).sum()
            worth[t, env] = value
            cost[t, env] = 0.3 * (own - log_prior(latent, on_actions=on_actions))
    expected = np.zeros((TIME, ENVS))
    for env in range(ENVS):
        for t in reversed(range(TIME)):
            onwards = worth[t, env]
            if t + 1 < TIME and not experience.truncated[t, env]:
                onwards = 0.3 * worth[t, env] + 0.7 * expected[t + 1, env]
            going_on = 0.0 if experience.terminated[t, env] else 0.9
            expected[t, env] = 2 * experience.reward[t, env] + going_on * (onwards - cost[t, env])
    np.testing.assert_allclose(batch.target.reshape(TIME, ENVS), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kl_mode", ["clipped", "full", "none"])
def test_the_encoders_gradient_against_finite_differences(shaken, kl_mode):
    reppo = small_reppo(kl_mode=kl_mode, initial_temperature=0.2, initial_multiplier=0.5, kl_bound=0.09)
    learner_state = shaken_memory(reppo, shaken)
    old = eqx.tree_at(lambda e: e.network, learner_state.encoder, shaken(learner_state.encoder.network))
    batch = reppo._batch(learner_state, random_experience(learner_state, jax.random.key(2)), jax.random.key(3))
    noise_key = jax.random.key(4)
    noise = jax.random.normal(noise_key, batch.latent.shape)
    trainable, rest = split_trainable(learner_state.encoder)
    flat, unflatten = jax.flatten_util.ravel_pytree(trainable)

    @jax.jit
    def loss(flat):
        """The loss written out, step by step; in its own words."""
        encoder = eqx.combine(unflatten(flat), rest)

        def of_step(observation, noise):
            mean, std = encoder.distribution(observation)
            old_mean, old_std = old.distribution(observation)
            latent = mean + std * noise
            own = jnp.sum(jax.scipy.stats.norm.logpdf(latent, mean, std))
            strays = own - jnp.sum(jax.scipy.stats.norm.logpdf(latent))
            value = reppo._values(
                learner_state.critic, learner_state.encoder.statistics, observation[None], latent[None]
            )[0]
            kl = jnp.sum(jnp.log(std / old_std) + (old_std**2 + (old_mean - mean) ** 2) / (2 * std**2) - 0.5)
            upwards = 0.2 * strays - value
            if kl_mode == "clipped":
                return jnp.where(kl < 0.09, upwards, 0.5 * kl), kl
            return upwards + (0.5 * kl if kl_mode == "full" else 0.0), kl

        losses, kls = jax.vmap(of_step)(batch.observation, noise)
        return jnp.mean(losses), kls

    # The step that it takes says which gradient it had: plain gradient descent in place of Adam.
    class Plain(REPPO):
        def _optimiser(self):
            return optax.identity()

    plain = Plain(**{name: getattr(reppo, name) for name in REPPO.__dataclass_fields__})
    plain = eqx.tree_at(lambda r: r.learning_rate, plain, jnp.asarray(1.0))
    # The encoder goes up the critic that was just updated, so that one has to stand still.
    learner_state = plain._initial_state(learner_state.encoder, learner_state.critic, None)
    temperature, multiplier = jnp.log(0.2), jnp.log(0.5)
    learner_state = eqx.tree_at(
        lambda m: (m.log_temperature, m.log_multiplier), learner_state, (temperature, multiplier)
    )
    after, _ = eqx.filter_jit(still_critic(plain)._gradient_steps)(learner_state, old, batch, noise_key, 1.0)
    moved, _ = jax.flatten_util.ravel_pytree(split_trainable(after.encoder)[0])
    gradient = np.asarray(flat - moved)
    kls = loss(flat)[1]
    assert 0 < np.mean(kls < 0.09) < 1  # both sides of the bound
    for seed in range(4):
        direction = jax.random.normal(jax.random.key(seed), flat.shape)
        direction /= jnp.linalg.norm(direction)
        up, down = (float(loss(flat + step * direction)[0]) for step in (1e-2, -1e-2))
        np.testing.assert_allclose(gradient @ np.asarray(direction), (up - down) / 2e-2, rtol=0.05, atol=5e-3)


def still_critic(reppo):
    """The same learner whose critic does not move."""

    class Still(type(reppo)):
        def _moved(self, part, gradient, state, rate):
            if isinstance(part, type(reppo.init(1, 1, jax.random.key(0)).critic)):
                return part, state
            return super()._moved(part, gradient, state, rate)

    return Still(**{name: getattr(reppo, name) for name in REPPO.__dataclass_fields__})


def bandit(reppo, num_iterations, reward_of, key=0):
    """Learns what to do at once, in episodes of one step, and gives the memory and the metrics of each iteration."""

    def iterate(learner_state, key):
        observation_key, latent_key, update_key = jax.random.split(key, 3)
        shape = (reppo.unroll_length, reppo.num_envs)
        observation = jax.random.normal(observation_key, (*shape, OBSERVATION_SIZE))
        latent, extras = jax.vmap(jax.vmap(learner_state.encoder.sample))(
            observation, jax.random.split(latent_key, shape)
        )
        ended = jnp.ones(shape, bool)
        experience = Experience(
            observation, latent, extras, latent, reward_of(latent), ended, ~ended, jnp.full_like(observation, 1e3)
        )
        return reppo.update(learner_state, experience, update_key)

    @eqx.filter_jit
    def run(key):
        learner_state = reppo.init(OBSERVATION_SIZE, LATENT_SIZE, key)
        return jax.lax.scan(iterate, learner_state, jax.random.split(key, num_iterations))

    return run(jax.random.key(key))


@pytest.mark.usefixtures("optimised")
def test_both_multipliers_settle_where_what_they_weigh_meets_its_target():
    # The reward pulls latents to one point, the prior pulls back, and the temperature says by how much.
    reppo = small_reppo(
        num_envs=64, unroll_length=8, num_minibatches=4, num_epochs=4, target_divergence=0.5, kl_bound=0.05,
        learning_rate=3e-3, dual_learning_rate=1e-2, lowest_value=-10.0, highest_value=10.0, policy_norm=False,
        value_width=32, policy_width=32,
    )  # fmt: skip
    learner_state, metrics = bandit(reppo, 150, lambda latent: 2 - jnp.sum((latent - 0.5) ** 2, axis=-1))
    divergence, kl = (np.mean(metrics[name][-30:]) for name in ("divergence", "kl"))
    np.testing.assert_allclose(divergence, 0.5 * LATENT_SIZE, rtol=0.15)
    assert kl < 0.05 * 1.5
    mean, std = jax.vmap(learner_state.encoder.distribution)(
        jax.random.normal(jax.random.key(5), (50, OBSERVATION_SIZE))
    )
    best_mean, best_std = best_gaussian(0.5, 0.5)
    # How far latents are from the point, in mean square: 1.25 of the prior.
    distance, least = np.mean((mean - 0.5) ** 2 + std**2), (best_mean - 0.5) ** 2 + best_std**2
    assert 0.9 * least < distance < 1.25 * least


def best_gaussian(goal, divergence_of_one):
    """Mean and deviation of the Gaussian nearest to a goal, in mean square, of those with a divergence from N(0, 1)."""

    def divergence_of(parameters):
        mean, std = parameters
        return 0.5 * (std**2 + mean**2 - 1 - 2 * np.log(std))

    found = scipy.optimize.minimize(
        lambda p: (p[0] - goal) ** 2 + p[1] ** 2,
        x0=[0.3, 0.7],
        constraints={"type": "eq", "fun": lambda p: divergence_of(p) - divergence_of_one},
        bounds=[(-3, 3), (0.05, 3)],
    )
    return found.x


@pytest.mark.usefixtures("optimised")
def test_on_actions_it_finds_the_best_action():
    reppo = small_reppo(
        num_envs=64, unroll_length=8, num_minibatches=4, num_epochs=4, on_actions=True, target_divergence=1.5,
        learning_rate=3e-3, lowest_value=-10.0, highest_value=10.0, value_width=32, policy_width=32,
    )  # fmt: skip
    target = jnp.array([0.4, -0.6])
    learner_state, _ = bandit(reppo, 120, lambda latent: 1 - 4 * jnp.sum((jnp.tanh(latent) - target) ** 2, axis=-1))
    observations = jax.random.normal(jax.random.key(5), (50, OBSERVATION_SIZE))
    for encoder in (reppo.encoder(learner_state), reppo.evaluated_encoder(learner_state)):
        actions = jnp.tanh(jax.vmap(encoder.mode)(observations))
        assert np.mean(np.linalg.norm(actions - target, axis=-1)) < 0.15


def test_the_averaged_encoder_is_a_running_average(shaken):
    reppo = small_reppo(average_decay=0.75)
    learner_state = shaken_memory(reppo, shaken)
    update = eqx.filter_jit(reppo.update)
    after, metrics = update(learner_state, random_experience(learner_state, jax.random.key(2)), jax.random.key(3))
    assert set(metrics) == set(reppo.metric_names())
    assert all(jnp.isfinite(figure) for figure in metrics.values())
    networks = [m.network for m in (learner_state.averaged_encoder, after.encoder, after.averaged_encoder)]
    before, newest, averaged = ([leaf for leaf in jax.tree.leaves(network)] for network in networks)
    for parts in zip(before, newest, averaged, strict=True):
        np.testing.assert_allclose(0.75 * parts[0] + 0.25 * parts[1], parts[2], rtol=1e-5, atol=1e-6)
    assert after.averaged_encoder.statistics.count == after.encoder.statistics.count


def test_a_value_outside_the_bins_is_seen_in_the_metrics(shaken):
    learner_state = shaken_memory(small_reppo(), shaken)
    experience = random_experience(learner_state, jax.random.key(2))
    shares = []
    for highest in (120.0, 0.01):
        reppo = small_reppo(lowest_value=-10.0, highest_value=highest)
        _, metrics = eqx.filter_jit(reppo.update)(learner_state, experience, jax.random.key(3))
        shares.append(float(metrics["out_of_range"]))
    assert shares[0] == 0 < shares[1]


def test_the_critic_learns_alone_until_the_encoder_starts(shaken, assert_same):
    def updated(reppo, learner_state):
        experience = random_experience(learner_state, jax.random.key(2))
        return eqx.filter_jit(reppo.update)(learner_state, experience, jax.random.key(3))[0]

    def actor(learner_state):
        encoder_state, _, duals_state = learner_state.optimiser_states
        duals = (learner_state.log_temperature, learner_state.log_multiplier)
        return learner_state.encoder.network, duals, encoder_state, duals_state

    reppo = small_reppo(encoder_starts=TIME * ENVS + 1)
    before = shaken_memory(reppo, shaken)
    waited, unhurried = updated(reppo, before), updated(small_reppo(), before)
    assert_same(actor(waited), actor(before))
    # The targets of an iteration are those of the encoder that gathered it, so the critic learns the same.
    assert_same(waited.critic, unhurried.critic)
    assert not np.array_equal(waited.critic.head.layers[0].weight, before.critic.head.layers[0].weight)
    begun = updated(reppo, waited)
    for leaf, old in zip(jax.tree.leaves(actor(begun)), jax.tree.leaves(actor(before)), strict=True):
        assert not np.array_equal(leaf, old)


@pytest.mark.parametrize(("keep_critic", "keep_features"), [(False, False), (True, True)])
def test_what_crosses_a_stage(shaken, assert_same, keep_critic, keep_features):
    reppo = small_reppo(keep_critic=keep_critic, keep_features=keep_features)
    learner_state = shaken_memory(reppo, shaken)
    begun = reppo.restart(learner_state, OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(9))
    mean, std = begun.encoder.distribution(jnp.ones(OBSERVATION_SIZE))
    np.testing.assert_allclose((mean, std), ([0, 0], [1, 1]), atol=1e-5)
    is_same = jax.tree.map(np.array_equal, begun.critic, learner_state.critic)
    assert all(jax.tree.leaves(is_same)) == keep_critic
    first = lambda m: m.encoder.network.layers[0].weight  # noqa: E731
    assert np.array_equal(first(begun), first(learner_state)) == keep_features
    assert (begun.encoder.statistics.count > 0) == keep_critic
    assert_same(begun.log_temperature, jnp.log(0.01))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_minibatches": 5}, "num_minibatches = 5 does not divide"),
        ({"kl_mode": "cliped"}, "'clipped'"),
        ({"discount": 1.0}, "give learner.lowest_value and"),
        ({"lowest_value": 3.0, "highest_value": 2.0}, "is not below learner.highest_value"),
        ({"auxiliary_loss_coefficient": 1.0}, "set learner.auxiliary_loss"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(gorl.InputError, match=message):
        small_reppo(**changes)


@pytest.mark.parametrize(
    ("name", "value"), [("num_bins", 1), ("kl_bound", 0.0), ("average_decay", 1.5), ("target_divergence", 0.0)]
)
def test_what_is_out_of_range_is_refused(name, value):
    config = gorl.preset("MultiGoal", method="reppo")
    config.check()
    with pytest.raises(gorl.InputError, match=rf"learner\.{name} must be"):
        gorl.replace(config, {f"learner.{name}": value}).check()


def test_the_outlook_is_learned(shaken):
    reppo = small_reppo(auxiliary_loss=True, auxiliary_loss_coefficient=1.0, learning_rate=3e-3, num_epochs=40)
    learner_state = shaken_memory(reppo, shaken)
    experience = random_experience(learner_state, jax.random.key(2))
    batch = reppo._batch(learner_state, experience, jax.random.key(3))

    def error(learner_state):
        statistics = learner_state.encoder.statistics
        features = reppo._features(learner_state.critic, statistics, batch.seen, batch.latent)
        return float(reppo._auxiliary_loss(learner_state.critic, statistics, features, batch))

    after, _ = eqx.filter_jit(reppo.update)(learner_state, experience, jax.random.key(4))
    after = eqx.tree_at(lambda m: m.encoder.statistics, after, learner_state.encoder.statistics)
    assert error(after) < 0.7 * error(learner_state)
