"""The pictures of `gorl plot`: what is in them, and what they are as files."""

import io
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import PIL.Image
import pytest
import scipy.stats
from matplotlib.text import Text

import gorl
from gorl_cli._figures import (
    SUFFIXES,
    RunCurve,
    action_density,
    action_distributions,
    encode,
    learning_curves,
    num_modes,
    principal_component,
)

STEPS = np.array([0, 500_000, 1_000_000, 1_000_000, 1_500_000])
STAGE = np.array([0, 0, 0, 1, 1])
T_OF_ELEVEN = 2.22813885196  # the 97.5 % quantile of Student's t with ten degrees of freedom


def curve(label="ppo", seeds=3, shift=0.0, seed=0, steps=STEPS, stage=STAGE):
    returns = np.linspace(10, 900, len(steps)) + np.random.default_rng(seed).normal(0, 30, (seeds, len(steps)))
    return RunCurve(label, steps, stage, np.abs(returns) + shift)


def only_axes(figure):
    (axes,) = figure.axes
    return axes


def thick(axes):
    """The lines of means."""
    return [line for line in axes.get_lines() if line.get_linewidth() > 1.3 and line.get_marker() != "x"]


def thin(axes):
    """The lines of seeds, which are the only translucent ones."""
    return [line for line in axes.get_lines() if line.get_alpha() is not None]


def joined(lines):
    return np.concatenate([np.array(line.get_data()) for line in lines], axis=1)


def ends_of(band):
    """The lower and the upper end of a band at each of its steps."""
    (path,) = band.get_paths()
    return {x: (path.vertices[path.vertices[:, 0] == x, 1].min(), path.vertices[path.vertices[:, 0] == x, 1].max())
            for x in np.unique(path.vertices[:, 0])}  # fmt: skip


def vertical(axes):
    """Where dotted lines stand, how high they reach in the picture, and their colours."""
    found = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    return [(line.get_xdata()[0], line.get_ydata()[1], line.get_color()) for line in found]


