"""Flow matching: a velocity field fitted to straight paths from noise to actions, integrated by diffrax."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import InputError, unknown_name
from .._hyperparameters import real, size
from .._network import perceptron
from .._statistics import RunningStatistics
from .._types import RandomKey, Real
from ._base import AbstractDecoder, AbstractDecoderConfig

_MAX_ADAPTIVE_STEPS = 4096  # diffrax's own default; a solve that needs more has gone wrong


def embed_time(time: Float[Array, ""], num_frequencies: int) -> Float[Array, " embedding"]:
    """The cosines and sines of `2^k time` for `k = 0, 1, ..`, as the network sees the time of the flow."""
    angles = time * 2.0 ** jnp.arange(num_frequencies)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


class FlowDecoder(AbstractDecoder):
    """Carries a latent at time 0 to an action at time 1 along a learned velocity field.

    **Arguments:**

    - `network`: the velocity; takes the normalised observation, the point and the embedded time.
    - `statistics`: those of the observations it was fitted to.
    - `solver`: any explicit diffrax ODE solver.
    - `num_steps`: how many equal steps the solver takes.
    - `rtol`, `atol`: the tolerances that a PID controller adapts the steps to; `None` for equal steps.
    - `num_draws`: how many draws of noise and time the loss averages over.
    - `num_frequencies`: how many frequencies the time is embedded with.

    ??? cite "Reference"

        Lipman et al. (2023), *Flow Matching for Generative Modeling*, section 4.1, with straight paths.
    """

    network: eqx.nn.MLP
    statistics: RunningStatistics
    solver: diffrax.AbstractSolver = diffrax.Euler()
    num_steps: int = eqx.field(static=True, default=10)
    rtol: Real | None = None
    atol: Real | None = None
    num_draws: int = eqx.field(static=True, default=8)
    num_frequencies: int = eqx.field(static=True, default=4)

    def velocity(
        self, time: Float[Array, ""], point: Float[Array, " action"], normalised: Float[Array, " observation"]
    ) -> Float[Array, " action"]:
        """Where `point` is heading at `time`, given the normalised observation."""
        return self.network(jnp.concatenate([normalised, point, embed_time(time, self.num_frequencies)]))

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """The end of the path that starts at `latent`."""
        if self.rtol is None or self.atol is None:
            return self.integrate(observation, latent, self.solver, num_steps=self.num_steps)
        controller = diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        return self.integrate(observation, latent, self.solver, controller, num_steps=_MAX_ADAPTIVE_STEPS)

    def integrate(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        solver: diffrax.AbstractSolver,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        *,
        num_steps: int,
    ) -> Float[Array, " action"]:
        """[`decode`][] with the numerics given here.

        **Arguments:**

        - `observation`, `latent`: as for `decode`.
        - `solver`: any explicit diffrax ODE solver.
        - `stepsize_controller`: any diffrax step-size controller; `None` for equal steps.
        - `num_steps`: how many equal steps, or the most that the controller may take.

        **Returns:**

        The action, or NaN if the controller did not arrive in so many steps.
        """
        is_adaptive = stepsize_controller is not None
        if stepsize_controller is None:
            # Equal steps have a known number, so that no device has to be asked whether the solve is over.
            stepsize_controller = diffrax.StepTo(ts=jnp.linspace(0.0, 1.0, num_steps + 1))
            adjoint = diffrax.DirectAdjoint()
        else:
            adjoint = diffrax.RecursiveCheckpointAdjoint()
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(self.velocity),  # pyright: ignore[reportArgumentType]
            solver,
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=latent,
            args=self.statistics.normalise(observation),
            stepsize_controller=stepsize_controller,
            adjoint=adjoint,
            max_steps=num_steps,
            throw=False,  # an error check is a host callback in every environment step
        )
        assert solution.ys is not None
        action = solution.ys[0]
        if is_adaptive:
            action = jnp.where(solution.result == diffrax.RESULTS.successful, action, jnp.nan)
        return action

    def loss(
        self, observation: Float[Array, " observation"], action: Float[Array, " action"], key: RandomKey
    ) -> Float[Array, ""]:
        """The mean squared error of the velocity on straight paths from fresh noise to `action`."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (self.num_draws, *action.shape))
        times = jax.random.uniform(time_key, (self.num_draws,))
        points = (1 - times[:, None]) * noise + times[:, None] * action
        normalised = self.statistics.normalise(observation)
        predicted = jax.vmap(self.velocity, in_axes=(0, 0, None))(times, points, normalised)
        return jnp.mean((predicted - (action - noise)) ** 2)


def _solver_name(solver: str | diffrax.AbstractSolver) -> str:
    if isinstance(solver, str):
        return solver
    if solver != type(solver)():
        raise InputError(
            f"a solver with options of its own cannot be written to a file: give {type(solver).__name__}()."
        )
    return type(solver).__name__


class FlowMatching(AbstractDecoderConfig):
    """A flow-matching decoder, with the values of the GoRL paper.

    **Arguments:**

    - `width`, `depth`: hidden layers of the velocity network.
    - `num_draws`: draws of noise and time for each action and epoch.
    - `num_frequencies`: frequencies that the time is embedded with.
    - `solver`: an explicit diffrax ODE solver or its name, such as `"Euler"`, `"Heun"`, `"Midpoint"`, `"Tsit5"`.
    - `num_steps`: equal steps from noise to action.
    - `rtol`, `atol`: give both for steps that a PID controller adapts to these tolerances, instead of equal ones.
    """

    width: int = size(32)
    depth: int = size(4)
    num_draws: int = size(8)
    num_frequencies: int = size(4)
    solver: str = eqx.field(static=True, converter=_solver_name, default="Euler")
    num_steps: int = size(10)
    rtol: Real | None = real(None, above=0)
    atol: Real | None = real(None, above=0)

    def init(self, statistics: RunningStatistics, action_size: int, key: RandomKey) -> FlowDecoder:
        """A decoder that is the identity map until it is fitted: its velocity starts close to zero."""
        network = perceptron(
            statistics.mean.shape[0] + action_size + 2 * self.num_frequencies,
            action_size,
            self.width,
            self.depth,
            key=key,
            output_scale=0.01,
        )
        return FlowDecoder(
            network,
            statistics,
            _explicit_solvers()[self.solver](),
            self.num_steps,
            None if self.rtol is None else jnp.asarray(self.rtol),
            None if self.atol is None else jnp.asarray(self.atol),
            self.num_draws,
            self.num_frequencies,
        )

    def check(self) -> None:
        solvers = _explicit_solvers()
        if self.solver not in solvers:
            raise unknown_name("explicit diffrax solver", self.solver, solvers)
        if (self.rtol is None) != (self.atol is None):
            raise InputError("decoder.rtol and decoder.atol belong together: give both, or neither for equal steps.")
        if self.rtol is not None and not issubclass(solvers[self.solver], diffrax.AbstractAdaptiveSolver):
            raise InputError(
                f"decoder.rtol needs a solver that estimates its error, and {self.solver} does not: try Tsit5 or Heun."
            )


def _explicit_solvers() -> dict[str, type[diffrax.AbstractSolver]]:
    """The diffrax solvers that step an ordinary differential equation without solving equations inside, by name."""
    found = [getattr(diffrax, name) for name in dir(diffrax)]
    kinds = (diffrax.Euler, diffrax.AbstractERK)
    return {
        kind.__name__: kind
        for kind in found
        if isinstance(kind, type) and issubclass(kind, kinds) and kind is not diffrax.AbstractERK
    }
