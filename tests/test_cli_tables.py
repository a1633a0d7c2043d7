"""What a run prints at its end."""

import numpy as np

from gorl_cli._tables import _listed, _of_seeds


def test_few_seeds_have_their_returns():
    assert _of_seeds(np.array([1.0, 2.25, np.nan]), 5) == "seeds from 5: 1.0, 2.2, nan"


def test_many_seeds_have_quartiles():
    returns = np.append(np.arange(1001.0), np.nan)
    assert _of_seeds(returns, 0) == ("1,002 seeds; lowest, quartiles and highest: 0.0, 250.0, 500.0, 750.0, 1000.0")


def test_a_long_list_says_how_much_is_left_out():
    assert _listed(["a", "b"]) == "a, b"
    assert _listed([str(number) for number in range(20)]).endswith("14, 15 and 4 more")
