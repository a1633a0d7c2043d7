import contextlib
import dataclasses
import functools
import itertools
import re
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl import Phase
from gorl._decoder._flow import FlowDecoder


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 3)


@pytest.fixture(scope="module")
def plain(tiny, keys):
    """The results of single runs."""
    return [gorl.train(tiny, key) for key in keys]


@contextlib.contextmanager
def as_on_a_gpu():
    """A run that is traced here has its seeds side by side where a CPU takes them in turn."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("_batching", "_sharding"):
            patch.setattr(f"gorl._backend.{module}.on_cpu", lambda: False)
        # Without its own `jit`, which would have the program that it made for a CPU.
        patch.setattr("gorl._train._train", gorl._train._train.__wrapped__)
        yield


@pytest.fixture(scope="module", params=[contextlib.nullcontext, as_on_a_gpu], ids=["in turn", "side by side"])
def device(request):
    """A context in which seeds are arranged as on some device."""
    return request.param


@pytest.fixture(scope="module")
def run_vmapped(tiny, keys):
    """Makes the program of a run over three seeds, and its result; once for each arrangement of seeds."""

    @functools.cache
    def run(device):
        with device():
            program = jax.jit(jax.vmap(gorl.train, in_axes=(None, 0))).lower(tiny, keys).compile()
        return program, program(tiny, keys)

    return run


@pytest.fixture
def vmapped(run_vmapped, device):
    return run_vmapped(device)


@pytest.fixture(scope="module")
def watched(tiny, keys):
    """The chunks of a run, each with the state after it."""
    return list(gorl.iterate(tiny, keys[0]))


@pytest.fixture(scope="module")
def watched_together(tiny, keys):
    """The same for a run over three seeds."""
    return list(gorl.iterate(tiny, keys))


@pytest.fixture(scope="session")
def one_stage(tiny):
    return gorl.replace(tiny, {"stage_steps": (480,), "decoder": gorl.Identity()})


def seed(result, index):
    return jax.tree.map(lambda leaf: leaf[index], result)


# --- A pure function of config and key. ---


def test_the_same_key_gives_bit_identical_results(tiny, keys, plain, assert_same):
    assert_same(gorl.train(tiny, keys[0]), plain[0])


def test_different_keys_give_different_results(plain):
    for one, other in itertools.combinations(plain, 2):
        assert np.all(one.curve.returns != other.curve.returns)
        assert np.all(one.returns != other.returns)
        weights = [result.policy.encoder.network.layers[0].weight for result in (one, other)]
        assert np.all(weights[0] != weights[1])


def test_inside_jit_results_are_bit_identical(tiny, keys, plain, assert_same):
    assert_same(jax.jit(gorl.train)(tiny, keys[0]), plain[0])


def test_every_way_of_compiling_it_works(one_stage, keys, assert_same):
    result = gorl.train(one_stage, keys[0])
    assert_same(eqx.filter_jit(gorl.train)(one_stage, keys[0]), result)
    assert_same(jax.jit(lambda key: gorl.train(one_stage, key))(keys[0]), result)


def test_a_seed_of_a_vmapped_run_is_the_single_run(plain, vmapped, assert_same):
    # Measured: weights and figures within 1e-6 after two stages of five iterations. Longer runs part ways, as every
    # chaotic system does that is rounded differently.
    for index, single in enumerate(plain):
        assert_same(seed(vmapped[1], index), single, rtol=1e-4, atol=1e-5)


def test_a_vmapped_run_has_a_leading_axis_of_seeds_everywhere(vmapped, plain):
    for together, single in zip(jax.tree.leaves(vmapped[1]), jax.tree.leaves(plain[0]), strict=True):
        assert together.shape == (3, *single.shape)


def test_a_batch_of_hyperparameters_trains_in_one_vmap(tiny, keys, assert_same):
    batch = {
        "learner.learning_rate": (1e-3, 5e-3),
        "learner.clip_epsilon": (0.1, 0.3),
        "learner.discount": (0.9, 0.99),
        "learner.latent_coefficient": (0.0, 0.1),
    }
    config = gorl.replace(tiny, {name: jnp.asarray(values) for name, values in batch.items()})
    results = eqx.filter_vmap(gorl.train, in_axes=(eqx.if_array(0), None))(config, keys[0])
    for index in (0, 1):
        single = gorl.train(gorl.replace(tiny, {name: values[index] for name, values in batch.items()}), keys[0])
        assert_same(seed(results, index), single, rtol=1e-4, atol=1e-5)
    # Before anything is learned the values do not matter, afterwards they do.
    curve = results.curve.returns
    np.testing.assert_array_equal(curve[0, 0], curve[1, 0])
    assert np.all(curve[0, -1] != curve[1, -1])


def test_every_leaf_of_a_config_has_its_effect(tiny, keys, plain):
    # A leaf that was read as a constant while tracing would go unnoticed otherwise.
    changes = {
        "learner.learning_rate": 3e-3,
        "learner.learning_rate_decay": 0.5,
        "learner.max_gradient_norm": 0.01,
        "learner.discount": 0.5,
        "learner.gae_lambda": 0.5,
        "learner.reward_scale": 5.0,
        "learner.clip_epsilon": 1e-4,
        "learner.entropy_coefficient": 0.5,
        "learner.value_loss_coefficient": 3.0,
        "learner.latent_coefficient": 0.5,
        "refinement.learning_rate": 1e-2,
        "refinement.patience": 1,
        "stage_margin": 0.5,
    }
    assert len(changes) == len(jax.tree.leaves(tiny))
    before = plain[0].policy
    for name, value in changes.items():
        if name in ("refinement.patience", "stage_margin"):
            continue  # three epochs may well all be better than the one before; test_patience.py has the margin
        after = gorl.train(gorl.replace(tiny, {name: value}), keys[0]).policy
        same = jax.tree.map(lambda one, other: bool(jnp.all(one == other)), eqx.filter(before, eqx.is_array), after)
        assert not all(jax.tree.leaves(same)), name


# --- What is compiled, and how often. ---


def test_a_second_call_compiles_nothing(tiny, keys, plain, compilations):
    key, rate = keys[1], jnp.asarray(2e-3, jnp.float32)
    changed = [
        tiny,
        gorl.replace(tiny, {"learner.learning_rate": 2e-3, "learner.clip_epsilon": 1}),
        gorl.replace(tiny, {"learner.learning_rate": rate}),
        gorl.replace(tiny, {"refinement.patience": 2}),
        gorl.Config.from_json(tiny.to_json()),
    ]
    compilations.clear()
    for config in changed:
        gorl.train(config, key)
    assert not compilations


def test_chunks_after_the_first_compile_nothing(tiny, keys, watched, compilations):
    key = keys[2]
    compilations.clear()
    assert len(list(gorl.iterate(tiny, key))) == len(watched)
    assert not compilations


def test_after_precompiling_nothing_is_left_to_compile(tiny, compilations):
    config = gorl.replace(tiny, {"evaluation_episodes": 3})  # which no other test has compiled
    key = jax.random.key(5)
    gorl.precompile(config, key)
    assert compilations
    compilations.clear()
    assert len(list(gorl.iterate(config, key))) == len(gorl.make_schedule(config))
    assert not compilations


class Mistaken(FlowDecoder):
    """A decoder in whose loss there is a mistake."""

    def loss(self, observation, latent, action, key):
        raise ZeroDivisionError("a mistake in the loss")


class CannotBeFitted(gorl.FlowMatching):
    def init(self, statistics, action_size, key):
        flow = super().init(statistics, action_size, key)
        return Mistaken(**{field.name: getattr(flow, field.name) for field in dataclasses.fields(flow)})


def test_a_mistake_in_the_decoder_is_known_long_before_the_first_stage_ends(tiny, keys):
    decoder = CannotBeFitted(width=8, depth=1, num_steps=2)
    config = gorl.replace(tiny, {"decoder": decoder, "stage_steps": (500_000, 160)})

    def begin():
        for _ in itertools.islice(gorl.iterate(config, keys[0]), 3000):
            time.sleep(0.01)  # a stage takes minutes elsewhere, and the program of the refinement comes last

    with pytest.raises(ZeroDivisionError, match="a mistake in the loss"):
        begin()


class CountsTraces:
    """An environment that knows how often its step has been traced."""

    observation_size = 2
    action_size = 2
    episode_length = 20

    def __init__(self):
        self.inner = gorl.MultiGoal()
        self.traces = 0

    def reset(self, key):
        return self.inner.reset(key)

    def step(self, state, action):
        self.traces += 1
        return self.inner.step(state, action)


def traces(config, num_stages, train, key):
    env = CountsTraces()
    config = gorl.replace(config, {"env": gorl.EnvConfig(env), "stage_steps": (160,) * num_stages})
    jax.eval_shape(lambda key: train(config, key), key)
    return env.traces


def test_ten_stages_trace_the_environment_as_often_as_two(tiny, keys):
    two = traces(tiny, 2, gorl.train, keys[0])
    assert two >= 1
    assert traces(tiny, 10, gorl.train, keys[0]) == two


def test_ten_stages_trace_the_environment_as_often_as_two_over_seeds(tiny, keys):
    train = jax.vmap(gorl.train, in_axes=(None, 0))
    assert traces(tiny, 10, train, keys) == traces(tiny, 2, train, keys) == traces(tiny, 2, gorl.train, keys[0])


def equations(jaxpr):
    """All the equations of a program, wherever they are nested."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(part, "jaxpr", part)  # closed or open
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def branches(jaxpr):
    return [len(equation.params["branches"]) for equation in equations(jaxpr) if equation.primitive.name == "cond"]


