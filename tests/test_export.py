"""Exported policies, run by onnxruntime and by JAX in a process without this library."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
from quick import quick_environment

import gorl

ENVIRONMENTS = ("MultiGoal", "PointMass", "brax/inverted_pendulum")
SMALL = {"policy_width": 16, "policy_depth": 2, "value_width": 1, "value_depth": 1}
METHODS = {
    "gorl-flow": (gorl.PPO(**SMALL), gorl.FlowMatching(width=16, depth=2, num_steps=5)),
    "gorl-diffusion": (gorl.PPO(**SMALL), gorl.Diffusion(width=16, depth=2, num_steps=5)),
    "gorl-meanflow": (gorl.PPO(**SMALL), gorl.MeanFlow(width=16, depth=2)),
    "gorl-gaussian": (gorl.PPO(**SMALL), gorl.Gaussian(width=16, depth=2)),
    "ppo": (gorl.PPO(**SMALL, on_actions=True), gorl.Identity()),
    "fpo": (gorl.FPO(**SMALL, num_steps=5), gorl.Identity()),
    "dppo": (gorl.DPPO(**SMALL, num_steps=5), gorl.Identity()),
    "sac": (gorl.SAC(**SMALL, num_envs=8, buffer_size=512), gorl.Identity()),
}
# Where other latents than zero, and seeds, are tried: compiling takes far longer than running, and only encoders draw.
DRAWN = "MultiGoal"
# The sizes of other observations and actions are tried with a decoder and with a chain.
CELLS = [(env, method) for env in ENVIRONMENTS for method in METHODS if env == DRAWN or method in ("gorl-flow", "dppo")]
SEEDED = [(DRAWN, method) for method in ("gorl-flow", "ppo", "fpo", "dppo")]
KINDS = {"stablehlo": gorl.export_stablehlo, "onnx": gorl.export_onnx}

OUTSIDE = """
import pathlib, sys
import numpy as np
import onnxruntime

given = {path: dict(np.load(path)) for path in pathlib.Path(sys.argv[1]).glob("*.npz")}
for path in pathlib.Path(sys.argv[1]).glob("*.onnx"):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (action,) = session.run(["action"], given[path.with_suffix(".npz")])
    np.save(path.with_suffix(".onnx.npy"), action)
assert not {"gorl", "jax"} & set(sys.modules)

import jax.export

for path, inputs in given.items():
    program = jax.export.deserialize(path.with_suffix(".stablehlo").read_bytes())
    np.save(path.with_suffix(".stablehlo.npy"), program.call(*inputs.values()))
