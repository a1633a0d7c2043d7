"""`gorl tune`: a search for the best settings, by Optuna, with trials that train side by side."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import jax.numpy as jnp
import numpy as np

import gorl

from ._log import Row
from ._process import check_packages, command, plain_console, plural, say
from ._progress import finite_mean
from ._run import (
    TUNE,
    Run,
    check_new,
    damaged,
    make_directory,
    only_writer,
    read_description,
    try_to_write,
    write_description,
)
from ._space import Space
from ._sweep import Sweep
from ._tables import new_table
from ._train import Job, batch, by_structure, check_options, make_group, train_groups

if TYPE_CHECKING:
    import optuna
    import rich.table

PACKAGES = ("optuna",)
_JOURNAL = "study.log"
_BATCH = "batch"  # the attribute of a trial that says with which others it was asked for


@final
@dataclasses.dataclass(frozen=True)
class Search:
    """What `gorl tune` was told.

    **Arguments:**

    - `run`: what every trial has in common; its directory is that of the study.
    - `space`: what is searched.
    - `search`: the texts of the space.
    - `options`: the other options that `gorl train` needs to train one of the trials.
    - `parallel`: the number of trials side by side.
    - `is_pruned`: whether trials that look worse than half of those before are stopped.
    """

    run: Run
    space: Space
    search: Mapping[str, str]
    options: Sequence[str]
    parallel: int
    is_pruned: bool

    def description(self) -> dict[str, Any]:
        """What makes two searches the same study."""
        return {
            "env": str(self.run.config.env),
            "search": dict(self.search),
            "set": dict(self.space.texts),
            "options": list(self.options),
            "seeds": self.run.seeds,
            "seed": self.run.first_seed,
        }


def tune(search: Search, num_trials: int, is_named: bool) -> int:
    """Searches until the study has so many trials, shows what it found, and returns the exit code of the process.

    If a person named a directory that holds the same study, it goes on.
    """
    check_packages("gorl tune", "tune", PACKAGES)
    run = search.run
    for name, count in (("--trials", num_trials), ("--parallel", search.parallel)):
        if count < 1:
            raise gorl.InputError(f"{name} must be at least 1, not {count}.")
    check_options(run)
    run.config.to_json()  # raises if the config cannot be written
    directory = run.directory
    goes_on = is_named and (directory / TUNE).exists()
    if goes_on:
        _check_same(search)
    else:
        check_new(directory, is_named)
        side_by_side = min(search.parallel, num_trials)
        several = batch([run.config] * side_by_side, run.seeds)
        gorl.iterate(several, jnp.tile(run.keys, side_by_side), decoder=run.first_decoder())  # checks the rest
        directory = make_directory(directory, is_named)
        search = dataclasses.replace(search, run=dataclasses.replace(run, directory=directory))
    with only_writer(directory):
        if not goes_on:
            check_new(directory, is_named=True)  # another process may have used it since the first check
            write_description(directory / TUNE, search.description())
        return _Study(search).go_on(num_trials)


def _check_same(search: Search) -> None:
    """Checks that the directory holds a study of the same search."""
    directory, asked = search.run.directory, search.description()
    content = read_description(directory, TUNE)
    if not asked.keys() <= content.keys():
        raise damaged(directory / TUNE)
    for name, value in asked.items():
        if content[name] != value:
            raise gorl.InputError(
                f"--out {directory} holds another study, in which {name} is {_words(content[name])} and not "
                f"{_words(value)}: give a new directory, or the options of that study."
            )


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{name}={text}" for name, text in value.items()]
    return (" ".join(map(str, value)) or "nothing") if isinstance(value, list) else str(value)


@final
@dataclasses.dataclass(frozen=True)
class _Batch(Job):
    """Trials that train side by side. After an evaluation the study can leave some of them."""

    study: "_Study"
    trials: Mapping[str, "optuna.Trial"]
    left: list[str]  # those that go on, after the study has left others

    def create(self) -> None:
        for run in self.runs.values():
            if not run.directory.exists():
                run.create()

    @property
    def is_finished(self) -> bool:
        return all(run.is_finished for run in self.runs.values())

    @property
    def way_on(self) -> str:
        return self.study.way_on

    def goes_on(self, runs: Sequence[Run], rows: Sequence[list[Row]]) -> bool:
        """Reports the evaluation. Trials stop once half of them or more are pruned.

        A smaller number of trials is another program, which has to be compiled, so they do not stop one by one.
        """

        def report() -> None:
            for trial, run, of_run in zip(self.trials.values(), runs, rows, strict=True):
                index = len(of_run) // run.seeds - 1
                if index not in _stored(trial).intermediate_values:
                    latest = np.array([row["return_mean"] for row in of_run[-run.seeds :]], np.float64)
                    trial.report(finite_mean(latest), index)

        if not try_to_write(runs, "no evaluation of the study", report, "the trials go on"):
            return True
        if not self.study.search.is_pruned:
            return True
        left = [name for name, trial in self.trials.items() if not trial.should_prune()]
        if 2 * len(left) > len(self.trials):
            return True
        self.left[:] = left
        return False

    def finish(self, results: Sequence[tuple[Run, gorl.Result, float]]) -> int:
        if results:
            for name, run in self.runs.items():
                self.study.tell(self.trials[name], run)
            self.left.clear()
        else:
            self.study.prune([trial for name, trial in self.trials.items() if name not in self.left])
        return 0


class _Study:
    """A study of Optuna and the runs of its trials."""

    def __init__(self, search: Search):
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.search = search
        self._directory = search.run.directory
        backend = JournalFileBackend(str(self._directory / _JOURNAL))
        self._optuna = optuna
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="gorl",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )

    @property
    def way_on(self) -> str:
        """The command that goes on."""
        return f"the same gorl tune and {command('--out', self._directory)}"

    def go_on(self, num_trials: int) -> int:
        trials = self._study.get_trials(deepcopy=False)
        # What an earlier process left goes first.
        left = [trial for trial in trials if trial.state == self._optuna.trial.TrialState.RUNNING]
        if left:
            code = self._train({_name(trial.number): self._open(trial._trial_id) for trial in left})
            if code:
                return code
        while (done := len(self._begun())) < num_trials:
            code = self._train(self._ask(min(self.search.parallel, num_trials - done)))
            if code:
                return code
        return self._show()

    def _begun(self) -> list["optuna.trial.FrozenTrial"]:
        """The trials, without what waits for its turn."""
        waiting = self._optuna.trial.TrialState.WAITING
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state != waiting]

    def _open(self, identifier: int) -> "optuna.Trial":
        return self._optuna.trial.Trial(self._study, identifier)

    def _ask(self, count: int) -> dict[str, "optuna.Trial"]:
        begun = len(self._begun())
        if begun == 0 and (start := self.search.space.start()) is not None and not self._study.get_trials():
            self._study.enqueue_trial(start)  # the preset itself is tried first
        # A new sampler for each batch: what it draws does not depend on where an earlier process was stopped.
        seed = int(np.random.SeedSequence([self.search.run.first_seed, begun]).generate_state(1)[0])
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        asked = [self._study.ask() for _ in range(count)]
        for trial in asked:
            trial.set_user_attr(_BATCH, begun)
            self.search.space.suggest(trial)
        return {_name(trial.number): trial for trial in asked}

    def _train(self, trials: Mapping[str, "optuna.Trial"]) -> int:
        """Trains trials, those of one structure side by side."""
        runs: dict[str, Run] = {}
        for name, trial in trials.items():
            place = self._directory / name
            try:
                values = self.search.space.suggest(trial)
                runs[name] = Run.open(place) if place.exists() else self._new_run(place, values)
            except gorl.InputError as error:
                say(f"{name} cannot be trained: {error}")
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        for name, run in list(runs.items()):
            if run.is_finished:  # but the study was not told
                self.tell(trials[name], run)
                del runs[name]
        self._write_runs(runs)
        for names in by_structure({name: run.config for name, run in runs.items()}):
            is_new = not any(runs[name].checkpoints() for name in names)
            while names:
                left = list(names)
                of_names = {name: runs[name] for name in names}
                job = _Batch(self._directory, of_names, self, {name: trials[name] for name in names}, left)
                code = self._train_batch(job, is_new)
                if code:
                    return code
                names, is_new = left, False
        return 0

    def _new_run(self, place: pathlib.Path, values: Mapping[str, str]) -> Run:
        run = self.search.run
        made = Run(
            place,
            self.search.space.config(values),
            run.method,
            run.first_seed,
            run.seeds,
            run.checkpoint_interval,
            run.log,
        )
        made.create()
        return made

    def _train_batch(self, job: _Batch, is_new: bool) -> int:
        configs = {name: run.config for name, run in job.runs.items()}
        return train_groups(job, [make_group(job.runs, configs, list(configs), is_new=is_new)])

    def tell(self, trial: "optuna.Trial", run: Run) -> None:
        """Tells the study what a finished run returned. A run in which every seed diverged failed."""
        returns = run.summary()["best_policy_return"].values()
        mean = finite_mean(np.array([np.nan if value is None else value for value in returns], np.float64))
        states = self._optuna.trial.TrialState
        if np.isnan(mean):
            self._study.tell(trial, state=states.FAIL)
        else:
            self._study.tell(trial, mean)

    def prune(self, trials: Sequence["optuna.Trial"]) -> None:
        """Leaves trials."""
        for trial in trials:
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        names = ", ".join(_name(trial.number) for trial in trials)
        say(f"pruned, as others returned more by then: {names}")

    # --- What it found. ---

    def _sweep(self, runs: Mapping[str, Run], seconds: float | None = None) -> Sweep:
        """Runs of trials as those of a sweep, which is what other commands read."""
        fields = self.search.search
        of_name = {_name(trial.number): trial for trial in self._study.get_trials(deepcopy=False)}
        values = {name: {field: str(_text(of_name[name].params[field])) for field in fields} for name in runs}
        return Sweep(self._directory, runs, values, self.search.space.texts, self.search.options, seconds)

    def _runs(self) -> dict[str, Run]:
        places = {_name(trial.number): self._directory / _name(trial.number) for trial in self._begun()}
        return {name: Run.open(place) for name, place in places.items() if place.exists()}

    def _write_runs(self, runs: Mapping[str, Run]) -> None:
        self._sweep(self._runs() | dict(runs)).write()

    def _show(self) -> int:
        begun, states = self._begun(), self._optuna.trial.TrialState
        runs = self._runs()
        seconds: dict[int, float] = {}
        for trial in begun:
            run = runs.get(_name(trial.number))
            if run is not None and run.curve_file.exists():
                of_batch, last = trial.user_attrs[_BATCH], float(run.curve()[-1]["wall_seconds"])
                seconds[of_batch] = max(seconds.get(of_batch, 0.0), last)
        finished = {name: run for name, run in runs.items() if run.is_finished}
        counts = {state: sum(trial.state == state for trial in begun) for state in (states.PRUNED, states.FAIL)}
        told = f"{plural(len(begun), 'trial')}: {len(finished)} trained to the end"
        told += f", {counts[states.PRUNED]} pruned" * bool(counts[states.PRUNED])
        told += f", {counts[states.FAIL]} failed" * bool(counts[states.FAIL])
        code = 0
        if finished:
            code = self._sweep(finished, sum(seconds.values())).finish(())
        console = plain_console()
        if counts[states.PRUNED]:
            console.print(self._pruned_table(runs, [trial for trial in begun if trial.state == states.PRUNED]))
        console.print(told, soft_wrap=True)
        return code if finished else 1

    def _pruned_table(
        self, runs: Mapping[str, Run], pruned: Sequence["optuna.trial.FrozenTrial"]
    ) -> "rich.table.Table":
        """The trials that were stopped: their values, and the return and the steps that they had come to."""
        shown = new_table(*self.search.search, "return", "env steps", "run", title="pruned", left=("run",))
        for trial in pruned:
            name = _name(trial.number)
            values = [str(_text(trial.params[field])) for field in self.search.search]
            mean = trial.intermediate_values[max(trial.intermediate_values)]
            shown.add_row(*values, f"{mean:.1f}", f"{int(runs[name].curve()[-1]['env_steps']):,}", name)
        return shown


def _stored(trial: "optuna.Trial") -> "optuna.trial.FrozenTrial":
    return trial.study._storage.get_trial(trial._trial_id)


def _name(number: int) -> str:
    """The name of a trial, and of its directory."""
    return f"trial-{number:03}"


def _text(value: Any) -> Any:
    """A value of Optuna's as the trial got it."""
    return f"{value:.4g}" if isinstance(value, float) else value