def test_over_seeds_the_stage_boundary_is_still_a_branch(tiny, keys, device):
    # A batched predicate would have turned it into a select, which refines the decoder in every chunk.
    with device():
        single = branches(jax.make_jaxpr(gorl.train)(tiny, keys[0]).jaxpr)
        together = branches(jax.make_jaxpr(jax.vmap(gorl.train, in_axes=(None, 0)))(tiny, keys).jaxpr)
    assert single.count(3) == 1
    # The branches inside, where an unfitted decoder is the identity, are still there too; but side by side not where
    # the policy that is kept acts, which for one seed can be of an earlier stage than for another.
    num_kept = 2 if device is as_on_a_gpu else 0  # in evaluations and in the demonstration
    assert (together.count(3), together.count(2)) == (1, single.count(2) - num_kept)


def test_over_seeds_the_stage_loop_is_one_scan_around_the_branch(tiny, keys, device):
    with device():
        program = jax.make_jaxpr(jax.vmap(gorl.train, in_axes=(None, 0)))(tiny, keys).jaxpr
    scans = [equation.params for equation in equations(program) if equation.primitive.name == "scan"]
    lengths = [params["length"] for params in scans if 3 in branches(params["jaxpr"].jaxpr)]
    assert lengths == [len(gorl.make_schedule(tiny)), *([] if device is as_on_a_gpu else [len(keys)])]


