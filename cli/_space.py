"""What `gorl tune` searches: `--search FIELD=LOW:HIGH`, `--search FIELD=LOW:HIGH:log` and `--search FIELD=a|b|c`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import gorl

from ._settings import make_config

if TYPE_CHECKING:
    import optuna

_DIGITS = 4  # of a real number that is tried, so that a person can type it again
_RATE = "1e-4:3e-3:log"
# Numbers that decide no shape, so that every trial is the same program. The widths are those in which people tune them.
_DEFAULTS: Mapping[type, Mapping[str, str]] = {
    gorl.PPO: {
        "learner.learning_rate": _RATE,
        "learner.clip_epsilon": "0.05:0.4",
        "learner.entropy_coefficient": "1e-4:3e-2:log",
        "learner.gae_lambda": "0.9:0.99",
    },
    gorl.FPO: {
        "learner.learning_rate": _RATE,
        "learner.clip_epsilon": "0.01:0.3:log",
        "learner.gae_lambda": "0.9:0.99",
    },
    gorl.DPPO: {
        "learner.learning_rate": _RATE,
        "learner.clip_epsilon": "0.01:0.3:log",
        "learner.step_std": "0.02:0.2:log",
    },
    gorl.SAC: {
        "learner.learning_rate": _RATE,
        "learner.tau": "1e-3:5e-2:log",
        "learner.target_divergence": "0.2:3:log",
    },
    gorl.REPPO: {
        "learner.learning_rate": _RATE,
        "learner.kl_bound": "0.02:0.5:log",
        "learner.target_divergence": "0.2:3:log",
        "learner.trace_decay": "0.8:0.99",
    },
}


@final
@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, as a person typed them."""

    values: tuple[str, ...]

    def suggest(self, trial: "optuna.Trial", name: str) -> str:
        return trial.suggest_categorical(name, self.values)

    def ends(self) -> tuple[str, ...]:
        return self.values

    def at(self, value: Any, texts: Mapping[str, Any]) -> Any:
        """What Optuna calls a value of a config; `None` if it is not in the space."""
        return next((text for text, parsed in texts.items() if parsed == value), None)


@final
@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, on a logarithmic scale or not."""

    low: int | float
    high: int | float
    is_log: bool

    def suggest(self, trial: "optuna.Trial", name: str) -> str:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(name, self.low, self.high, log=self.is_log))
        return f"{trial.suggest_float(name, self.low, self.high, log=self.is_log):.{_DIGITS}g}"

    def ends(self) -> tuple[str, ...]:
        return (f"{self.low!r}", f"{self.high!r}")

    def at(self, value: Any, texts: Mapping[str, Any]) -> Any:
        """What Optuna calls a value of a config; `None` if it is not in the space."""
        is_inside = isinstance(value, int | float) and self.low <= value <= self.high
        return value if is_inside else None


@final
@dataclasses.dataclass(frozen=True)
class Space:
    """The space of a search.

    **Arguments:**

    - `preset`: what a trial begins from.
    - `fields`: what is searched of each field, by its dotted name.
    - `texts`, `steps`, `stages`: what `--set`, `--steps` and `--stages` gave, which is the same in all trials.
    """

    preset: gorl.Config
    fields: Mapping[str, Choice | Interval]
    texts: Mapping[str, str]
    steps: str | None
    stages: int | None

    def config(self, values: Mapping[str, str]) -> gorl.Config:
        """The config of a trial."""
        return make_config(self.preset, {**self.texts, **values}, self.steps, self.stages)

    def suggest(self, trial: "optuna.Trial") -> dict[str, str]:
        """The values of a trial, as texts that `--set` takes. A trial that has values already keeps them."""
        return {name: field.suggest(trial, name) for name, field in self.fields.items()}

    def start(self) -> dict[str, Any] | None:
        """The values of the preset in the terms of Optuna; `None` if they are not in the space."""
        config, found = self.config({}), {}
        for name, field in self.fields.items():
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)
            texts = {end: gorl.internal.parse(self.preset, name, end) for end in field.ends()}
            found[name] = field.at(value, texts)
        return None if None in found.values() else found


def make_space(
    preset: gorl.Config,
    search: Mapping[str, str],
    texts: Mapping[str, str],
    steps: str | None = None,
    stages: int | None = None,
) -> Space:
    """The space that `--search` gives, or the default one of the learner. Every end of it is checked."""
    for name in search:
        if name in texts:
            raise gorl.InputError(f"--set {name} fixes what --search {name} varies: leave one of them out.")
    fields = {name: _field(preset, name, text) for name, text in search.items()}
    space = Space(preset, fields, texts, steps, stages)
    for name, field in fields.items():
        for text in field.ends():
            space.config({name: text})
    return space


def default_search(preset: gorl.Config, texts: Mapping[str, str]) -> dict[str, str]:
    """What is searched if nothing is given: numbers of the learner, without those that `--set` fixes."""
    learner = type(preset.learner)
    if learner in _DEFAULTS:
        found = _DEFAULTS[learner]
    else:
        found = {"learner.learning_rate": _RATE} if hasattr(preset.learner, "learning_rate") else {}
    left = {name: text for name, text in found.items() if name not in texts}
    if not left:
        raise gorl.InputError(
            f"nothing is left to search of {learner.__name__}: give --search FIELD=LOW:HIGH, such as "
            "--search learner.learning_rate=1e-4:1e-2:log."
        )
    return left


def searches(options: Sequence[str]) -> dict[str, str]:
    """The texts that `--search` gives, by the dotted name of the field."""
    found: dict[str, str] = {}
    for option in options:
        name, separator, text = (part.strip() for part in option.partition("="))
        if not separator:
            raise gorl.InputError(f"--search {option} has no values: write it as FIELD=LOW:HIGH or FIELD=a|b|c.")
        if name in found:
            raise gorl.InputError(f"--search {name} is there twice: give it once.")
        found[name] = text
    return found


def _field(preset: gorl.Config, name: str, text: str) -> Choice | Interval:
    pieces = [piece.strip() for piece in text.split("|") if piece.strip()]
    if len(pieces) > 1:
        for piece in pieces:
            gorl.internal.parse(preset, name, piece)
        if len(set(pieces)) < len(pieces):
            raise gorl.InputError(f"--search {name}={text} has a value twice: give each once.")
        return Choice(tuple(pieces))
    low, *rest = [part.strip() for part in text.split(":")]
    gorl.internal.parse(preset, name, low or "0")  # a wrong name is named before a wrong range
    is_log = rest[1:] == ["log"]
    if not rest or len(rest) > 2 or (len(rest) == 2 and not is_log):
        raise gorl.InputError(
            f"--search {name}={text} is no range: write it as {name}=LOW:HIGH, {name}=LOW:HIGH:log or {name}=a|b|c."
        )
    ends = [gorl.internal.parse(preset, name, end) for end in (low, rest[0])]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in ends):
        raise gorl.InputError(f"--search {name}={text} is no range of numbers: write it as {name}=a|b|c.")
    if not ends[0] < ends[1]:
        raise gorl.InputError(f"--search {name}={text} is empty: the first number must be below the second.")
    if is_log and ends[0] <= 0:
        raise gorl.InputError(f"--search {name}={text} has no logarithm: begin above 0, or leave out :log.")
    return Interval(ends[0], ends[1], is_log)