def words(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# --- Learning curves. ---


# Of three seeds the band is from the smallest to the largest, of eleven it is Student's.
@pytest.mark.parametrize(("seeds", "name"), [(3, "smallest and largest"), (11, "95 % interval")])
def test_a_line_is_the_mean_and_a_band_what_is_around_it(seeds, name):
    curves = [curve("ppo", seeds), curve("fpo", seeds, seed=1)]
    axes = only_axes(learning_curves(curves))
    lines, bands = thick(axes), axes.collections
    assert len(lines) == len(bands) == 4  # of two runs, two stages each
    for index, one in enumerate(curves):
        steps, means = joined(lines[2 * index : 2 * index + 2])
        np.testing.assert_array_equal(steps, STEPS)
        np.testing.assert_allclose(means, np.mean(one.returns, axis=0))
        half = T_OF_ELEVEN * np.std(one.returns, axis=0, ddof=1) / 11**0.5
        low, high = np.mean(one.returns, axis=0) - half, np.mean(one.returns, axis=0) + half
        if seeds == 3:
            low, high = np.min(one.returns, axis=0), np.max(one.returns, axis=0)
        for stage, band in enumerate(bands[2 * index : 2 * index + 2]):
            here = stage == STAGE
            ends = ends_of(band)
            assert list(ends) == STEPS[here].tolist()
            np.testing.assert_allclose(list(ends.values()), np.stack([low, high], axis=1)[here], rtol=1e-6)
    assert name in axes.get_ylabel()
    assert not thin(axes)


def test_stages_are_not_joined():
    # At a change of stage there are two evaluations at one step.
    for line in only_axes(learning_curves([curve()])).get_lines():
        if line.get_linestyle() != ":":
            assert np.all(np.diff(line.get_xdata()) > 0)


def test_a_run_alone_has_a_thin_line_for_each_seed():
    alone = curve(seeds=3)
    figure = learning_curves([alone], title="ppo on PointMass")
    lines = thin(only_axes(figure))
    assert len(lines) == 6
    for index in range(3):
        np.testing.assert_array_equal(joined([lines[index], lines[3 + index]]), [STEPS, alone.returns[index]])
    assert only_axes(figure).get_title(loc="left") == "ppo on PointMass, 3 seeds"
    assert not figure.legends


def test_a_single_seed_is_a_line_without_a_band():
    alone = curve(seeds=1)
    axes = only_axes(learning_curves([alone]))
    np.testing.assert_array_equal(joined(thick(axes)), [STEPS, alone.returns[0]])
    for band in axes.collections:
        assert not any(np.isfinite(path.vertices[:, 1]).any() for path in band.get_paths())
    assert axes.get_ylabel() == "return"
    assert axes.get_title(loc="left") == "1 seed"


def test_a_seed_that_diverged():
    returns = curve(seeds=3).returns
    returns[1, 1:3] = np.nan  # and came back with the next stage
    lost = RunCurve("ppo", STEPS, STAGE, returns)
    alone = learning_curves([lost], title="ppo")
    kept = np.array([returns[:, at].mean() if at not in (1, 2) else returns[[0, 2], at].mean() for at in range(5)])
    np.testing.assert_allclose(joined(thick(only_axes(alone)))[1], kept)
    crosses = joined([line for line in only_axes(alone).get_lines() if line.get_marker() == "x"])
    np.testing.assert_array_equal(crosses, [[0], [returns[1, 0]]])
    assert only_axes(alone).get_title(loc="left").replace("\N{NO-BREAK SPACE}", " ") == "ppo, 3 seeds, 1 diverged (×)"
    assert words(learning_curves([lost, curve("fpo")])) == ["ppo (1 of 3 diverged)", "fpo"]


def test_what_is_too_short_for_a_line_is_a_point():
    begun = RunCurve("ppo", STEPS[:1], STAGE[:1], np.array([[3.0], [4.0], [5.0]]))
    axes = only_axes(learning_curves([begun]))
    (line,) = thick(axes)
    assert line.get_marker() == "."
    assert all(steps == int(steps) for steps in axes.get_xticks())
    assert not [line for line in thick(only_axes(learning_curves([curve()]))) if line.get_marker() == "."]


def test_a_run_of_which_nothing_is_known_can_be_drawn():
    unknown = RunCurve("ppo", STEPS, STAGE, np.full((2, 5), np.nan))
    assert encode(learning_curves([unknown]), ".png")


@pytest.mark.parametrize("others", [0, 2])
def test_stages_that_all_share_are_marked_across_the_picture(others):
    axes = only_axes(learning_curves([curve(str(index)) for index in range(1 + others)]))
    assert [(x, top) for x, top, _ in vertical(axes)] == [(1_000_000, 1)]
    assert "dotted: new stage" in axes.get_xlabel()


def test_stages_of_their_own_are_marked_at_the_foot_in_the_colour_of_the_run():
    later = curve("fpo", steps=STEPS + 250_000)
    none = curve("sac", stage=np.zeros(5, int))
    axes = only_axes(learning_curves([curve("ppo"), later, none]))
    colours = [line.get_color() for line in thick(axes)]
    (first, low, colour), (second, also_low, other_colour) = vertical(axes)
    assert (first, second) == (1_000_000, 1_250_000)
    assert low == also_low < 0.1
    assert (colour, other_colour) == (colours[0], colours[2])


def test_without_stages_nothing_is_said_of_them():
    axes = only_axes(learning_curves([curve(stage=np.zeros(5, int), steps=np.arange(5) * 100_000)]))
    assert not vertical(axes)
    assert axes.get_xlabel() == "environment steps"


def test_no_two_of_many_runs_look_alike():
    legend = learning_curves([curve(str(index)) for index in range(28)]).legends[0]
    looks = {(line.get_color(), line._dash_pattern[1] and tuple(line._dash_pattern[1])) for line in legend.get_lines()}
    assert len(looks) == 28


def test_two_runs_that_share_a_line_are_both_seen():
    # The dashed one may have been given first.
    curves = [curve("other", shift=100), curve("dashed"), curve("solid"), curve("another", shift=200)]
    picture = PIL.Image.open(io.BytesIO(encode(learning_curves(curves), ".png"))).convert("RGB")
    pixels = np.asarray(picture).reshape(-1, 3)
    for line in thick(only_axes(learning_curves(curves)))[2:6]:
        colour = np.round(255 * np.array(matplotlib.colors.to_rgb(line.get_color())))
        in_legend = 600
        assert np.sum(np.abs(pixels - colour).max(axis=1) <= 3) > in_legend


LONG = "gorl-diffusion on brax/humanoidstandup (humanoidstandup-gorl-diffusion-20261124-120000) learning_rate=0.0003"


@pytest.mark.parametrize(
    "labels",
    [["a", "b"], ["gorl-flow", "gorl-diffusion", "ppo"], [LONG] * 2, [f"{LONG} {i}" for i in range(12)], ["m"] * 12],
    ids=["two", "three", "two long", "twelve long", "twelve"],
)
def test_everything_is_inside_the_picture_and_nothing_on_the_curves(labels):
    figure = learning_curves([curve(label) for label in labels], title=LONG)
    figure.draw_without_rendering()
    page, axes = figure.bbox, only_axes(figure)
    legend = figure.legends[0].get_window_extent()
    (title,) = [child for child in axes.get_children() if isinstance(child, Text) and child.get_text()]
    for box in (legend, title.get_window_extent(), axes.xaxis.label.get_window_extent()):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= page.x1
        assert box.y1 <= page.y1
    assert legend.y1 < axes.xaxis.label.get_window_extent().y0
    assert axes.bbox.height > 1.2 * figure.dpi  # the words leave room for the curves
    assert ["".join(text.split()) for text in words(figure)] == ["".join(label.split()) for label in labels]


def test_labels_are_taken_literally():
    names = [r"a$\frac{$b", r"$x_1$"]  # which matplotlib would take for formulas, the first for a broken one
    figure = learning_curves([curve(name) for name in names], title=r"$\broken{$")
    assert encode(figure, ".png")
    assert words(figure) == names


def test_letters_that_the_font_lacks_are_told_of_once(capsys, recwarn):
    for suffix in SUFFIXES:
        encode(learning_curves([curve("中文"), curve("路径"), curve("путь")]), suffix)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "matplotlib's font lacks" in error
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    encode(learning_curves([curve("путь"), curve("_ppo"), curve("[v1]")]), ".png")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shift", [0.0, -2000.0])
def test_the_axis_holds_all_returns_and_no_more_than_a_fourth_beyond(shift):
    wide = RunCurve("ppo", STEPS, STAGE, np.array([[0, 100, 500, 500, 900], [0, 800, 0, 0, 0]]) + shift)
    low, high = only_axes(learning_curves([wide])).get_ylim()
    lowest, highest = wide.returns.min(), wide.returns.max()
    assert low <= lowest
    assert highest < high <= highest + 0.3 * (highest - min(lowest, 0.0))
    assert low == 0 if shift == 0 else low >= lowest - 0.3 * (highest - lowest)


def test_steps_are_counted_in_thousands_and_millions():
    axis = only_axes(learning_curves([curve()])).xaxis
    assert [axis.get_major_formatter()(steps) for steps in (0, 250_000, 1_500_000)] == ["0", "250k", "1.5M"]


# --- Densities. ---


def draws(kind, size=10_000):
    draw = np.random.default_rng(0)
    normal = draw.normal(size=size)
    return {
        "normal": normal,
        "uniform": draw.uniform(size=size),
        "laplace": draw.laplace(size=size),
        "heavy": draw.standard_t(3, size=size),
        "two": normal + draw.choice([-2.0, 2.0], size),
        "a rare one": normal + draw.choice([-3.0, 3.0], size, p=[0.95, 0.05]),
        "three": normal + draw.choice([-4.0, 0.0, 4.0], size),
    }[kind]


KINDS = {"normal": 1, "uniform": 1, "laplace": 1, "heavy": 1, "two": 2, "a rare one": 2, "three": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_density_is_the_one_of_scipy(kind):
    values = draws(kind)
    grid, density = action_density(values)
    kernels = scipy.stats.gaussian_kde(values, bw_method=lambda kde: 0.8 * kde.scotts_factor())
    np.testing.assert_allclose(density, kernels(grid), rtol=1e-6, atol=1e-9)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=2e-3)
    assert np.mean((values >= grid[0]) & (values <= grid[-1])) >= 0.998


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("kind", "modes"), KINDS.items())
def test_modes_are_counted_and_chance_is_not(kind, modes, scale):
    values = scale * (draws(kind) + 5)
    assert num_modes(action_density(values)[1], values) == modes