assert not {"gorl", "equinox", "diffrax"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def observations():
    """A thousand observations of the size of each environment, of different scales."""
    found = {}
    for name in ENVIRONMENTS:
        draw, size = np.random.default_rng(0), gorl.environments()[name][0]
        scales = draw.uniform(0.2, 5.0, size)
        found[name] = jnp.asarray(draw.normal(draw.normal(0.0, scales), scales, (1000, size)), jnp.float32)
    return found


@pytest.fixture(scope="module")
def policies(observations):
    """A policy of each method for each environment, with random weights."""

    def skeleton(sizes, learner, decoder):
        key = jax.random.key(0)
        encoder = learner.encoder(learner.init(*sizes, key))
        fitted = decoder.init(encoder.statistics, sizes[1], key)
        return gorl.Policy(encoder, gorl.StagedDecoder(fitted, jnp.ones((), bool)), *sizes)

    def filled(tree, statistics, scale):
        draw = np.random.default_rng(0).normal

        def fill(leaf):
            if isinstance(leaf, gorl.RunningStatistics):
                return statistics
            if leaf.ndim == 0:
                return jnp.asarray(leaf.dtype == bool or 0.05)  # fitted, and the noise of each step of a chain
            deviation = scale / np.sqrt(leaf.shape[-1]) if leaf.ndim > 1 else 0.1
            return jnp.asarray(draw(0, deviation, leaf.shape), leaf.dtype)

        return jax.tree.map(fill, tree, is_leaf=lambda leaf: isinstance(leaf, gorl.RunningStatistics))

    found = {}
    for env, method in CELLS:
        statistics = gorl.RunningStatistics.of(observations[env])
        like = eqx.filter_eval_shape(skeleton, gorl.environments()[env], *METHODS[method])
        # Actions that depend on everything, and are not all at the ends of their range.
        encoder, decoder = filled(like.encoder, statistics, 1.4), filled(like.decoder, statistics, 0.6)
        found[env, method] = gorl.Policy(encoder, decoder, like.observation_size, like.action_size)
    return found


def act(policy, observation, latent):
    return jnp.tanh(policy.decoder.decode(observation, policy.encoder.from_noise(observation, latent)))


@pytest.fixture(scope="module")
def files(policies, observations, tmp_path_factory):
    """Every policy exported, what each is tried on, and what it should do then."""
    directory = tmp_path_factory.mktemp("exported")
    expected = {}
    draw = np.random.default_rng(0)

    def add(cell, how, inputs, actions):
        stem = directory / f"{how}-{list(policies).index(cell)}"
        stem.with_suffix(".stablehlo").write_bytes(gorl.export_stablehlo(policies[cell], how))
        if how == "latent":
            stem.with_suffix(".onnx").write_bytes(gorl.export_onnx(policies[cell]))
        np.savez(stem.with_suffix(".npz"), **inputs)
        expected[stem] = actions

    for cell, policy in policies.items():
        seen = np.asarray(observations[cell[0]])
        latent = np.zeros((1000, *policy.encoder.noise_shape), np.float32)
        actions = jax.vmap(policy.mode)(seen)
        if cell[0] == DRAWN:
            drawn = np.float32(draw.normal(size=latent.shape))
            of_drawn = jax.jit(jax.vmap(lambda seen, latent, policy=policy: act(policy, seen, latent)))(seen, drawn)
            seen, latent = np.concatenate([seen, seen]), np.concatenate([latent, drawn])
            actions = np.concatenate([actions, of_drawn])
        add(cell, "latent", {"observation": seen, "latent": latent}, actions)
        if cell in SEEDED:
            seed = draw.integers(0, 2**32, 1000, np.uint32)
            of_seed = jax.jit(jax.vmap(lambda seen, seed, policy=policy: policy(seen, jax.random.key(seed))))
            seen = observations[cell[0]]
            add(cell, "seed", {"observation": seen, "seed": seed}, of_seed(seen, seed))

    def find(how, env, method):
        stem = directory / f"{how}-{list(policies).index((env, method))}"
        return stem, expected[stem]

    return find


@pytest.fixture(scope="module")
def outside(files):
    """What the exported policies do in a process that knows nothing of this library."""
    directory = files("latent", DRAWN, "ppo")[0].parent
    environment = quick_environment()
    subprocess.run([sys.executable, "-c", OUTSIDE, directory], env=environment, check=True)

    def actions(how, env, method, kind):
        return np.load(files(how, env, method)[0].with_suffix(f".{kind}.npy"))

    return actions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("env", "method"), CELLS)
def test_a_latent_gives_the_action_of_the_policy(files, outside, env, method, kind):
    _, expected = files("latent", env, method)
    modes = expected[:1000]
    assert modes.std(axis=0).max() > 0.05  # it acts on what it sees,
    if env == DRAWN:
        assert np.abs(expected[1000:] - modes).max() > 0.05  # and on the latent
    actions = outside("latent", env, method, kind)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("env", "method"), SEEDED)
def test_a_seed_gives_the_action_of_its_key(files, outside, env, method):
    _, expected = files("seed", env, method)
    np.testing.assert_allclose(outside("seed", env, method, "stablehlo"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_onnx_finds_nothing_wrong(files, method):
    onnx.checker.check_model(files("latent", DRAWN, method)[0].with_suffix(".onnx"), full_check=True)


# --- What goes in and comes out ---


def run(kind, content, *inputs):
    if kind == "stablehlo":
        return np.asarray(jax.export.deserialize(content).call(*inputs))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [known.name for known in session.get_inputs()]
    (action,) = session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))
    return action


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_can_have_any_size(files, kind):
    stem, expected = files("latent", DRAWN, "gorl-flow")
    content = stem.with_suffix(f".{kind}").read_bytes()
    inputs = np.load(stem.with_suffix(".npz"))
    for rows in (slice(1500, 1501), slice(1501, 1504)):
        actions = run(kind, content, inputs["observation"][rows], inputs["latent"][rows])
        np.testing.assert_allclose(actions, expected[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "dtype", "drawn"), [("latent", "float32", ("batch", 6, 2)), ("seed", "uint32", ("batch",))]
)
def test_inputs_and_output_are_said_in_a_stablehlo(files, how, dtype, drawn):
    stem, _ = files(how, DRAWN, "dppo")
    expected = [("float32", ("batch", 2)), (dtype, drawn), ("float32", ("batch", 2))]

    program = jax.export.deserialize(stem.with_suffix(".stablehlo").read_bytes())
    arrays = (*program.in_avals, *program.out_avals)
    assert [f"{array.dtype.name}{array.shape}".replace("'", "") for array in arrays] == [
        f"{name}{shape}".replace("'", "") for name, shape in expected
    ]
    assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}