def test_over_seeds_the_compiled_program_has_the_branch_once(vmapped):
    program, _ = vmapped
    conditionals = re.findall(r"branch_computations=\{([^}]*)\}", program.as_text())
    assert [text.count(",") + 1 for text in conditionals].count(3) == 1


# --- The Python loop beside the scan. ---


def assert_continues_from_anywhere(config, chunks, assert_same):
    # Each chunk from the state before it: by induction, stopping after any number of them changes nothing.
    for (_, before), (step, after) in itertools.pairwise(chunks):
        next_chunk, state = next(gorl.iterate(config, before))
        assert next_chunk.index == step.index
        assert_same(state, after)


def test_a_run_continues_bit_identically_from_every_state(tiny, watched, assert_same):
    assert_continues_from_anywhere(tiny, watched, assert_same)


def test_a_run_over_seeds_continues_bit_identically_from_every_state(tiny, watched_together, assert_same):
    assert_continues_from_anywhere(tiny, watched_together, assert_same)


@pytest.mark.parametrize("index", [0, 4, 9, 17])
def test_a_run_continued_to_its_end_is_bit_identical(tiny, watched, assert_same, index):
    rest = list(gorl.iterate(tiny, watched[index][1]))
    assert len(rest) == len(watched) - index - 1
    assert_same(rest[-1][1], watched[-1][1])


def test_a_state_that_has_been_through_the_host_continues_bit_identically(tiny, watched, assert_same):
    # As it does through a file: weak types and devices are gone, and so is every object that it was made with.
    def copy(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.asarray(jax.random.key_data(leaf)))
        return jnp.asarray(np.array(leaf))

    _, state = next(gorl.iterate(tiny, jax.tree.map(copy, watched[9][1])))
    assert_same(state, watched[10][1])


def test_a_finished_run_has_nothing_left_to_do(tiny, watched):
    assert list(gorl.iterate(tiny, watched[-1][1])) == []


def test_iterating_gives_the_chunks_of_the_schedule(tiny, watched):
    assert [int(step.index) for step, _ in watched] == list(range(len(gorl.make_schedule(tiny))))
    assert [int(state.index) for _, state in watched] == list(range(1, len(watched) + 1))


def test_the_loop_ends_with_the_result_of_train(tiny, watched, plain, assert_same):
    # Measured: bit-identical. Only the compiler says so, therefore the tolerance.
    assert_same(gorl.finish(tiny, watched[-1][1]), plain[0], rtol=1e-4, atol=1e-5)


def test_the_loop_over_seeds_ends_with_the_result_of_the_vmapped_train(tiny, watched_together, vmapped, assert_same):
    # Measured: returns within 3e-7, weights within 1e-6.
    assert_same(gorl.finish(tiny, watched_together[-1][1]), vmapped[1], rtol=1e-4, atol=1e-5)


def test_a_run_finished_early_has_the_evaluations_so_far(tiny, watched):
    result = gorl.finish(tiny, watched[3][1])
    assert np.isfinite(result.curve.mean_return).tolist() == [True, True] + [False] * 6
    assert np.all(np.isnan(result.returns))


# --- On several devices. ---


@pytest.fixture(scope="module")
def sharded(tiny, keys):
    """The chunks of a run over two seeds on two devices."""
    return list(gorl.iterate(tiny, keys[:2]))


def test_each_device_has_seeds_of_its_own(sharded):
    for _, state in sharded:
        for leaf in jax.tree.leaves(state):
            assert [shard.data.shape for shard in leaf.addressable_shards] == [(1, *leaf.shape[1:])] * 2


def on_one_device(tree):
    """What is on several devices, so that it can be held against what is on one."""
    return jax.device_put(tree, jax.local_devices()[0])