def test_a_density_peaks_where_its_modes_are():
    values = draws("two")
    grid, density = action_density(values)
    left, right = grid < 0, grid > 0
    assert grid[left][density[left].argmax()] == pytest.approx(-2, abs=0.2)
    assert grid[right][density[right].argmax()] == pytest.approx(2, abs=0.2)


def test_actions_without_noise_have_a_density():
    grid, density = action_density(np.full(100, 2.0))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=2e-3)
    assert grid[density.argmax()] == pytest.approx(2, abs=1e-5)


def test_a_single_outlier_leaves_room_for_the_others():
    grid, _ = action_density(np.append(draws("normal"), 1000.0))
    assert grid[-1] < 100


def test_the_first_principal_component():
    draw = np.random.default_rng(0)
    actions = draw.normal(size=(5000, 3)) @ draw.normal(size=(3, 3)) + np.array([5, -3, 1])
    values, share = principal_component(actions)
    variances, directions = np.linalg.eigh(np.cov(actions.T))
    expected = actions @ directions[:, -1]
    np.testing.assert_allclose(values * np.sign(np.corrcoef(values, expected)[0, 1]), expected, rtol=1e-6)
    assert share == pytest.approx(variances[-1] / variances.sum())
    np.testing.assert_allclose(principal_component(actions[:, :1])[0], actions[:, 0])  # not mirrored
    assert principal_component(actions[:, :1])[1] == pytest.approx(1)


