"""The study of a run: trainings with other settings than the present ones, tried where those before them went well.

In: a run that is assembled. Out: the folder `tune` of the run with `journal.log` (the study itself), `trials.jsonl`, `study.svg`
and `best.settings.toml`. A trial is judged by the held-out loss of the teacher's words, which is the same number whatever its
settings mix into the loss it learns by. The present settings are the first trial, so the best is never worse than they are. A
trial that is worse than most after as many tokens is given up (successive halving: Jamieson and Talwalkar 2016, asynchronous:
Li et al. 2020); the next one is drawn by a tree-structured Parzen estimator (Bergstra et al. 2011). A killed study goes on
with the trial it was at. Never looks at the test set, and never changes the run's own settings.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from conversations.errors import OperatorError
from conversations.messages import Json
from distill.run import Run, Stage, write_whole
from distill.settings import TuneTable
from distill.training.request import TrainRequest
from distill.training.train import request_of
from distill.training.tuning import trial as processes
from distill.training.tuning.space import Parameter, Space, space_of
from distill.training.tuning.trial import TrialEnd, TrialNews, run_trial

FOLDER = "tune"
JOURNAL_FILE = "journal.log"
TRIALS_FILE = "trials.jsonl"
# So many trials are drawn by chance before the estimator has anything to go by.
_DRAWN_BY_CHANCE = 5
# So many draws in a row of settings that were tried already end a study whose numbers lie too close together to differ.
_DRAWN_IN_VAIN = 100
# What a trial is marked with that was not trained: the number of the one that had its settings.
_SAME_AS = "same_as"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

# Hears which trial is at work, how far it is (0 to 1), and what to say of it.
Tell = Callable[[str, float, str], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tried:
    """A trial of the study: the [train] keys that it changed, how it ended, and the held-out loss in nats per token.

    `state` is complete, pruned (given up early, with the loss that it had by then) or failed, with the `reason`. Tokens are those
    computed, and those planned.
    """

    trial: int
    state: str
    changes: dict[str, Parameter]
    validation_nll: float | None
    tokens: int
    tokens_planned: int
    reason: str = ""


class RunStudy:
    """A run's study, held open by the process that makes its trials. One process does; the record sees to that."""

    def __init__(self, run: Run) -> None:
        """Open the study, or begin it.

        Raises OperatorError when the run is not assembled, has no held-out rows, leaves nothing to try, or the study was begun
        with another [tune] table.
        """
        run.manifest(Stage.ASSEMBLE)
        self.folder = run.folder / FOLDER
        self.table: TuneTable = run.settings.tune
        self.request: TrainRequest = request_of(run)
        if not _has_rows(self.request.validation_path):
            raise OperatorError(
                f"the run {run.run_id!r} has no held-out conversations to judge trials by: {self.request.validation_path} is "
                "empty; raise [choose] validation_share and begin a new run"
            )
        self.space: Space = space_of(
            self.table,
            self.request.settings,
            has_beliefs=_has_rows(self.request.soft_labels_path),
            has_replay=_has_rows(self.request.replay_path),
            max_lora_rank=run.settings.student.max_lora_rank,
            learns_on=self.request.start.release_id if self.request.start else None,
        )
        if not self.space.distributions:
            raise OperatorError(
                f"{run.settings.settings_file} [tune]: nothing is left to try; give one of its lists two values"
                + (f" ({self.space.left_out})" if self.space.left_out else "")
            )
        self._study = self._open()

    def trials(self) -> list[Tried]:
        """Return the finished trials in their order, each with settings of its own."""
        return [_tried(each) for each in self._finished() if _SAME_AS not in each.user_attrs]

    def best(self) -> Tried:
        """Return the complete trial with the least held-out loss, which may be the first one: the present settings."""
        complete = [each for each in self.trials() if each.state == "complete" and each.validation_nll is not None]
        return min(complete, key=lambda each: float(each.validation_nll or 0))

    def importances(self) -> dict[str, float]:
        """Return the share of the trials' differences that each parameter explains, or nothing before enough trials are done."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < 2 * _DRAWN_BY_CHANCE or len({each.value for each in complete}) < 2:
            return {}
        return dict(
            optuna.importance.get_param_importances(self._study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
        )

    def search(self, trials: int, tell: Tell) -> bool:
        """Make trials until so many are finished, and return whether there were so many different ones to make.

        Settings that were drawn and had been tried already are not trained again: the estimator is told what they gave.
        Raises OperatorError when the present settings themselves cannot be trained.
        """
        in_vain = 0
        while len(self.trials()) < trials:
            if len(self.trials()) >= self.space.combinations or in_vain == _DRAWN_IN_VAIN:
                return False
            trial = self._next()
            known = self._same_settings(trial)
            if known is not None:
                in_vain += 1
                self._tell_again(trial, known)
                continue
            in_vain = 0
            self._make(trial, tell)
            write_whole(self.folder / TRIALS_FILE, "".join(json.dumps(asdict(each)) + "\n" for each in self.trials()))
        return True

    def loss_with_seed(self, tried: Tried, more: int, tell: Tell) -> float | None:
        """Return the held-out loss of a trial's settings with the seed so much further on, or None where that fails."""
        if more == 0:
            return tried.validation_nll
        name = f"trial {tried.trial}, seed {self.request.settings.seed + more}"
        known: dict[str, float] = self._study.user_attrs.get("repeats", {})
        if name not in known:
            changes = {**tried.changes, "seed": self.request.settings.seed + more}
            end = self._train(self.folder / "repeats" / name.replace(", ", "-").replace(" ", "_"), changes, name, tell)
            if end.result is None or end.result.best_validation_nll is None:
                log.warning("%s: not measured: %s", name, end.reason)
                return None
            known = {**known, name: end.result.best_validation_nll}
            self._study.set_user_attr("repeats", known)
        return known[name]

    @property
    def learning_rate(self) -> float:
        """Return the present settings' learning rate, which the first trial told."""
        return float(self._study.user_attrs["learning_rate"])

    def _open(self) -> optuna.Study:
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.folder / JOURNAL_FILE
        _mend(path)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=FOLDER,
            load_if_exists=True,
            direction="minimize",
        )
        tried: Json = self.table.model_dump(mode="json", exclude={"trials", "repeats"})
        if study.user_attrs.setdefault("table", tried) != tried:
            raise OperatorError(
                f"{self.folder}: the study was begun with another [tune] table: {study.user_attrs['table']}; restore it, or "
                f"remove that folder to begin a new study"
            )
        if not study.get_trials(deepcopy=False):
            study.set_user_attr("table", tried)
            study.enqueue_trial(dict(self.space.present))
        return study

    def _next(self) -> optuna.Trial:
        """Return the trial that a killed process was at, or the next one."""
        begun = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        finished = self._finished()
        number = begun[0].number if begun else len(finished)
        # The estimator likes what it knows; after settings that had been tried already it is chance that finds others.
        by_chance = bool(finished) and _SAME_AS in finished[-1].user_attrs
        # Chance is bound to the trial's number, so that a study that was killed tries the same settings as one that was not.
        self._study.sampler = optuna.samplers.TPESampler(
            multivariate=True,
            n_startup_trials=number + 1 if by_chance else _DRAWN_BY_CHANCE,
            seed=self.request.settings.seed + number,
        )
        if "tokens_planned" in self._study.user_attrs:
            self._study.pruner = self._pruner(self._study.user_attrs["tokens_planned"])
        trial = optuna.Trial(self._study, begun[0]._trial_id) if begun else self._study.ask()
        for name, distribution in self.space.distributions.items():
            if isinstance(distribution, FloatDistribution):
                trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
            elif isinstance(distribution, CategoricalDistribution):
                trial.suggest_categorical(name, distribution.choices)
        return trial

    def _finished(self) -> list[FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False, states=_FINISHED))

    def _changes(self, trial: optuna.Trial) -> dict[str, Parameter]:
        return {} if trial.number == 0 else self.space.changes(trial.params, self.learning_rate)

    def _same_settings(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Return the finished trial that had the settings of this one, if there is one."""
        changes = self._changes(trial)
        return next((each for each in self._finished() if each.user_attrs["changes"] == changes), None)

    def _tell_again(self, trial: optuna.Trial, known: FrozenTrial) -> None:
        """End a trial as the one before it that had the same settings."""
        trial.set_user_attr("changes", known.user_attrs["changes"])
        trial.set_user_attr(_SAME_AS, known.number)
        for tokens, validation_nll in known.intermediate_values.items():
            if tokens not in self._study.trials[trial.number].intermediate_values:
                trial.report(validation_nll, tokens)
        value = known.value if known.state is TrialState.COMPLETE else None
        self._study.tell(trial, value, state=known.state)

    def _pruner(self, tokens_planned: int) -> optuna.pruners.BasePruner:
        """Return what gives trials up, by the tokens that they have learnt: epochs are of different worth."""
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(1, round(self.table.first_look_share * tokens_planned)), reduction_factor=self.table.survivors
        )

    def _make(self, trial: optuna.Trial, tell: Tell) -> None:
        """Make one trial and enter into the study how it ended."""
        is_first = trial.number == 0
        changes = self._changes(trial)
        trial.set_user_attr("changes", changes)
        known = set(self._study.trials[trial.number].intermediate_values)

        def gives_up(news: TrialNews) -> bool:
            if "tokens_planned" not in self._study.user_attrs:
                self._study.set_user_attr("tokens_planned", news.tokens_planned)
                self._study.pruner = self._pruner(news.tokens_planned)
            if news.validation_nll is None:
                return False
            if news.tokens not in known:
                trial.report(news.validation_nll, news.tokens)
            return bool(trial.should_prune())

        end = self._train(self.folder / "trials" / f"{trial.number:04d}", changes, f"trial {trial.number}", tell, gives_up)
        trial.set_user_attr("tokens", end.tokens)
        trial.set_user_attr("tokens_planned", end.tokens_planned)
        if end.state is processes.TrialState.STOPPED:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif end.result is not None and end.result.best_validation_nll is not None:
            if is_first:
                self._study.set_user_attr("learning_rate", end.result.learning_rate)
            self._study.tell(trial, end.result.best_validation_nll)
        elif is_first:
            # Left as begun: the same command takes it up once the cause is gone.
            raise OperatorError(
                f"tune: the present settings cannot be trained: {end.reason}; expected a first trial to compare others with; "
                f"mend [train] (its log is in {self.folder / 'trials' / '0000'}) or free memory, and run the same command again"
            )
        else:
            log.warning("trial %d failed: %s", trial.number, end.reason)
            trial.set_user_attr("reason", end.reason or "it ended without a held-out loss")
            self._study.tell(trial, state=TrialState.FAIL)

    def _train(
        self,
        folder: Path,
        changes: dict[str, Parameter],
        name: str,
        tell: Tell,
        gives_up: Callable[[TrialNews], bool] = lambda _: False,
    ) -> TrialEnd:
        """Train with some [train] keys changed, in a process of its own, and keep no weights of it."""

        def stops(news: TrialNews) -> bool:
            nll = "" if news.validation_nll is None else f", held-out loss {news.validation_nll:.4f}"
            tell(
                name, news.tokens / news.tokens_planned, f"loss {news.loss:.3f}, {news.tokens_per_second:.0f} tokens/s{nll}"
            )
            return gives_up(news)

        tell(name, 0.0, ", ".join(f"{key} {value:g}" for key, value in changes.items()) or "the present settings")
        settings = self.request.settings.model_copy(update=changes)
        out_dir = folder / "train"
        request = replace(self.request, settings=settings, out_dir=out_dir, metrics_path=folder / "metrics.jsonl")
        end = run_trial(request, folder, stops)
        shutil.rmtree(out_dir, ignore_errors=True)
        tell(name, 1.0, end.state if end.result is None else f"held-out loss {end.result.best_validation_nll}")
        return end


def tokens_saved_share(trials: Sequence[Tried]) -> float:
    """Return the share of all tokens that giving trials up has saved, against running every one of them to its end."""
    trained = sum(each.tokens for each in trials)
    saved = sum(each.tokens_planned - each.tokens for each in trials if each.state == "pruned")
    return saved / (trained + saved) if trained + saved else 0.0


def _has_rows(path: Path | None) -> bool:
    return path is not None and path.is_file() and path.stat().st_size > 0


def _tried(trial: FrozenTrial) -> Tried:
    told = trial.user_attrs
    return Tried(
        trial=trial.number,
        state="failed" if trial.state is TrialState.FAIL else trial.state.name.lower(),
        changes=told["changes"],
        validation_nll=trial.value,
        tokens=told["tokens"],
        tokens_planned=told["tokens_planned"],
        reason=told.get("reason", ""),
    )


def _mend(journal: Path) -> None:
    """Cut off the half line that a killed process may have left at the end of the journal; optuna reads no further than it."""
    if not journal.is_file():
        return
    written = journal.read_bytes()
    whole = written.rfind(b"\n") + 1
    if whole < len(written):
        os.truncate(journal, whole)
