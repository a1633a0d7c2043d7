import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from gorl import Integrator

START = jnp.array([1.0, -0.5])
TIMES = jnp.array([0.0, 0.1, 0.5, 0.6, 1.5])  # of very different lengths


def pendulum(time, point):
    angle, speed = point
    return jnp.stack([speed, jnp.cos(time) - jnp.sin(angle)])


def exact(end):
    def field(time, point):
        return [point[1], np.cos(time) - np.sin(point[0])]

    return solve_ivp(field, (0.0, end), START, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]


def test_given_steps_end_at_the_given_times():
    point = np.float64(START)
    for time, next_time in itertools.pairwise(TIMES):
        point = point + float(next_time - time) * np.array([point[1], np.cos(time) - np.sin(point[0])])
    np.testing.assert_allclose(Integrator(num_steps=4)(pendulum, START, TIMES), point, rtol=1e-5)


@pytest.mark.parametrize(
    ("solver", "order", "num_steps"), [(diffrax.Euler(), 1, 80), (diffrax.Midpoint(), 2, 20), (diffrax.Bosh3(), 3, 8)]
)
def test_unequal_steps_converge_at_the_order_of_the_solver(solver, order, num_steps):
    errors = []
    for count in (num_steps, 2 * num_steps):
        times = 1.5 * jnp.linspace(0.0, 1.0, count + 1) ** 2
        end = eqx.filter_jit(Integrator(solver, count))(pendulum, START, times)
        errors.append(np.linalg.norm(end - exact(1.5)))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.25)


def adaptive(tolerance=1e-6, **options):
    return Integrator(diffrax.Tsit5(), controller=diffrax.PIDController(rtol=tolerance, atol=tolerance), **options)


def test_a_controller_uses_only_the_first_and_the_last_time():
    end = adaptive()(pendulum, START, TIMES)
    np.testing.assert_allclose(end, exact(1.5), atol=1e-5)
    np.testing.assert_array_equal(adaptive()(pendulum, START, TIMES[jnp.array([0, -1])]), end)


def test_a_controller_that_does_not_arrive_gives_nan_and_spoils_no_neighbour():
    def field(time, point):
        return -point[0] * point  # the rate is the first entry of the point: some are stiffer than others

    starts = jnp.array([[0.1, 1.0], [3e4, 1.0]])
    ends = jax.vmap(lambda start: adaptive(max_steps=30)(field, start, TIMES))(starts)
    assert np.isnan(ends).all(axis=-1).tolist() == [False, True]
    # Here y' = -y², z' = -yz, so that y = z/10 = 1 / (t + 1/y(0)).
    np.testing.assert_allclose(ends[0], np.array([1, 10]) / (1.5 + 10), rtol=1e-4)


@pytest.mark.parametrize("integrator", [Integrator(diffrax.Heun(), 200), adaptive()], ids=["given", "adaptive"])
def test_gradients_go_through_the_steps(integrator):
    times = jnp.linspace(0.0, 1.0, 201)

    # The end is start * exp(-rate).
    @jax.jit
    def end(rate, start):
        return integrator(lambda _, point: -rate * point, start[None], times)[0]

    by_rate, by_start = jax.grad(end, argnums=(0, 1))(jnp.asarray(1.5), jnp.asarray(2.0))
    np.testing.assert_allclose([by_rate, by_start], [-2 * np.exp(-1.5), np.exp(-1.5)], rtol=1e-3)


def test_given_steps_never_call_back_to_the_host():
    program = jax.jit(lambda start: Integrator(num_steps=4)(pendulum, start, TIMES)).lower(START).as_text()
    assert "callback" not in program