# --- Action distributions. ---


class TwoSided(gorl.AbstractDecoder):
    """Actions a known distance on either side of the number of steps so far, the side and the rest being independent.

    With two actions the first is an exact mixture of two Gaussians, and the second has a hundredth of its noise.
    """

    distance: jax.Array
    noise: jax.Array

    def decode(self, observation, latent):
        side = self.distance * jnp.sign(latent[-1])
        first = observation[1] + side + self.noise * latent[0]
        return first[None] if latent.size == 1 else jnp.stack([first, 0.01 * latent[1]])

    def loss(self, observation, latent, action, key):
        raise NotImplementedError


@pytest.fixture(scope="module")
def known(counting):
    """An environment whose observation counts the steps, and a policy whose actions are two-sided."""

    class Wide(counting):
        @property
        def action_size(self):
            return 2

    def make(distance, noise=0.25, action_size=2, terminates_at=7):
        encoder = gorl.GaussianEncoder.init(2, action_size, 1, 1, jax.random.key(0))
        policy = gorl.Policy(encoder, TwoSided(jnp.asarray(distance), jnp.asarray(noise)), 2, action_size)
        return gorl.EnvConfig((counting if action_size == 1 else Wide)(terminates_at=terminates_at)), policy

    return make


def lines_of(panel):
    drawn, normal = panel.get_lines()
    np.testing.assert_array_equal(drawn.get_xdata(), normal.get_xdata())
    return drawn.get_xdata(), drawn.get_ydata(), normal.get_ydata()