def test_inputs_and_output_are_said_in_an_onnx(files):
    stem, _ = files("latent", DRAWN, "dppo")
    session = onnxruntime.InferenceSession(stem.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    arrays = (*session.get_inputs(), *session.get_outputs())
    assert {array.type for array in arrays} == {"tensor(float)"}
    shapes = [("observation", ["batch", 2]), ("latent", ["batch", 6, 2]), ("action", ["batch", 2])]
    assert [(array.name, array.shape) for array in arrays] == shapes


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_is_not_fitted_is_left_out(files, policies, kind):
    stem, _ = files("latent", DRAWN, "gorl-flow")
    fitted = policies[DRAWN, "gorl-flow"]
    unfitted = eqx.tree_at(lambda p: p.decoder.fitted, fitted, jnp.zeros((), bool))
    content = KINDS[kind](unfitted)
    inputs = [array[:20] for array in np.load(stem.with_suffix(".npz")).values()]
    encoded = jnp.tanh(jax.vmap(unfitted.encoder.mode)(inputs[0]))
    np.testing.assert_allclose(run(kind, content, *inputs), encoded, rtol=0, atol=1e-5)
    weights = np.asarray(fitted.decoder.decoder.velocity.network.layers[1].weight)
    weights = (weights.T if kind == "onnx" else weights).tobytes()  # ONNX multiplies from the other side
    assert weights in stem.with_suffix(f".{kind}").read_bytes()
    assert weights not in content


def test_nothing_of_this_machine_is_in_a_file(files, policies):
    stem, _ = files("latent", DRAWN, "ppo")
    for kind, export in KINDS.items():
        content = stem.with_suffix(f".{kind}").read_bytes()
        assert b".py" not in content
        assert content == export(policies[DRAWN, "ppo"])  # which is called from somewhere else here
    assert jax.config.jax_traceback_in_locations_limit > 0


def test_steps_that_adapt_are_exported_to_stablehlo_only(policies):
    policy = policies[DRAWN, "gorl-flow"]

    def with_integrator(**options):
        other = gorl.FlowMatching(width=16, depth=2, solver="Tsit5", **options)
        integrator = other.init(policy.encoder.statistics, 2, jax.random.key(0)).integrator
        return eqx.tree_at(lambda p: p.decoder.decoder.integrator, policy, integrator)

    adaptive, fixed = with_integrator(rtol=1e-6, atol=1e-6), with_integrator(num_steps=32)
    observation, latent = jax.random.normal(jax.random.key(0), (2, 50, 2))
    expected = jax.jit(jax.vmap(lambda observation, latent: act(fixed, observation, latent)))(observation, latent)
    actions = run("stablehlo", gorl.export_stablehlo(adaptive), observation, latent)
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-4)
    with pytest.raises(gorl.InputError, match=r"adapts its steps .* leave decoder.rtol and decoder.atol out"):
        gorl.export_onnx(adaptive)
    gorl.export_onnx(eqx.tree_at(lambda p: p.decoder.fitted, adaptive, jnp.zeros((), bool)))  # which takes no steps


# --- What is refused ---


def test_a_misspelt_draw_is_refused(policies):
    with pytest.raises(gorl.InputError, match="no draw is called 'latents': did you mean 'latent'"):
        gorl.export_stablehlo(policies[DRAWN, "ppo"], "latents")


@pytest.mark.parametrize("export", KINDS.values())
def test_several_policies_are_refused(policies, export):
    several = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), policies[DRAWN, "ppo"])
    with pytest.raises(gorl.InputError, match=r"of shape \(4,\), and one is needed: .* gorl\.of_seed\(policies, 0\)"):
        export(several)
    export(gorl.of_seed(several, 0))  # as the sentence says


