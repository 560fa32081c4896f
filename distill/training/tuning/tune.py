"""The command `distill tune`: a study of a run's training settings, and what came of it.

In: a run that is assembled. Out: the best settings as a settings file, the study's picture, and by how much the best is better
than the present settings, with what chance could explain. Changes no run and no release: the operator takes the file, or not.
"""

from dataclasses import dataclass
from pathlib import Path

from conversations.messages import Json
from distill.run import Run, write_whole
from distill.training.tuning.noise import OverSeeds, mean_over_seeds
from distill.training.tuning.plot import draw_study
from distill.training.tuning.settings_file import changed_settings
from distill.training.tuning.study import TRIALS_FILE, RunStudy, Tell, Tried, tokens_saved_share

SETTINGS_FILE = "best.settings.toml"
PLOT_FILE = "study.svg"


@dataclass(frozen=True)
class Tuned:
    """What a study found. Losses are held out, in nats a token.

    `better_by` is the present settings' loss minus the best one's, over the seeds that both were trained with; `better_by_anew`
    over those seeds alone that the best was not chosen by, where luck has no part in it. Both are None where the present settings
    are the best. `notes` say what was not tried and why.
    """

    present: Tried
    best: Tried
    better_by: OverSeeds | None
    better_by_anew: OverSeeds | None
    trials: tuple[Tried, ...]
    notes: tuple[str, ...]
    settings_path: Path
    plot_path: Path
    trials_path: Path

    def as_json(self) -> dict[str, Json]:
        """Return what `--json` prints."""
        states = [each.state for each in self.trials]
        return {
            "trials": {state: states.count(state) for state in ("complete", "pruned", "failed")},
            "present_validation_nll": self.present.validation_nll,
            "best_trial": self.best.trial,
            "best_validation_nll": self.best.validation_nll,
            "best_changes": {**self.best.changes},
            "better_by": self.better_by.as_json() if self.better_by else None,
            "better_by_anew": self.better_by_anew.as_json() if self.better_by_anew else None,
            "tokens_trained": sum(each.tokens for each in self.trials),
            "tokens_saved_share": round(tokens_saved_share(self.trials), 4),
            "settings_file": str(self.settings_path),
            "notes": [*self.notes],
            "plot": str(self.plot_path),
            "trials_file": str(self.trials_path),
        }

    def sentences(self) -> list[str]:
        """Return what a person is told."""
        states = [each.state for each in self.trials]
        ended = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed"))
        told = [f"{len(states)} trials: {ended}; giving up early saved {tokens_saved_share(self.trials):.0%} of the tokens"]
        if self.better_by is None:
            told.append(f"the present settings are the best: held-out loss {self.present.validation_nll:.4f} nats a token")
        else:
            changes = ", ".join(f"{key} = {value:g}" for key, value in self.best.changes.items())
            told.append(
                f"trial {self.best.trial} is the best, with {changes}: held-out loss {self.best.validation_nll:.4f} nats a token; "
                f"the present settings have {self.present.validation_nll:.4f}"
            )
            told.append(
                f"over all seeds it is better by {self.better_by}; over those it was not chosen by, by {self.better_by_anew}"
            )
        return [*told, *self.notes, f"the settings: {self.settings_path}", f"the picture: {self.plot_path}"]


def tune(run: Run, trials: int, tell: Tell) -> Tuned:
    """Make trials until so many are finished, repeat the best and the present settings with more seeds, and write the results.

    Raises OperatorError when there is nothing to try, or the present settings cannot be trained.
    """
    study = RunStudy(run)
    # A file that the best settings cannot be written into is refused before anything is trained.
    changed_settings(run.settings, study.space.changes(study.space.others(), learning_rate=1.0), study.folder)
    has_more = study.search(trials, tell)
    tried = tuple(study.trials())
    present, best = tried[0], study.best()
    differences = _differences(study, present, best, tell) if best.trial != present.trial else {}
    settings_path = write_whole(study.folder / SETTINGS_FILE, changed_settings(run.settings, best.changes, study.folder))
    plot_path = study.folder / PLOT_FILE
    draw_study(tried, *_axes(study), plot_path)
    return Tuned(
        present=present,
        best=best,
        better_by=mean_over_seeds(list(differences.values())) if differences else None,
        better_by_anew=mean_over_seeds([value for more, value in differences.items() if more]) if differences else None,
        trials=tried,
        notes=tuple(
            note
            for note in (study.space.left_out, "" if has_more else "every combination that [tune] allows has been tried")
            if note
        ),
        settings_path=settings_path,
        plot_path=plot_path,
        trials_path=study.folder / TRIALS_FILE,
    )


def _differences(study: RunStudy, present: Tried, best: Tried, tell: Tell) -> dict[int, float]:
    """Return by how much the best is better than the present settings, by how far the seed is from the study's own."""
    found: dict[int, float] = {}
    for more in range(study.table.repeats + 1):
        theirs, ours = study.loss_with_seed(present, more, tell), study.loss_with_seed(best, more, tell)
        if theirs is not None and ours is not None:
            found[more] = theirs - ours
    return found


def _axes(study: RunStudy) -> tuple[dict[str, float], dict[str, float]]:
    """Return the [train] keys that were tried with their present values, and the share of the differences that each explains."""
    named = {name: "learning_rate" if name == "learning_rate_factor" else name for name in study.space.present}
    present = {
        key: study.learning_rate if key == "learning_rate" else float(study.space.present[name])
        for name, key in named.items()
    }
    return present, {named[name]: share for name, share in study.importances().items()}
