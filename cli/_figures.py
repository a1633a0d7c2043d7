"""Pictures, fit for a paper: learning curves and action distributions."""

import dataclasses
import io
import math
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import matplotlib
import matplotlib.ticker
import numpy as np
import scipy.signal
import scipy.stats
from jaxtyping import Array, Float, Int, Key, PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gorl

from ._process import plural, say

# Okabe and Ito's palette, which colour-blind people can tell apart, without its yellow, which is invisible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
# 28 different lines. Every other one is dashed and on top, so that both are seen where two runs share a stage.
_LINES = [
    {"color": COLOURS[index % 7], "linestyle": _DASHES[2 * (index // 14) + index % 2], "zorder": 2 + 0.1 * (index % 2)}
    for index in range(28)
]
_MANY_SEEDS = 32  # up to so many have a line each
_COLUMN, _PAGE = 3.4, 7.0  # the widths of a column and of a page with two of them, in inches
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.parse_math": False,  # a label is a name, not a formula
    "pdf.fonttype": 42,  # text stays text, as journals require
    "svg.fonttype": "none",
    "svg.hashsalt": "gorl",  # the same picture is the same file
}
_WITHOUT_DATE = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
SUFFIXES = tuple(_WITHOUT_DATE)
_MISSING = re.compile(r"Glyph \d+ .* missing from")  # a warning for each letter and each layout


@dataclasses.dataclass(frozen=True)
class RunCurve:
    """The learning curve of a run."""

    label: str
    env_steps: Int[np.ndarray, " evaluations"]
    stage: Int[np.ndarray, " evaluations"]
    returns: Float[np.ndarray, "seeds evaluations"]  # means over episodes; NaN after a seed diverged

    @property
    def boundaries(self) -> list[int]:
        """The steps at which a new stage begins."""
        return self.env_steps[1:][np.diff(self.stage) > 0].tolist()

    @property
    def num_diverged(self) -> int:
        """How many seeds diverged at some time."""
        return int(np.sum(~np.isfinite(self.returns).all(axis=1)))


@dataclasses.dataclass(frozen=True)
class ActionsAtState:
    """The distribution of a policy's actions at one state, along their first principal component."""

    step: int  # of the episode
    grid: Float[np.ndarray, " grid"]
    density: Float[np.ndarray, " grid"]
    normal: Float[np.ndarray, " grid"]  # the density of the Gaussian of the same mean and variance
    modes: int
    share: float  # of the variance, along the component
    action_size: int

    @property
    def words(self) -> str:
        """The number of modes and, of actions of several dimensions, the share, on a line each."""
        share = [f"{100 * self.share:.0f} % of variance"] * (self.action_size > 1)
        return "\n".join([plural(self.modes, "mode"), *share])


def learning_curves(curves: Sequence[RunCurve], title: str = "", quantity: str = "return") -> Figure:
    """Returns, or another `quantity`, against environment steps, with a line and a band for each run.

    The line is the mean over the seeds. The band is the 95 % interval of the mean; of fewer than ten seeds it is the
    smallest and the largest. A seed that diverged is left out where its returns are NaN, and the picture says how many
    did. A single run has a thin line for each seed, with a cross where it diverged; of many seeds it has a light band
    with nine tenths of them. Dotted lines mark the beginning of a stage. They cross the picture if all runs share them;
    if not, they are short and in the colour of the run. The picture is one column wide for up to four runs, one page
    wide for more.
    """
    with matplotlib.rc_context(_STYLE):
        is_alone = len(curves) == 1
        width, height = (_COLUMN, 2.5) if len(curves) <= 4 else (_PAGE, 3.6)
        title = _wrapped(", ".join(filter(None, (title, _seeds(curves)))), width, size=9)
        labels = [] if is_alone else [_wrapped(_label(curve), _COLUMN - 0.45, size=8) for curve in curves]
        columns, legend_height = _legend_size(labels, width)
        height += 0.15 * title.count("\n") + legend_height
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        intervals = [gorl.internal.interval(curve.returns, axis=0) for curve in curves]
        handles = []
        for curve, interval, line in zip(curves, intervals, _styles(len(curves)), strict=True):
            if is_alone:
                _draw_seeds(axes, curve, line)
            handles.append(_draw_mean(axes, curve, interval, line, alpha=0.18 if len(curves) <= 4 else 0.1))
        _draw_boundaries(axes, curves)
        axes.set_title(title, loc="left")
        has_stages = any(curve.boundaries for curve in curves)
        axes.set_xlabel(f"environment steps{' (dotted: new stage)' * has_stages}")
        bands = dict.fromkeys(
            interval.name for curve, interval in zip(curves, intervals, strict=True) if len(curve.returns) > 1
        )
        axes.set_ylabel(f"{quantity}: mean, {' or '.join(bands)}" if bands else quantity)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(7 if width == _PAGE else 5, integer=True))
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.set_xlim(0, max(1, *(int(curve.env_steps[-1]) for curve in curves)))
        axes.set_ylim(*_limits(curves, intervals))
        if not is_alone:
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        return figure


def action_distributions(
    env: gorl.EnvConfig, policy: gorl.Policy, key: Key[Array, ""], num_states: int = 6, num_actions: int = 10_000
) -> Figure:
    """The distribution of a policy's actions at states along an episode, with the Gaussian of the same moments.

    Actions before `tanh` are projected on their first principal component. The dashed line is the Gaussian of the same
    mean and variance; a policy that differs from it is not Gaussian. Each panel says how many modes the density has.
    Actions of several dimensions also have the component's share of their variance.

    **Arguments:**

    - `env`, `policy`: play the episode, with sampled latents.
    - `key`: decides the episode and the actions.
    - `num_states`: the number of states, evenly spaced along the episode; fewer if it is shorter.
    - `num_actions`: the number of actions at each state.

    ??? cite "Reference"

        GoRL, arXiv 2512.02581, shows in this way that the actions of HopperStand become bimodal.
    """
    panels_of = actions_along(env, policy, key, num_states, num_actions)
    with matplotlib.rc_context(_STYLE):
        columns = min(3, len(panels_of))
        rows = math.ceil(len(panels_of) / columns)
        figure = Figure(figsize=(_PAGE, 0.6 + 1.55 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(panels_of) :]:
            axes.set_visible(False)
        for axes, here in zip(panels, panels_of, strict=False):
            axes.fill_between(here.grid, here.density, color=COLOURS[0], alpha=0.2, linewidth=0)
            axes.plot(here.grid, here.density, color=COLOURS[0], linewidth=1.4)
            axes.plot(here.grid, here.normal, color="black", linewidth=1, linestyle="--")
            axes.set_title(f"step {here.step}", loc="left")
            axes.text(1, 1, here.words, transform=axes.transAxes, ha="right", va="top", fontsize=7, color="0.35")
            axes.set_yticks([])  # the height of a density depends on the width of its axis
            axes.set_xlim(here.grid[0], here.grid[-1])
            axes.set_ylim(0, 1.3 * max(here.density.max(), here.normal.max()))  # room for the words
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        figure.supxlabel(action_axis(panels_of), fontsize=8)
        figure.supylabel("density", fontsize=8)
        figure.legend(
            panels[0].get_lines(),
            [f"the policy ({num_actions:,} actions)", "the Gaussian of the same mean and variance"],
            loc="outside upper left",
            ncols=2,
        )
        return figure


def actions_along(
    env: gorl.EnvConfig, policy: gorl.Policy, key: Key[Array, ""], num_states: int = 6, num_actions: int = 10_000
) -> list[ActionsAtState]:
    """What [`action_distributions`][] draws: a policy's actions at each of its states. The arguments are the same."""
    if num_states < 1 or num_actions < 2:
        raise gorl.InputError(
            f"num_states must be at least 1 and num_actions at least 2, not {num_states} and {num_actions}."
        )
    play_key, draw_key = jax.random.split(key)
    steps, observations = states_along(env, policy, play_key, num_states)
    drawn = _draw_actions(policy, observations, draw_key, num_actions)
    check_finite(drawn)
    found = []
    for step, here in zip(steps, np.asarray(drawn, np.float64), strict=True):
        values, share = principal_component(here)
        grid, density = action_density(values)
        normal = scipy.stats.norm.pdf(grid, values.mean(), _spread(values))
        found.append(ActionsAtState(step, grid, density, normal, num_modes(density, values), share, here.shape[1]))
    return found


def states_along(
    env: gorl.EnvConfig, policy: gorl.Policy, key: Key[Array, ""], num_states: int
) -> tuple[list[int], Float[Array, "states observation"]]:
    """Steps evenly spaced along an episode that a policy plays with sampled latents, and the observations there."""
    check_finite(policy)
    episode = gorl.play(env, policy, key, stochastic=True)
    steps = np.unique(np.linspace(0, int(episode.length[0]) - 1, num_states).round().astype(int))
    return steps.tolist(), episode.observation[0, steps]


def action_axis(states: Sequence[ActionsAtState]) -> str:
    """What the horizontal axis of action distributions shows."""
    return f"action before tanh{' along its first principal component' * (states[0].action_size > 1)}"


def principal_component(actions: Float[np.ndarray, "actions size"]) -> tuple[Float[np.ndarray, " actions"], float]:
    """Actions along the direction of largest variance, and the share of their variance along it."""
    _, scales, directions = np.linalg.svd(actions - actions.mean(axis=0), full_matrices=False)
    direction = directions[0] * np.sign(directions[0][np.argmax(np.abs(directions[0]))])  # makes the sign unique
    total = float(np.sum(scales**2))
    return actions @ direction, float(scales[0] ** 2) / total if total > 0 else 1.0


def action_density(
    values: Float[np.ndarray, " actions"],
) -> tuple[Float[np.ndarray, " grid"], Float[np.ndarray, " grid"]]:
    """The density of one-dimensional actions, estimated with Gaussian kernels.

    The standard deviation of a kernel is 0.8 times that of Scott's rule: `0.8 s / n^(1/5)` for `n` actions of standard
    deviation `s`.

    It returns points, and the density at each. The points leave out a thousandth of the actions, half of it on either
    side, so that a few outliers do not squeeze the others.
    """
    width = _kernel_width(values)
    low, high = np.quantile(values, (0.0005, 0.9995))
    grid = np.linspace(low - 4 * width, high + 4 * width, 400)
    if np.ptp(values) == 0:  # a covariance of zero, which scipy refuses
        return grid, scipy.stats.norm.pdf(grid, values[0], width)
    return grid, scipy.stats.gaussian_kde(values, bw_method=width / values.std(ddof=1))(grid)


def num_modes(density: Float[np.ndarray, " grid"], values: Float[np.ndarray, " actions"]) -> int:
    """The number of peaks of [`action_density`][] that rise above their valleys by five standard errors.

    The estimate of a density `f` from `n` actions, with kernels of standard deviation `w`, has about the variance
    `f / (2 n w sqrt(π))`. The variance of its square root is therefore the same everywhere. So a small peak counts as
    much as a large one, and the bumps of a flat density do not count.
    """
    standard_error = math.sqrt(1 / (2 * values.size * _kernel_width(values) * math.sqrt(math.pi))) / 2
    # Padding makes a maximum at an end a peak.
    peaks, _ = scipy.signal.find_peaks(np.pad(np.sqrt(density), 1), prominence=5 * standard_error)
    return len(peaks)


def loss_curve(losses: Mapping[str, Float[np.ndarray, " epochs"]], title: str) -> Figure:
    """The losses of a regression, by name, against its epochs. A cross marks the lowest on the pairs held out."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_COLUMN, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for (name, loss), line in zip(losses.items(), _styles(len(losses)), strict=True):
            axes.plot(1 + np.arange(len(loss)), loss, label=name.replace("_", " "), linewidth=1.2, **line)
        held_out = losses["validation_loss"]
        best = int(np.argmin(held_out))
        axes.plot(best + 1, held_out[best], "x", color="black", zorder=3)
        axes.set_title(_wrapped(title, _COLUMN, size=9), loc="left")
        axes.set_xlabel("epoch (cross: the decoder that is kept)")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axes.legend()
        return figure


def encode(figure: Figure, suffix: str) -> bytes:
    """The content of a file with a picture. The same picture gives the same bytes."""
    if suffix not in SUFFIXES:
        raise gorl.InputError(f"there are no pictures of the kind {suffix!r}: give one of {', '.join(SUFFIXES)}.")
    content = io.BytesIO()
    metadata: Any = _WITHOUT_DATE[suffix]
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings(record=True, action="always") as caught:
        figure.savefig(content, format=suffix.removeprefix("."), dpi=300, metadata=metadata)
    if any(_MISSING.match(str(warning.message)) for warning in caught):
        say("matplotlib's font lacks letters of a name: the picture has boxes in their place")
    for warning in caught:
        if not _MISSING.match(str(warning.message)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return content.getvalue()


def _styles(count: int) -> list[dict[str, Any]]:
    return [_LINES[index % len(_LINES)] for index in range(count)]


def _wrapped(text: str, width: float, size: float) -> str:
    """Text broken into lines of a width in inches, for letters of a size in points."""
    return textwrap.fill(text, int(width / _letter(size)))


def _letter(size: float) -> float:
    """The mean width of a letter in inches, for a size in points."""
    return 0.6 * size / 72


def _legend_size(labels: Sequence[str], width: float) -> tuple[int, float]:
    """The number of columns of a legend, and its height in inches."""
    if not labels:
        return 1, 0.0
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(len(labels), int(width / (0.45 + _letter(8) * longest))))
    rows = math.ceil(len(labels) / columns)
    return columns, 0.08 + 0.145 * rows * max(label.count("\n") + 1 for label in labels)


def _seeds(curves: Sequence[RunCurve]) -> str:
    """The number of seeds, and for a single run how many diverged. For several runs the legend says that."""
    counts = sorted({len(curve.returns) for curve in curves})
    said = f"{' or '.join(f'{count:,}' for count in counts)} seed{'s' * (counts != [1])}"
    if len(curves) == 1 and counts[0] > _MANY_SEEDS:
        said += " (light: 90 % of them)"
    diverged = curves[0].num_diverged if len(curves) == 1 else 0
    together = f"{diverged} diverged (×)".replace(" ", "\N{NO-BREAK SPACE}")  # keeps it on one line
    return f"{said}, {together}" if diverged else said


def _label(curve: RunCurve) -> str:
    if not curve.num_diverged:
        return curve.label
    return f"{curve.label} ({curve.num_diverged} of {len(curve.returns)} diverged)"


def _draw_seeds(axes: Axes, curve: RunCurve, line: dict[str, Any]) -> None:
    """A thin line for each seed, with a cross at its last evaluation before it diverged.

    Of many seeds it is a band that holds nine tenths of them.
    """
    for here in _of_each_stage(curve):
        steps, returns = curve.env_steps[here], curve.returns[:, here]
        if len(returns) <= _MANY_SEEDS:
            axes.plot(steps, returns.T, linewidth=0.5, alpha=0.5, **line)
        elif (known := np.isfinite(returns).any(axis=0)).any():
            low, high = np.nanpercentile(returns[:, known], [5, 95], axis=0)
            axes.fill_between(steps[known], low, high, color=line["color"], alpha=0.12, linewidth=0)
    is_there = np.isfinite(curve.returns)
    seeds, last = np.nonzero(is_there[:, :-1] & ~is_there[:, 1:])
    lost = curve.env_steps[last], curve.returns[seeds, last]
    axes.plot(*lost, color=line["color"], linestyle="", marker="x", markersize=5)


def _draw_mean(
    axes: Axes, curve: RunCurve, interval: gorl.internal.Interval, line: dict[str, Any], alpha: float
) -> Any:
    """The line and the band of a run. Returns the line for the legend."""
    mean, low, high = interval.mean, interval.low, interval.high
    drawn = None
    for here in _of_each_stage(curve):
        steps = curve.env_steps[here]
        axes.fill_between(steps, low[here], high[here], color=line["color"], alpha=alpha, linewidth=0)
        marker = "." if np.sum(np.isfinite(mean[here])) == 1 else ""  # a single point makes no line
        (drawn,) = axes.plot(steps, mean[here], linewidth=1.4, marker=marker, **line)
    return drawn


def _of_each_stage(curve: RunCurve) -> list[np.ndarray]:
    """Masks of the evaluations of each stage. Two evaluations share a step where a stage begins; no line joins them."""
    return [curve.stage == stage for stage in np.unique(curve.stage)]


def _draw_boundaries(axes: Axes, curves: Sequence[RunCurve]) -> None:
    if all(curve.boundaries == curves[0].boundaries for curve in curves):
        for steps in curves[0].boundaries:
            axes.axvline(steps, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
        return
    for curve, line in zip(curves, _styles(len(curves)), strict=True):
        for steps in curve.boundaries:
            axes.axvline(steps, ymax=0.06, color=line["color"], linewidth=1.2, linestyle=":")


def _limits(curves: Sequence[RunCurve], intervals: Sequence[gorl.internal.Interval]) -> tuple[float, float]:
    """From zero, or a lower return, to the highest return. Bands may add up to a fourth of that range."""
    returns = _finite([curve.returns for curve in curves])
    if not returns.size:
        return 0.0, 1.0
    bands = _finite([end for interval in intervals for end in (interval.low, interval.high)])
    lowest, highest = min(0.0, float(returns.min())), float(returns.max())
    reach = max(highest - lowest, 1e-3)
    low = max(np.min(bands, initial=lowest), lowest - reach / 4) if lowest < 0 else 0.0
    high = min(np.max(bands, initial=highest), highest + reach / 4)
    return low - 0.04 * reach * (lowest < 0), high + 0.04 * reach


def _finite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate([np.ravel(array) for array in arrays])
    return values[np.isfinite(values)]


def check_finite(tree: PyTree) -> None:
    """Raises an error if a policy, or what it did, is not finite."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise gorl.InputError("this policy has diverged, so its actions are not finite: take that of another seed.")


@eqx.filter_jit
def _draw_actions(
    policy: gorl.Policy, observations: Float[Array, "states observation"], key: Key[Array, ""], num_actions: int
) -> Float[Array, "states actions size"]:
    """Actions before `tanh` at each state."""

    def at_state(inputs: tuple[Array, Array]) -> Float[Array, "actions size"]:
        observation, key = inputs
        return jax.vmap(lambda key: policy.sample(observation, key)[2])(jax.random.split(key, num_actions))

    return jax.lax.map(at_state, (observations, jax.random.split(key, len(observations))))


def _spread(values: Float[np.ndarray, " actions"]) -> float:
    """The standard deviation of actions. It is never zero, so that a policy without noise can be drawn."""
    return max(float(values.std(ddof=1)), 1e-6)


def _kernel_width(values: Float[np.ndarray, " actions"]) -> float:
    return 0.8 * _spread(values) * values.size**-0.2