def said_in(panel):
    (text,) = panel.texts
    return text.get_text().splitlines()


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def mean_of(grid, density):
    return np.trapezoid(grid * density, grid)


def test_a_panel_shows_two_modes_beside_the_gaussian_of_the_same_moments(known):
    figure = action_distributions(*known(1.0), jax.random.key(1), num_states=4)
    panels = visible(figure)
    # The episode ends after seven actions.
    assert [panel.get_title(loc="left") for panel in panels] == ["step 0", "step 2", "step 4", "step 6"]
    std = math.sqrt(1 + 0.25**2)
    kernel = 0.8 * std * 10_000**-0.2
    smooth = math.sqrt(0.25**2 + kernel**2)
    for panel, step in zip(panels, (0, 2, 4, 6), strict=True):
        grid, density, normal = lines_of(panel)
        mixture = (scipy.stats.norm.pdf(grid, step - 1, smooth) + scipy.stats.norm.pdf(grid, step + 1, smooth)) / 2
        np.testing.assert_allclose(density, mixture, atol=0.08)
        np.testing.assert_allclose(normal, scipy.stats.norm.pdf(grid, step, std), atol=0.02)
        assert said_in(panel) == ["2 modes", "100 % of variance"]
    assert "first principal component" in figure.get_supxlabel()
    assert "10,000 actions" in words(figure)[0]


def test_a_gaussian_policy_lies_on_its_gaussian(known):
    figure = action_distributions(*known(0.0), jax.random.key(1), num_states=4)
    for panel, step in zip(visible(figure), (0, 2, 4, 6), strict=True):
        grid, density, normal = lines_of(panel)
        np.testing.assert_allclose(normal, scipy.stats.norm.pdf(grid, step, 0.25), atol=0.06)
        np.testing.assert_allclose(density, normal, atol=0.1)
        assert said_in(panel)[0] == "1 mode"


def test_the_episode_is_played_with_drawn_latents(counting):
    class Walking(counting):
        def step(self, state, action):
            after = super().step(state, action)
            moved = jnp.abs(action[0]) > 0.5  # which the mode, an action of zero, never does
            return eqx.tree_at(lambda s: s.obs, after, jnp.where(moved, after.obs, state.obs))

    encoder = gorl.GaussianEncoder.init(2, 1, 1, 1, jax.random.key(0))
    policy = gorl.Policy(encoder, TwoSided(jnp.asarray(30.0), jnp.asarray(0.25)), 2, 1)
    figure = action_distributions(gorl.EnvConfig(Walking()), policy, jax.random.key(1), num_states=2)
    for panel, steps in zip(visible(figure), (0, 9), strict=True):
        grid, density, _ = lines_of(panel)
        right = grid > 0
        assert grid[right][density[right].argmax()] == pytest.approx(30 + steps, abs=1.5)


def test_a_single_action_has_no_component(known):
    figure = action_distributions(*known(1.0, action_size=1), jax.random.key(1), num_states=1, num_actions=2000)
    assert figure.get_supxlabel() == "action before tanh"
    (panel,) = visible(figure)
    assert said_in(panel) == ["2 modes"]
    grid, density, _ = lines_of(panel)
    assert mean_of(grid, density) == pytest.approx(0, abs=0.15)


def test_an_episode_of_fewer_steps_has_fewer_panels(known):
    figure = action_distributions(*known(1.0, terminates_at=2), jax.random.key(1), num_states=6, num_actions=500)
    assert [panel.get_title(loc="left") for panel in visible(figure)] == ["step 0", "step 1"]