def test_seeds_on_several_devices_are_those_on_one(sharded, watched_together, assert_same):
    # Measured: bit-identical. Only the compiler says so, therefore the tolerance.
    first_two = jax.tree.map(lambda leaf: leaf[:2], watched_together[-1][1])
    assert_same(on_one_device(sharded[-1][1]), first_two, rtol=1e-4, atol=1e-5)


def test_gpus_have_their_seeds_side_by_side(tiny, keys, assert_same):
    config = gorl.replace(tiny, {"evaluation_episodes": 2})  # which nothing has been compiled for
    with as_on_a_gpu():
        *_, (_, state) = gorl.iterate(config, jnp.concatenate([keys[:2], keys[:2]]))
    assert_same(seed(on_one_device(state), slice(2)), seed(on_one_device(state), slice(2, 4)))
    single = gorl.train(config, keys[1])
    assert_same(seed(gorl.finish(config, state), 1), single, rtol=1e-4, atol=1e-5)


def test_a_run_on_several_devices_continues_bit_identically_from_every_state(tiny, sharded, assert_same):
    assert_continues_from_anywhere(tiny, sharded, assert_same)


def test_a_run_that_was_on_one_device_goes_back_to_several(tiny, sharded, assert_same):
    _, after = next(gorl.iterate(tiny, on_one_device(sharded[9][1])))
    assert_same(after, sharded[10][1])
    # Anywhere else it would have been compiled for that, too.
    assert after.key.sharding == sharded[10][1].key.sharding


def test_a_batch_in_the_config_goes_where_its_seeds_are(tiny, keys):
    rates = jnp.asarray([tiny.learner.learning_rate, 1e30])
    chunks = gorl.iterate(gorl.replace(tiny, {"learner.learning_rate": rates}), keys[:2])
    _, state = next(itertools.islice(chunks, 1, 2))
    assert state.diverged_at.tolist() == [-1, 1]


def test_the_result_is_on_one_device(tiny, sharded):
    result = gorl.finish(tiny, sharded[-1][1])
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(result))
    returns = gorl.evaluate(tiny.env, seed(result.policy, 1), jax.random.key(0), num_episodes=2)
    assert len(returns.devices()) == 1


# --- Numbers that stop being finite. ---


@pytest.fixture(scope="module")
def side_by_side(tiny, keys):
    """Three seeds whose learning rates are right, and the same where that of the second one makes it diverge."""

    def run(rates):
        return list(gorl.iterate(gorl.replace(tiny, {"learner.learning_rate": jnp.asarray(rates)}), keys))

    rate = tiny.learner.learning_rate
    return run([rate, rate, rate]), run([rate, 1e30, rate])


def test_a_seed_that_diverges_leaves_the_others_as_they_are_bit_for_bit(side_by_side, assert_same):
    for (_, sound), (_, broken) in zip(*side_by_side, strict=True):
        for index in (0, 2):
            assert_same(seed(sound, index), seed(broken, index))


def test_where_a_seed_diverged_and_when_is_known(tiny, side_by_side):
    sound, broken = side_by_side
    assert gorl.finish(tiny, sound[-1][1]).diverged_at.tolist() == [-1, -1, -1]
    assert gorl.finish(tiny, broken[-1][1]).diverged_at.tolist() == [-1, 1, -1]
    assert [state.diverged_at[1] for _, state in broken[:2]] == [-1, 1]  # the first iteration is the second chunk


def test_a_seed_that_diverges_keeps_its_best_policy_from_before(tiny, side_by_side):
    _, broken = side_by_side
    config = gorl.replace(tiny, {"learner.learning_rate": 1e30})
    result = seed(gorl.finish(config, broken[-1][1]), 1)
    returns, stages = np.asarray(result.curve.mean_return), np.asarray(result.curve.stage)
    for stage in (0, 1):  # each begins with numbers of its own, of which none is left after an iteration
        assert np.isfinite(returns[stages == stage]).tolist() == [True] + [False] * (np.sum(stages == stage) - 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.policy))
    assert np.isfinite(result.returns).all()
    _, begin = next((step, state) for step, state in broken if step.stage == 1 and step.phase == Phase.EVALUATE)
    kept, first = (jax.tree.leaves(encoder) for encoder in (result.policy.encoder, seed(begin, 1).best.policy.encoder))
    assert all(map(np.array_equal, kept, first))


class FragileState(eqx.Module):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    count: jax.Array


