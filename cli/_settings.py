"""The configs that the options of a command ask for."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import gorl

from ._plot import shortest_tails


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of a sweep.

    **Arguments:**

    - `values`: the values of the fields that differ between settings, as a person typed them.
    - `config`: the config.
    """

    values: Mapping[str, str]
    config: gorl.Config

    @property
    def name(self) -> str:
        """Tells it from the others."""
        names = shortest_tails([tuple(name.split(".")) for name in self.values])
        return ", ".join(f"{'.'.join(name)}={value}" for name, value in zip(names, self.values.values(), strict=True))


def settings(options: Sequence[str]) -> dict[str, str]:
    """The texts that `--set` gives, by the dotted name of the field."""
    found: dict[str, str] = {}
    for option in options:
        name, text = gorl.internal.split_setting(option)
        if name in found:
            raise gorl.InputError(f"--set {name} is there twice: give it once.")
        found[name] = text
    return found


def total_steps(text: str | None) -> int | None:
    """The number that `--steps` gives."""
    if text is None:
        return None
    try:
        total = gorl.internal.whole_number(text)
    except ValueError as error:
        raise gorl.InputError(f"--steps must be a whole number such as 2e6, not {text!r}.") from error
    if total < 1:
        raise gorl.InputError(f"--steps must be at least 1, not {text}.")
    return total


def make_config(
    preset: gorl.Config, texts: Mapping[str, str], steps: str | None = None, stages: int | None = None
) -> gorl.Config:
    """A preset, changed as `--set`, `--steps` and `--stages` ask for."""
    given = [option for option, value in (("--steps", steps), ("--stages", stages)) if value is not None]
    if given and "stage_steps" in texts:
        raise gorl.InputError(f"--set stage_steps says what {' and '.join(given)} would: leave one or the other out.")
    if stages is not None and stages < 1:
        raise gorl.InputError(f"--stages must be at least 1, not {stages}.")
    changes = {name: gorl.internal.parse(preset, name, text) for name, text in texts.items()}
    return gorl.reschedule(preset, total_steps=total_steps(steps), num_stages=stages, changes=changes)


def trials(
    preset: gorl.Config, texts: Mapping[str, str], steps: str | None = None, stages: int | None = None
) -> list[Trial]:
    """Every combination of the values that `--set` gives: with commas between them, or semicolons between tuples."""
    columns = []
    for name, text in texts.items():
        is_tuple = ";" in text or isinstance(gorl.internal.parse(preset, name, text.partition(",")[0].strip()), tuple)
        values = [value.strip() for value in text.split(";" if is_tuple else ",") if value.strip()]
        if not values:
            raise gorl.InputError(f"--set {name}= gives no value: write it as {name}=VALUE,VALUE.")
        columns.append(list(dict.fromkeys(values)))
    varied = {name for name, values in zip(texts, columns, strict=True) if len(values) > 1}
    combinations = [dict(zip(texts, values, strict=True)) for values in itertools.product(*columns)]
    return [
        Trial(
            {name: value for name, value in combination.items() if name in varied},
            make_config(preset, combination, steps, stages),
        )
        for combination in combinations
    ]
