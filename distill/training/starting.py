"""From which weights a training starts: the base student's, or those of a release, which learn on.

In: the record, the settings and a release's folder. Out: the starting point, and a student that holds its weights. An adapter
learns on as what it is: with another base, rank or set of layers its numbers would mean something else, so that is refused.
"""

import json
from pathlib import Path

from conversations.errors import OperatorError
from conversations.releases import STARTED_FROM_BASE, Release, ReleaseKind, release
from conversations.store import Record
from distill.run import file_digest
from distill.settings import DistillSettings
from distill.training.fingerprint import BASE, digest_of_base
from distill.training.request import StartingPoint
from distill.training.student.learning import LearningStudent
from distill.training.weights.adapters import CONFIG_FILE, WEIGHTS_FILE, load_adapters

_OTHERWISE = 'or set [train] start_from = "base"'


def starting_point(record: Record, settings: DistillSettings, release_id: str | None) -> StartingPoint | None:
    """Return the release that learns on as a place with weights; None for the base student.

    Raises OperatorError where it is no adapter, was changed or is gone, or was made for another base, rank or scale.
    """
    if release_id is None:
        return None
    known = release(record, release_id)
    if known.kind is not ReleaseKind.LORA or settings.train.kind != "lora":
        raise OperatorError(
            f'the release {release_id!r} is of the kind {known.kind.value!r} and [train] kind is "{settings.train.kind}": only '
            f'an adapter can learn on, as an adapter; set [train] kind = "lora" and promote an adapter, {_OTHERWISE}'
        )
    folder = Path(known.weights_path)
    _check_there(known, folder)
    _check_fits(known, folder, settings)
    return StartingPoint(release_id, folder, known.weights_digest)


def started_from(start: StartingPoint | None) -> str:
    """Return how a training says from where it started: "base" or the release's name."""
    return start.release_id if start else STARTED_FROM_BASE


def learn_on(student: LearningStudent, start: StartingPoint) -> None:
    """Put the weights of a release into a student that has learned nothing yet.

    Raises OperatorError where the release adapts other layers, or layers of another size.
    """
    learned = load_adapters(start.weights_path / WEIGHTS_FILE)
    wanted = {name: tuple(parameter.shape) for name, parameter in student.trainable.items()}
    found = {name: tuple(tensor.shape) for name, tensor in learned.items()}
    other = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if other:
        raise OperatorError(
            f"the release {start.release_id!r} cannot learn on: {len(other)} of its adapted layers differ from those that would "
            f"learn now, such as {other[0]}: {found.get(other[0], 'absent')} there, {wanted.get(other[0], 'absent')} here; "
            f"restore [train] last_layers, {_OTHERWISE}"
        )
    student.put_back(learned)


def _check_there(known: Release, folder: Path) -> None:
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    missing += [] if (folder.parent / "training.json").is_file() else ["../training.json"]
    if missing:
        raise OperatorError(
            f"{folder}: the weights of the release {known.release_id!r} cannot learn on: {', '.join(missing)} is gone; restore "
            f"the folder of the run {known.run_id}, roll back to another release, {_OTHERWISE}"
        )
    digest = file_digest(folder / WEIGHTS_FILE)
    if digest != known.weights_digest:
        raise OperatorError(
            f"{folder / WEIGHTS_FILE}: its digest is {digest}, and the release {known.release_id!r} was registered with "
            f"{known.weights_digest}; expected the released weights; restore them, {_OTHERWISE}"
        )


def _check_fits(known: Release, folder: Path, settings: DistillSettings) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    trained = json.loads((folder.parent / "training.json").read_text(encoding="utf-8"))["fingerprint"]
    pairs = {
        "rank": (config["r"], settings.train.rank),
        "alpha": (config["lora_alpha"], settings.train.alpha),
        "rank_stabilised": (bool(config.get("use_rslora")), settings.train.rank_stabilised),
        "base student": (trained[BASE], digest_of_base(settings.student.base)),
    }
    differences = [f"its {name} is {there} and would be {here}" for name, (there, here) in pairs.items() if there != here]
    if differences:
        raise OperatorError(
            f"the release {known.release_id!r} cannot learn on: {'; '.join(differences)}; an adapter keeps its base and its form: "
            f"restore them in [train] and [student], {_OTHERWISE}"
        )