class Fragile(eqx.Module):
    """Gives a reward or an observation of NaN after an action that is far out, or from a certain step on."""

    broken: str
    far_out: float = 2.0
    num_sound: int = 1000
    observation_size: int = 2
    action_size: int = 2
    episode_length: int = 20

    def reset(self, key):
        return FragileState(jax.random.uniform(key, (2,)), jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def step(self, state, action):
        breaks = jnp.any(jnp.abs(action) > self.far_out) | (state.count >= self.num_sound)
        obs, reward = 0.9 * state.obs + 0.1 * action, 1 - jnp.sum(state.obs**2)
        obs = jnp.where(breaks & (self.broken == "obs"), jnp.nan, obs)
        reward = jnp.where(breaks & (self.broken == "reward"), jnp.nan, reward)
        return FragileState(obs, reward, state.done, state.count + 1)


@pytest.mark.parametrize(
    ("broken", "divergence"), [("reward", gorl.Divergence.REWARD), ("obs", gorl.Divergence.OBSERVATION)]
)
def test_what_was_not_finite_is_known_and_when(one_stage, keys, broken, divergence):
    # The mode of a fresh policy is never far out, and its samples soon are.
    config = gorl.replace(one_stage, {"env": gorl.EnvConfig(Fragile(broken, far_out=0.9))})
    result = gorl.train(config, keys[0])
    assert (result.diverged_at, result.divergence) == (1, divergence)
    assert np.isfinite(result.curve.mean_return[0])


@pytest.mark.parametrize(
    ("broken", "divergence"), [("reward", gorl.Divergence.REWARD), ("obs", gorl.Divergence.OBSERVATION)]
)
def test_evaluations_that_are_all_nan_are_marked_and_do_not_keep_the_untrained_policy(
    one_stage, keys, broken, divergence, assert_same
):
    env = gorl.EnvConfig(Fragile(broken, num_sound=8), training_length=5)  # which training never comes to
    config = gorl.replace(one_stage, {"env": env})
    *_, (_, last) = gorl.iterate(config, keys[0])
    result = gorl.finish(config, last)
    assert np.isnan(result.curve.mean_return).all()
    assert np.isnan(result.returns).all()
    assert (result.diverged_at, result.divergence) == (0, divergence)
    assert_same(result.policy.encoder, last.learner_state.encoder)
    assert last.learner_state.encoder.statistics.count > 0


def test_a_stage_without_a_finite_evaluation_keeps_the_policy_of_the_one_before(tiny, watched, assert_same):
    index = next(p for p, (step, _) in enumerate(watched) if step.phase == Phase.REFINE)
    state = watched[index][1]
    broken = eqx.tree_at(
        lambda s: s.learner_state.encoder.network,
        state,
        jax.tree.map(lambda weights: jnp.full_like(weights, jnp.nan), state.learner_state.encoder.network),
    )
    *_, (_, last) = gorl.iterate(tiny, broken)
    result, before = gorl.finish(tiny, last), watched[index - 1][1]
    assert not result.policy.decoder.fitted
    assert_same(result.policy.encoder, before.best.policy.encoder)
    assert_same(result.policy.decoder.decoder, before.decoder)
    assert np.isfinite(result.returns).all()
    assert result.divergence == gorl.Divergence.PARAMETERS


def test_where_jax_is_to_stop_at_nan_a_run_says_so_before_it_begins(tiny, keys, compilations):
    with jax.debug_nans(True):
        for run in (gorl.train, gorl.iterate):
            with pytest.raises(gorl.InputError, match="jax_debug_nans would stop"):
                run(tiny, keys[0])
    assert not compilations


def test_where_jax_is_to_compute_in_64_bits_a_run_says_so_before_it_begins(tiny, keys, make_policy, compilations):
    policy, key = make_policy(2, 2), keys[0]
    compilations.clear()
    with jax.enable_x64(True):
        for use in (
            lambda: gorl.train(tiny, key),
            lambda: gorl.iterate(tiny, key),
            lambda: gorl.evaluate(tiny.env, policy, key),
        ):
            with pytest.raises(gorl.InputError, match="gorl computes in 32 bits"):
                use()
    assert not compilations


def test_a_batch_in_the_config_trains_like_the_single_values(tiny, side_by_side, watched_together, assert_same):
    assert_same(side_by_side[0][-1][1], watched_together[-1][1], rtol=1e-4, atol=1e-5)


def test_a_batch_in_the_config_without_a_key_for_each_value_is_refused(tiny, keys, compilations):
    config = gorl.replace(tiny, {"learner.learning_rate": jnp.asarray([1e-3, 2e-3])})
    for start in (keys[0], keys):
        with pytest.raises(gorl.InputError, match="give a key for each value"):
            gorl.iterate(config, start)


# --- Whoever wants to know of each evaluation. ---


@pytest.fixture(scope="module")
def train_telling(one_stage, keys):
    """Trains the seeds side by side, and tells a function of each evaluation. Compiled once for all functions."""
    listeners = []
    train = jax.jit(jax.vmap(lambda key: gorl.train(one_stage, key, lambda record: listeners[0](record))))

    def train_and_tell(listener):
        listeners[:] = [listener]
        results = jax.block_until_ready(train(keys))
        jax.effects_barrier()
        return results

    return train_and_tell


def test_the_callback_is_told_of_each_evaluation_of_each_seed(train_telling, keys):
    told = []
    results = train_telling(told.append)
    for index, key in enumerate(keys):
        result = seed(results, index)
        *curve, final = (each for each in told if np.array_equal(each.key, jax.random.key_data(key)))
        np.testing.assert_array_equal([each.returns for each in curve], result.curve.returns)
        np.testing.assert_array_equal([each.env_steps for each in curve], result.curve.env_steps)
        np.testing.assert_array_equal([each.stage for each in curve], result.curve.stage)
        np.testing.assert_array_equal(final.returns, result.returns)
        assert [each.is_final for each in curve] + [final.is_final] == [False] * len(curve) + [True]
        for name, figures in result.curve.metrics.items():
            np.testing.assert_array_equal([each.metrics[name] for each in curve], figures)
    assert len(told) == len(keys) * (len(curve) + 1)


def test_an_exception_in_the_callback_ends_the_run_with_its_own_words_and_the_next_run_is_whole(train_telling, keys):
    told = []

    class OwnError(Exception):
        pass

    def fail_at_the_fifth(record):
        told.append(record)
        if len(told) == 5:
            raise OwnError("the disk of the log is full")

    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        train_telling(fail_at_the_fifth)
    assert len(told) == 5
    assert "in fail_at_the_fifth\n" in str(raised.value)
    assert "OwnError: the disk of the log is full" in str(raised.value)
    told = []
    train_telling(told.append)
    assert len(told) % len(keys) == 0
    assert told[-1].is_final


def test_a_slow_callback_changes_no_result(train_telling, assert_same):
    assert_same(train_telling(lambda record: time.sleep(0.05)), train_telling(lambda record: None))


class Logger(eqx.Module):
    seen: np.ndarray

    def __call__(self, record):
        raise AssertionError


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ("print", "must be a function of a gorl.EvaluationRecord, not 'print'"),
        (Logger(np.zeros(2)), "is a Logger, which has no hash or holds arrays"),
        (jax.tree_util.Partial(print, np.zeros(2)), "is a Partial, which has no hash or holds arrays"),
        (dataclasses.make_dataclass("Table", [], namespace={"__call__": print})(), "is a Table, which has no hash"),
    ],
)
def test_a_callback_that_a_compiled_run_cannot_call_is_refused(tiny, keys, unchecked, compilations, callback, message):
    key = keys[0]
    compilations.clear()
    with pytest.raises(gorl.InputError, match=f"on_evaluation {message}"):
        gorl.train(tiny, key, callback)
    assert not compilations


