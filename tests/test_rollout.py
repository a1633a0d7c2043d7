import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl._env import load_environment
from gorl._rollout import RolloutState, collect_dataset, rollout


@pytest.mark.parametrize("terminates_at", [3, 1_000_000], ids=["terminated", "truncated"])
def test_the_next_observation_is_the_one_before_the_restart(counting, make_policy, terminates_at):
    episodes = load_environment(gorl.EnvConfig(counting(terminates_at, episode_length=5)))
    _, experience = rollout(
        episodes,
        make_policy(2, 1, plain=True),
        RolloutState.empty(episodes, 3, jax.random.key(5)),
        4,
        5,
        jax.random.key(0),
    )
    done = np.asarray(experience.terminated | experience.truncated)
    assert done[:, 0].nonzero()[0].tolist() == list(range(min(terminates_at, 5) - 1, 20, min(terminates_at, 5)))
    # The environment counts its steps and keeps its start state.
    np.testing.assert_array_equal(experience.next_observation, experience.observation + jnp.array([0.0, 1.0]))
    # What is acted on next is that observation, or a fresh start if the episode is over.
    seen, done = experience.observation[1:], done[:-1]
    np.testing.assert_array_equal(seen[~done], experience.next_observation[:-1][~done])
    assert (seen[done][:, 1] == 0).all()


def test_a_demonstration_is_what_the_decoder_makes_of_latents_of_the_encoder(make_policy):
    episodes, policy = load_environment(gorl.EnvConfig("MultiGoal", episode_length=12)), make_policy(2, 2)
    observations, actions, latents = eqx.filter_jit(collect_dataset)(episodes, policy, 200, 1, 5, jax.random.key(0))
    assert observations.shape == actions.shape == latents.shape == (12, 200, 2)
    decoded = jax.vmap(jax.vmap(policy.decoder.decode))(observations, latents)
    np.testing.assert_allclose(actions, decoded, rtol=1e-4, atol=1e-4)
    mean, std = jax.vmap(jax.vmap(policy.encoder.distribution))(observations)
    standard = np.ravel((latents - mean) / std)
    # Four standard errors.
    assert abs(np.mean(standard)) < 4 / np.sqrt(standard.size)
    np.testing.assert_allclose(np.var(standard), 1, atol=4 * np.sqrt(2 / standard.size))


@pytest.mark.parametrize("unroll_length", [1, 4, 100])
def test_a_demonstration_keeps_one_step_in_a_stride_at_random_places(counting, make_policy, unroll_length):
    episodes = load_environment(gorl.EnvConfig(counting(episode_length=11)))
    policy = make_policy(2, 1, plain=True)
    act = eqx.filter_jit(collect_dataset)
    observations, actions, latents = act(episodes, policy, 300, 3, unroll_length, jax.random.key(0))
    assert observations.shape == (3, 300, 2)  # the last two steps are no whole stride
    count = np.asarray(observations[..., 1]).T
    np.testing.assert_array_equal(count // 3, np.broadcast_to([0, 1, 2], (300, 3)))
    # Each place of a stride comes up 100 times in 300, give or take four standard deviations.
    for column in count.T:
        np.testing.assert_allclose(np.bincount(column.astype(int) % 3, minlength=3), 100, atol=33)
    # Latents, observations and actions are of the same steps: this decoder is the identity.
    np.testing.assert_array_equal(latents, actions)
    assert len(np.unique(observations[..., 0])) == 300  # fresh episodes, of one start state each


def test_after_a_termination_a_demonstration_goes_on_with_another_episode(counting, make_policy):
    episodes = load_environment(gorl.EnvConfig(counting(terminates_at=4, episode_length=10)))
    observations, _, _ = eqx.filter_jit(collect_dataset)(
        episodes, make_policy(2, 1, plain=True), 5, 1, 10, jax.random.key(0)
    )
    np.testing.assert_array_equal(observations[..., 1].T, np.broadcast_to([0, 1, 2, 3] * 2 + [0, 1], (5, 10)))


def test_start_states_are_drawn_only_when_some_were_used(counting, make_policy):
    drawn = []

    class Watched(counting):
        def reset(self, key):
            state = super().reset(key)
            jax.debug.callback(lambda start: drawn.append(float(start)), state.obs[0])
            return state

    episodes, policy = load_environment(gorl.EnvConfig(Watched(episode_length=12))), make_policy(2, 1, plain=True)

    @jax.jit
    @jax.vmap
    def three_unrolls(rollout_state, key):
        return rollout(episodes, policy, rollout_state, 3, 4, key)

    rollout_state = jax.vmap(lambda key: RolloutState.empty(episodes, 5, key))(jax.random.split(jax.random.key(5)))
    counts = []
    for keys in jax.random.split(jax.random.key(0), (3, 2)):
        rollout_state, _ = jax.block_until_ready(three_unrolls(rollout_state, keys))
        jax.effects_barrier()
        counts.append(len(drawn) // (2 * 5))
    # To begin with, and once after each twelve steps.
    assert counts == [1, 2, 3]
    assert len(np.unique(drawn)) == len(drawn)


@pytest.mark.parametrize("episode_length", [1, 3])
def test_every_episode_has_a_start_state_of_its_own_however_short_it_is(counting, make_policy, episode_length):
    episodes = load_environment(gorl.EnvConfig(counting(episode_length=episode_length)))
    _, experience = rollout(
        episodes,
        make_policy(2, 1, plain=True),
        RolloutState.empty(episodes, 8, jax.random.key(5)),
        2,
        6,
        jax.random.key(0),
    )
    starts, steps = np.asarray(experience.observation[..., 0]), np.asarray(experience.observation[..., 1])
    assert len(np.unique(starts[steps == 0])) == 8 * 12 // episode_length


def test_workers_out_of_step_with_each_other_share_their_draws(counting, make_policy):
    drawn = []

    class Staggered(counting):
        def reset(self, key):
            jax.debug.callback(lambda: drawn.append(None))
            return super().reset(key)

        def step(self, state, action):  # ends after 4 to 7 steps, as its start state decides
            state = super().step(state, action)
            return eqx.tree_at(lambda s: s.done, state, (state.obs[1] >= 4 + 4 * state.obs[0] // 1).astype(jnp.float32))

    episodes = load_environment(gorl.EnvConfig(Staggered(episode_length=100)))
    act = eqx.filter_jit(rollout)
    _, experience = act(
        episodes,
        make_policy(2, 1, plain=True),
        RolloutState.empty(episodes, 16, jax.random.key(5)),
        5,
        8,
        jax.random.key(0),
    )
    jax.effects_barrier()
    ends = np.asarray(experience.terminated)
    starts = np.asarray(experience.observation[..., 0])[1:][ends[:-1]]
    assert len(np.unique(starts)) == len(starts)
    # Two episodes of a worker take eight steps or more, so that draws are no closer than four.
    assert 0 < len(drawn) / 16 <= 1 + 40 / 4
