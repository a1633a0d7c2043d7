"""Commands: what an episode asks of a robot."""

import jax
import numpy as np
import pytest
import scipy.stats

import gorl
from gorl._env._command import parse_commands

COMMANDS = {"forward": gorl.Command(-0.5, 1.0, "m/s", zero_probability=0.2), "turn": gorl.Command(0.1, 2.0, "rad/s")}


def test_a_command_is_uniform_but_where_it_is_zero():
    command = COMMANDS["forward"]
    values = np.asarray(jax.jit(jax.vmap(command.draw))(jax.random.split(jax.random.key(0), 10_000)))
    is_zero = values == 0
    assert abs(is_zero.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 10_000)
    assert scipy.stats.kstest(values[~is_zero], scipy.stats.uniform(-0.5, 1.5).cdf).pvalue > 1e-3


def test_values_are_read_by_name():
    assert parse_commands("forward=1.0 turn=0.5", COMMANDS, "Walk") == {"forward": 1.0, "turn": 0.5}
    assert parse_commands("forward=0,turn=2", COMMANDS, "Walk") == {"forward": 0.0, "turn": 2.0}
    assert parse_commands("", COMMANDS, "Walk") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("forwrd=1", "no command of Walk is called 'forwrd': did you mean 'forward'"),
        ("forward", "the command 'forward' gives no number: write forward=0.5"),
        ("forward=fast", "gives no number"),
        ("forward=1.5", r"forward=1.5 is out of range: forward goes from -0.5 to 1 m/s\."),
        ("turn=0", r"turn=0 is out of range: turn goes from 0.1 to 2 rad/s\."),
        ("forward=nan", "out of range"),
    ],
)
def test_what_is_no_command(text, sentence):
    with pytest.raises(gorl.InputError, match=sentence):
        parse_commands(text, COMMANDS, "Walk")


def test_a_range_upside_down_and_a_probability_that_is_none():
    with pytest.raises(gorl.InputError, match="between low = 1 and high = 0: swap them"):
        gorl.Command(1.0, 0.0)
    with pytest.raises(gorl.InputError, match=r"zero_probability = 1\.5 is no probability"):
        gorl.Command(0.0, 1.0, zero_probability=1.5)