# --- Stages. ---


def test_a_decoder_is_frozen_while_the_encoder_learns(watched, assert_same):
    for (_, before), (step, after) in itertools.pairwise(watched):
        if step.phase != Phase.REFINE:
            assert_same(before.decoder, after.decoder)


def test_an_evaluation_changes_nothing_that_learns(watched, assert_same):
    for (_, before), (step, after) in itertools.pairwise(watched):
        if step.phase == Phase.EVALUATE:
            assert_same((before.learner_state, before.rollout_state), (after.learner_state, after.rollout_state))


def refined(watched):
    """The states before and after the refinement."""
    (index,) = [index for index, (step, _) in enumerate(watched) if step.phase == Phase.REFINE]
    return watched[index - 1][1], watched[index][1]


def test_a_stage_begins_with_a_fresh_encoder_close_to_the_prior(tiny, watched):
    first, (before, after) = watched[0][1], refined(watched)
    encoders = [tiny.learner.encoder(state.learner_state) for state in (first, before, after)]
    mean, std = jax.vmap(encoders[2].distribution)(jax.random.normal(jax.random.key(1), (100, 2)))
    np.testing.assert_allclose(mean, 0, atol=0.1)
    np.testing.assert_allclose(std, 1, atol=0.1)
    # The public GoRL code begins every stage with the very weights of the first.
    fresh = [encoder.network.layers[0].weight for encoder in encoders]
    assert np.all(fresh[2] != fresh[0])
    assert np.all(fresh[2] != fresh[1])


def test_a_refinement_replaces_the_decoder_and_forgets_the_best(watched):
    before, after = refined(watched)
    weights = [state.decoder.velocity.network.layers[0].weight for state in (before, after)]
    assert np.all(weights[0] != weights[1])
    assert after.best.mean_return == -np.inf
    # The decoder's statistics are those of what it was fitted to: 8 episodes of 20 steps.
    assert after.decoder.statistics.count == 160
    # Episodes that were running under the old decoder are not gone on with.
    assert np.all(after.rollout_state.episode.done)


def test_every_refinement_but_none_after_the_last_stage(tiny, plain):
    fits = plain[0].fits
    assert fits.num_epochs.shape == fits.validation_loss.shape == fits.training_loss.shape == (tiny.num_stages - 1,)
    assert np.all((fits.num_epochs >= 1) & (fits.num_epochs <= tiny.refinement.num_epochs))
    assert np.all(np.isfinite(fits.validation_loss))