def test_the_share_of_the_first_component(known):
    figure = action_distributions(*known(0.0, noise=0.01), jax.random.key(1), num_states=4)
    for panel in visible(figure):
        modes, share = said_in(panel)
        assert modes == "1 mode"
        assert 50 <= int(share.split()[0]) <= 52  # the other action has as much noise


def test_the_key_decides(known):
    one, again, other = (
        encode(action_distributions(*known(1.0), jax.random.key(key), num_states=4), ".svg") for key in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_a_policy_that_diverged_is_refused_before_anything_is_compiled(make_policy, compilations):
    policy = make_policy(2, 2)
    broken = eqx.tree_at(lambda p: p.encoder.network.layers[0].bias, policy, replace_fn=lambda bias: bias * jnp.nan)
    key = jax.random.key(0)
    compilations.clear()
    with pytest.raises(gorl.InputError, match=r"this policy has diverged.*another seed\.$"):
        action_distributions(gorl.EnvConfig("MultiGoal"), broken, key)
    assert not compilations


def test_actions_that_are_not_finite_are_refused(known):
    env, policy = known(3e38, noise=3e38)  # weights are finite, sums are not
    with pytest.raises(gorl.InputError, match="its actions are not finite"):
        action_distributions(env, policy, jax.random.key(0), num_states=4)


@pytest.mark.parametrize("numbers", [{"num_states": 0}, {"num_actions": 1}])
def test_numbers_that_are_too_small_are_refused(make_policy, compilations, numbers):
    policy, key = make_policy(2, 2), jax.random.key(0)
    compilations.clear()
    with pytest.raises(gorl.InputError, match="num_states must be at least 1 and num_actions at least 2, not "):
        action_distributions(gorl.EnvConfig("MultiGoal"), policy, key, **numbers)
    assert not compilations


# --- Files. ---


BEGINNINGS = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_what_its_suffix_says_and_the_same_each_time(suffix):
    content = encode(learning_curves([curve("ppo"), curve("fpo")]), suffix)
    assert content.startswith(BEGINNINGS[suffix])
    assert encode(learning_curves([curve("ppo"), curve("fpo")]), suffix) == content
    assert not any(word in content for word in (b"CreationDate", b"ModDate", b"<dc:date>"))


def test_a_png_is_fit_for_print():
    for count, width in ((1, 3.4), (5, 7)):
        picture = PIL.Image.open(io.BytesIO(encode(learning_curves([curve(str(i)) for i in range(count)]), ".png")))
        assert picture.info["dpi"][0] >= 200
        assert picture.width / picture.info["dpi"][0] == pytest.approx(width, abs=0.01)


def test_text_stays_text():
    figure = learning_curves([curve("a method"), curve("another")], title="PointMass")
    assert b">a method</text>" in encode(figure, ".svg")
    content = encode(figure, ".pdf")
    assert b"/CIDFontType2" in content
    assert b"/Type3" not in content


@pytest.mark.parametrize("suffix", [".jpg", "", ".PNG", "png"])
def test_another_suffix_is_refused(suffix):
    with pytest.raises(gorl.InputError, match=r"give one of \.png, \.pdf, \.svg\.$"):
        encode(learning_curves([curve()]), suffix)


def test_many_seeds_are_a_light_band_with_nine_tenths_of_them():
    many = curve(seeds=1000)
    axes = only_axes(learning_curves([many]))
    assert axes.get_title(loc="left").replace("\n", " ") == "1,000 seeds (light: 90 % of them)"
    # The mean of each stage, and the boundary; no line of a seed.
    assert len([line for line in axes.get_lines() if line.get_marker() != "x" and len(line.get_xdata()) > 2]) == 1
    light = axes.collections[0].get_paths()[0].vertices
    low, high = np.sort(light[light[:, 0] == STEPS[1], 1])[[0, -1]]
    of_seeds = many.returns[:, 1]
    assert np.mean((of_seeds >= low) & (of_seeds <= high)) == 0.9