def test_without_onnx_it_says_how_to_get_it(policies, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # an import of it fails
    with pytest.raises(gorl.InputError, match=r"not installed: pip install 'gorl\[onnx\]'"):
        gorl.export_onnx(policies[DRAWN, "ppo"])


# --- Networks of one's own ---


class Own(gorl.AbstractEncoder):
    """Whatever a function makes of noise."""

    statistics: gorl.RunningStatistics
    function: eqx.Module
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def noise_shape(self):
        return self.shape

    def sample(self, observation, key):
        return self.function(jax.random.normal(key, self.shape)), ()

    def from_noise(self, observation, noise):
        return self.function(noise)


class Function(eqx.Module):
    function: object = eqx.field(static=True)

    def __call__(self, x):
        return self.function(x)


def own_policy(function, noise_shape):
    """A policy whose actions are `tanh` of a function of noise."""
    function = function if isinstance(function, eqx.Module) else Function(function)
    encoder = Own(gorl.RunningStatistics.empty(1), function, noise_shape)
    return gorl.Policy(encoder, gorl.IdentityDecoder(), observation_size=1, action_size=1)


def run_own(function, noise):
    return run("onnx", gorl.export_onnx(own_policy(function, noise.shape[1:])), np.zeros((len(noise), 1), "f"), noise)


# Each with the same function in numpy and double precision, and the range of its arguments.
ELEMENTARY = {
    "abs": (jnp.abs, np.abs, -2, 2),
    "acos": (jnp.arccos, np.arccos, -0.99, 0.99),
    "acosh": (jnp.arccosh, np.arccosh, 1.01, 4),
    "asin": (jnp.arcsin, np.arcsin, -0.99, 0.99),
    "asinh": (jnp.arcsinh, np.arcsinh, -4, 4),
    "atan": (jnp.arctan, np.arctan, -4, 4),
    "atanh": (jnp.arctanh, np.arctanh, -0.9, 0.9),
    "cbrt of a square": (lambda x: (x * x) ** (1 / 3), lambda x: (x * x) ** (1 / 3), 0.1, 2),
    "ceil": (jnp.ceil, np.ceil, -2, 2),
    "clamp": (lambda x: jax.lax.clamp(-0.5, x, 1.0), lambda x: np.clip(x, -0.5, 1), -2, 2),
    "cos": (jnp.cos, np.cos, -4, 4),
    "cosh": (jnp.cosh, np.cosh, -1, 1),
    "div": (lambda x: (1 + x) / (3 + x), lambda x: (1 + x) / (3 + x), -2, 2),
    "erf": (jax.scipy.special.erf, scipy.special.erf, -2, 2),
    "erfc": (jax.scipy.special.erfc, scipy.special.erfc, -2, 2),
    "exp": (jnp.exp, np.exp, -3, 1),
    "exp2": (jnp.exp2, np.exp2, -3, 1),
    "expm1": (lambda x: 100 * jnp.expm1(x), lambda x: 100 * np.expm1(x), -0.01, 0.01),
    "floor": (jnp.floor, np.floor, -2, 2),
    "integer_pow": (lambda x: x**3 - x**-2, lambda x: x**3 - x**-2, 1, 1.5),
    "is_finite": (lambda x: jnp.isfinite(1 / jnp.floor(x)) * x, lambda x: (np.floor(x) != 0) * x, -2, 2),
    "log": (jnp.log, np.log, 0.1, 4),
    "log1p": (lambda x: 100 * jnp.log1p(x), lambda x: 100 * np.log1p(x), -0.01, 0.01),
    "logistic": (jax.nn.sigmoid, scipy.special.expit, -4, 4),
    "max": (lambda x: jnp.maximum(x, -x / 2), lambda x: np.maximum(x, -x / 2), -2, 2),
    "min": (lambda x: jnp.minimum(x, -x / 2), lambda x: np.minimum(x, -x / 2), -2, 2),
    "ne": (lambda x: (jnp.floor(x) != 1) * x, lambda x: (np.floor(x) != 1) * x, -2, 2),
    "neg": (lambda x: -x, lambda x: -x, -2, 2),
    "pow": (lambda x: x ** jnp.sin(x), lambda x: x ** np.sin(x), 0.1, 3),
    "rem": (lambda x: jnp.fmod(x, 0.75), lambda x: np.fmod(x, 0.75), -2, 2),
    "rsqrt": (jax.lax.rsqrt, lambda x: x**-0.5, 0.3, 4),
    "sign": (jnp.sign, np.sign, -2, 2),
    "sin": (jnp.sin, np.sin, -4, 4),
    "sinh": (jnp.sinh, np.sinh, -1, 1),
    "softplus": (jax.nn.softplus, lambda x: np.logaddexp(x, 0), -4, 2),
    "sqrt": (jnp.sqrt, np.sqrt, 0, 2),
    "square": (jnp.square, np.square, -1, 1),
    "tan": (jnp.tan, np.tan, -1, 1),
    "tanh": (jnp.tanh, np.tanh, -2, 2),
    "compared": (
        lambda x: jnp.where((x > 1) | (x <= -1) & ~(x < -1.5), x, -x / 2),
        lambda x: np.where((x > 1) | (x <= -1) & ~(x < -1.5), x, -x / 2),
        -2,
        2,
    ),
    "compared otherwise": (
        lambda x: jnp.where((x >= 1) ^ (jnp.floor(x) == -1), x, -x / 2),
        lambda x: np.where((x >= 1) ^ (np.floor(x) == -1), x, -x / 2),
        -2,
        2,
    ),
    "signed integers": (
        lambda x: ((1000 * x).astype(jnp.int32) * 123_457 // 7 % 1000 - 500) / 500,
        lambda x: ((1000 * np.float32(x)).astype(np.int32) * np.int32(123_457) // 7 % 1000 - 500) / 500,
        -2,
        2,
    ),
}


def test_elementary_functions_are_those_of_numpy():
    draw = np.random.default_rng(0).uniform
    noise = np.stack([draw(low, high, (200, 3)).astype(np.float32) for *_, low, high in ELEMENTARY.values()], axis=1)

    def function(noise):
        return jnp.concatenate([of_jax(x) for x, (of_jax, *_) in zip(noise, ELEMENTARY.values(), strict=True)])

    actions = run_own(function, noise).reshape(noise.shape)
    for index, (name, (_, of_numpy, *_)) in enumerate(ELEMENTARY.items()):
        expected = np.tanh(of_numpy(np.float64(noise[:, index])))
        np.testing.assert_allclose(actions[:, index], expected, rtol=0, atol=1e-5, err_msg=name)


def attention(x):
    layer = eqx.nn.MultiheadAttention(2, 4, key=jax.random.key(0))
    return layer(*[x.reshape(2, 4)] * 3).ravel()


def energy_gradient(x):
    network = eqx.nn.MLP(8, "scalar", 8, 1, key=jax.random.key(0))
    return jax.grad(lambda x: jnp.sum(x**2) * network(x))(x)


def scanned(x):
    def step(carry, inputs):
        carry = jnp.sin(carry + inputs)
        return carry, (carry, inputs[:1])

    last, (forwards, firsts) = jax.lax.scan(step, x[:2], x.reshape(4, 2))
    _, (backwards, _) = jax.lax.scan(step, x[:2], x.reshape(4, 2), reverse=True)
    return jnp.concatenate([last, forwards.ravel(), backwards.ravel(), firsts.ravel()])


def decided(x):
    one = jax.lax.fori_loop(0, 5, lambda i, x: 0.5 * x + i, x)
    return jax.lax.cond(jnp.asarray(3) > 2, lambda: one, lambda: jnp.sort(x))  # of which only one is written


def written(x):
    return x.at[2].set(x[0]).at[jnp.array([3, 4])].set(0.5).at[9].set(7.0, mode="drop")


def products(x):
    two_by_four, four_by_two = x.reshape(2, 4), x.reshape(4, 2)
    weights = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    return jnp.concatenate([
        jnp.outer(x, x).ravel() / 4,
        (two_by_four @ four_by_two).ravel() / 4,
        jnp.einsum("ij,kj->ki", two_by_four, two_by_four).ravel() / 4,
        jnp.einsum("bi,bij->bj", two_by_four, jnp.stack([x[:4, None] * x[4:], x[4:, None] * x[:4]])).ravel() / 8,
        (weights[0] @ x[:4]) / 2, x[4:] @ weights[1].T / 2,
        (two_by_four @ weights[0].T).ravel() / 2, (weights[1] @ four_by_two).ravel() / 2,
        jax.vmap(jnp.matmul)(weights, two_by_four).ravel() / 2,
    ])  # fmt: skip


def reductions(x):
    matrix = x.reshape(2, 4)
    return jnp.concatenate([
        matrix.sum(axis=0), matrix.max(axis=1), matrix.min(axis=1), matrix.prod(axis=0), matrix.mean()[None],
        matrix.std(axis=1), jax.nn.logsumexp(matrix, axis=0), jnp.where(jnp.any(matrix > 1, axis=0), x[:4], x[4:]),
        jnp.where(jnp.all(x > -2), x, -x), x / jnp.linalg.norm(x),
    ])  # fmt: skip


def moves(x):
    matrix, (left, right) = x.reshape(2, 4), jnp.split(x, 2)
    return jnp.concatenate([
        x[::-1], jnp.roll(x, 3), matrix.T.ravel(), x[1:7:2], jnp.take(x, jnp.array([5, 1, 1])), x[jnp.arange(3) + 2],
        jnp.stack([left, right], axis=1).ravel(), jnp.tile(x, 2), jnp.repeat(x, 2), jnp.pad(x, 2),
        jnp.pad(x, 2, mode="reflect"), jax.lax.dynamic_slice(x, (jnp.asarray(3),), (4,)), jnp.copy(x),
        jnp.broadcast_to(left[:, None], (4, 2)).ravel(), jnp.where(jnp.arange(8) > 3, x, 1.5),
        jnp.concatenate(jnp.unstack(matrix)), jax.lax.dynamic_update_slice(x, left, (jnp.asarray(2),)), jnp.eye(2)[0],
    ])  # fmt: skip


def drawn_from_known_keys(x):
    def step(x, key):
        return x * jax.random.uniform(key), jax.random.fold_in(key, 7)

    x = eqx.nn.Dropout(0.5)(x, key=jax.random.key(0))
    x, keys = jax.lax.scan(step, x, jax.random.split(jax.random.key(1), 3))
    return jnp.concatenate([x, jax.random.normal(keys[2], (2,))])


@pytest.mark.parametrize(
    "function",
    [
        eqx.nn.MLP(8, 3, 8, 2, activation=jax.nn.gelu, key=jax.random.key(0)),
        eqx.nn.LayerNorm(8), eqx.nn.RMSNorm(8), eqx.nn.GroupNorm(2, 8), eqx.nn.PReLU(),
        lambda x: eqx.nn.GRUCell(4, 4, key=jax.random.key(0))(x[:4], x[4:]),
        attention, energy_gradient, scanned, decided, written, products, reductions, moves, drawn_from_known_keys,
        jax.checkpoint(lambda x: jnp.sin(x) * x), jax.nn.softmax, jax.nn.relu, jax.nn.elu, jnp.nan_to_num,
        lambda x: jax.nn.one_hot(2, 8),
    ],
)  # fmt: skip
def test_networks_do_what_they_do_in_jax(function):
    noise = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    expected = jax.jit(jax.vmap(lambda x: jnp.tanh(function(x))))(noise)
    np.testing.assert_allclose(run_own(function, noise), expected, rtol=0, atol=1e-5)


def drawn_from_a_chosen_key(x):
    key = jnp.where(x[0] > 0, jax.random.key(0), jax.random.key(1))
    return jax.random.normal(key, (1,))


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (jnp.sort, "a policy that computes 'sort': do without, or export to StableHLO"),
        (lambda x: x[x[0].astype(int)][None], "a policy that computes 'dynamic_slice'"),
        (lambda x: x.at[jnp.array([1, 9])].get(mode="fill", fill_value=3.0), "a policy that computes 'gather'"),
        (lambda x: (x.astype(jnp.int32) & 2) / 2, "a policy that computes 'and'"),
        (lambda x: jax.random.normal(jax.random.key(x[0].astype(int)), (1,)), "'random_seed': .* export to StableHLO"),
        (drawn_from_a_chosen_key, "has key<fry> ones: .* export to StableHLO"),
        (lambda x: jax.lax.cond(x[0] > 0, lambda: x, lambda: -x), r"a condition on its inputs: use jax\.numpy\.where"),
        (lambda x: jax.lax.while_loop(lambda x: x[0] > 0, lambda x: x - 1, x), "steps that depends on its inputs"),
        (lambda x: x.astype(jnp.float16), "float32, int32 and bool only, and the policy has float16 ones"),
    ],
)
def test_what_onnx_cannot_do_is_refused(function, sentence):
    with pytest.raises(gorl.InputError, match=sentence):
        gorl.export_onnx(own_policy(function, (8,)))


def test_calls_back_to_python_are_refused_by_stablehlo():
    policy = own_policy(lambda x: eqx.error_if(x, x[0] > 100, "too large"), (8,))
    with pytest.raises(gorl.InputError, match="do without callbacks and error checks"):
        gorl.export_stablehlo(policy)