def test_one_stage_refines_nothing(one_stage, keys):
    result = gorl.train(one_stage, keys[0])
    assert result.fits.num_epochs.shape == (0,)
    assert np.all(np.isfinite(result.returns))


def test_one_stage_does_not_even_compile_a_refinement(one_stage, keys):
    assert 3 not in branches(jax.make_jaxpr(gorl.train)(one_stage, keys[0]).jaxpr)


def evaluations(watched, stage):
    """The evaluations of a stage: chunk, state after it, and mean return."""
    return [
        (state, float(jnp.mean(state.returns[step.evaluation])))
        for step, state in watched
        if step.phase == Phase.EVALUATE and step.stage == stage and not step.is_final
    ]


@pytest.mark.parametrize("stage", [0, 1])
def test_the_best_of_a_stage_is_its_greatest_mean_return(watched, stage):
    seen = evaluations(watched, stage)
    means = [mean for _, mean in seen]
    assert len(set(means)) == len(means)
    np.testing.assert_allclose([state.best.mean_return for state, _ in seen], np.maximum.accumulate(means), rtol=1e-6)


def test_the_policy_kept_is_the_best_of_the_last_stage(tiny, watched, assert_same):
    best, _ = max(evaluations(watched, stage=1), key=lambda evaluation: evaluation[1])
    result = gorl.finish(tiny, watched[-1][1])
    assert_same(result.policy.encoder, tiny.learner.encoder(best.learner_state))
    assert_same(result.policy.decoder.decoder, watched[-1][1].decoder)
    assert bool(result.policy.decoder.fitted)


def test_each_seed_keeps_its_own_best(tiny, watched_together):
    final = watched_together[-1][1]
    means = np.asarray(jnp.mean(final.returns, axis=-1))[:, :-1]
    stage = np.asarray([step.stage for step, _ in watched_together if step.phase == Phase.EVALUATE])[:-1]
    np.testing.assert_allclose(final.best.mean_return, means[:, stage == 1].max(axis=1), rtol=1e-6)


def test_the_policy_in_the_result_earns_what_the_result_says(tiny, plain):
    # Other episodes, but of the same policy: their means are apart by a few standard errors at most.
    returns = gorl.evaluate(tiny.env, plain[0].policy, jax.random.key(5), num_episodes=256)
    sharded = float(jnp.std(returns))
    assert abs(float(jnp.mean(plain[0].returns)) - float(jnp.mean(returns))) < 4 * sharded / 2


def test_an_evaluation_that_is_nan_never_becomes_the_best(tiny, watched, assert_same):
    index = next(p for p, (step, _) in enumerate(watched) if step.phase == Phase.EVALUATE and p > 1)
    state = watched[index - 1][1]
    broken = eqx.tree_at(
        lambda s: s.learner_state.encoder.network,
        state,
        jax.tree.map(lambda weights: jnp.full_like(weights, jnp.nan), state.learner_state.encoder.network),
    )
    step, after = next(gorl.iterate(tiny, broken))
    assert step.phase == Phase.EVALUATE
    assert np.all(np.isnan(after.returns[step.evaluation]))
    assert_same(after.best, state.best)


def test_training_length_cuts_episodes_while_training_only(one_stage, counting, keys):
    # Ten steps in an iteration: the fourth episode of three steps is one step old when it ends.
    config = gorl.replace(one_stage, {"env": gorl.EnvConfig(counting(episode_length=20), training_length=3)})
    (_, evaluated), (step, learned) = itertools.islice(gorl.iterate(config, keys[0]), 2)
    assert step.phase == Phase.LEARN
    assert learned.rollout_state.episode.step_count.tolist() == [1] * 16
    assert np.all(evaluated.returns[0] == sum(range(1, 21)))


# --- The curve. ---


def test_the_curve_follows_the_schedule(tiny, plain):
    curve, points = plain[0].curve, gorl.make_schedule(tiny).curve
    np.testing.assert_array_equal(curve.stage, points.stage)
    np.testing.assert_array_equal(curve.env_steps, 160 * points.iterations)
    assert curve.returns.shape == (len(points.stage), tiny.evaluation_episodes)
    np.testing.assert_allclose(curve.mean_return, np.mean(curve.returns, axis=1), rtol=1e-6)
    assert np.all(np.isfinite(curve.returns))


def test_figures_of_the_learner_are_there_but_for_the_beginning_of_a_stage(tiny, plain):
    curve = plain[0].curve
    begins = np.asarray([0, *(np.flatnonzero(np.diff(curve.stage)) + 1)])
    assert len(begins) == 2
    assert set(curve.metrics) == set(tiny.learner.metric_names())
    for figures in curve.metrics.values():
        assert np.flatnonzero(np.isnan(figures)).tolist() == begins.tolist()


def test_env_steps_do_not_overflow():
    # 180M steps of sixteen seeds pass 2^31, and so do a few thousand iterations of the paper's size.
    curve = gorl.Curve(jnp.asarray([0, 5000]), jnp.zeros(2, jnp.int32), jnp.zeros((2, 1)), {}, 983_040)
    assert curve.env_steps.tolist() == [0, 4_915_200_000]


# --- It learns. ---


@pytest.mark.usefixtures("optimised")
def test_it_learns_and_its_stages_hand_over(tiny, keys):
    config = gorl.replace(
        tiny,
        {
            "env": gorl.EnvConfig("MultiGoal"),
            "learner": gorl.PPO(
                num_envs=64,
                unroll_length=10,
                num_unrolls=2,
                num_minibatches=4,
                num_epochs=4,
                value_width=64,
                value_depth=2,
                reward_scale=1.0,
                discount=0.95,
            ),
            "decoder": gorl.FlowMatching(width=32, depth=2),
            "refinement": gorl.Refinement(num_episodes=64, num_validation_episodes=6, batch_size=256, num_epochs=50),
            "stage_steps": (100_000, 100_000),
            "evaluation_interval": 20_000,
            "evaluation_episodes": 64,
        },
    )
    results = jax.vmap(gorl.train, in_axes=(None, 0))(config, keys)
    assert np.all(np.mean(results.returns, axis=-1) > 35)
    curve = results.curve
    first, last = (np.asarray(curve.mean_return)[:, curve.stage[0] == stage] for stage in (0, 1))
    # Nothing is known at the beginning, and what has been learned is handed on.
    assert np.mean(first[:, 0]) < 10
    assert np.mean(last[:, 0]) >= 0.7 * np.mean(first.max(axis=1))


# --- Bad input. ---


def test_seeds_whose_states_do_not_fit_the_memory_twice_are_refused(tiny, keys, watched, compilations, monkeypatch):
    state = watched[-1][1]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))  # of one seed
    starts = [keys[:count] for count in (1, 2, 3)]
    compilations.clear()
    monkeypatch.setattr("gorl._prepare.memory_of", lambda mesh: 4 * size)
    for start in (keys[0], state, *starts[:2]):
        gorl.iterate(tiny, start)
    with pytest.raises(gorl.InputError, match=r"the state of 3 seeds takes .* train fewer seeds together"):
        gorl.iterate(tiny, starts[2])
    monkeypatch.setattr("gorl._prepare.memory_of", lambda mesh: 2 * size - 1)
    with pytest.raises(gorl.InputError, match="the state of 1 seed takes"):
        gorl.iterate(tiny, state)
    assert not compilations


@pytest.mark.parametrize("run", [gorl.train, gorl.iterate])
@pytest.mark.parametrize(
    "make_key",
    [lambda: 0, lambda: None, lambda: jax.random.PRNGKey(0), lambda: np.zeros(2, np.uint32), lambda: "0"],
    ids=["an int", "None", "a raw key", "a raw numpy key", "a string"],
)
def test_a_key_of_the_wrong_kind_is_refused(tiny, unchecked, compilations, run, make_key):
    key = make_key()
    compilations.clear()
    with pytest.raises(gorl.InputError, match=r"the key must come from jax\.random\.key"):
        run(tiny, key)
    assert not compilations


def test_train_takes_one_key(tiny, unchecked, keys, compilations):
    with pytest.raises(gorl.InputError, match=r"train takes one key: use jax\.vmap"):
        gorl.train(tiny, keys)
    assert not compilations


def test_train_takes_one_value_of_each_number(tiny, keys, compilations):
    config, key = gorl.replace(tiny, {"learner.learning_rate": jnp.array([1e-3, 2e-3])}), keys[0]
    compilations.clear()
    with pytest.raises(gorl.InputError, match=r"a batch of 2 values .*eqx\.filter_vmap\(gorl\.train"):
        gorl.train(config, key)
    assert not compilations


def test_a_table_of_keys_is_refused(tiny, unchecked, keys, compilations):
    table = keys.reshape(1, 3)
    compilations.clear()
    with pytest.raises(gorl.InputError):
        gorl.iterate(tiny, table)
    assert not compilations


# --- What the learner is told. ---


class Timekeeper(gorl.PPO):
    """Reports how far it was told that the run is."""

    def metric_names(self):
        return (*super().metric_names(), "progress")

    def update(self, learner_state, experience, key, progress=0.0):
        learner_state, metrics = super().update(learner_state, experience, key, progress)
        return learner_state, {**metrics, "progress": jnp.asarray(progress)}


def test_the_learner_is_told_how_far_the_run_is(tiny, keys):
    learner = Timekeeper(**{name: getattr(tiny.learner, name) for name in tiny.learner.__dataclass_fields__})
    curve = gorl.train(gorl.replace(tiny, {"learner": learner}), keys[0]).curve
    # Two stages of five iterations, each evaluated after none, two, four and five of its own.
    told = [np.nan, 0.1, 0.3, 0.4, np.nan, 0.6, 0.8, 0.9]
    np.testing.assert_allclose(curve.metrics["progress"], told, rtol=1e-6)
