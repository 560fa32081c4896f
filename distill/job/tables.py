"""The settings of a job: the tables that its few parameters stand for, with whatever else is given.

In: a teacher, a student, files and hyperparameters. Out: tables, and a settings file as every command reads it.
"""

import dataclasses
import difflib
import shutil
import socket
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import tomlkit
from tomlkit.exceptions import ConvertError

from conversations.errors import OperatorError
from conversations.messages import Json
from distill.settings import TeacherTable

TaskType: TypeAlias = Literal["conversation", "qa", "summarization", "nli", "math"]
Tables: TypeAlias = Mapping[str, Mapping[str, Json]]

# What counts as accuracy in each task. A conversation's facts are known where there is a handbook alone.
ACCURACY_OF: Mapping[TaskType, str] = {
    "conversation": "reference_similarity",
    "qa": "token_f1",
    "summarization": "reference_rouge_l",
    "nli": "nli_accuracy",
    "math": "math_accuracy",
}
_WITH_HANDBOOK = "fact_accuracy"


@dataclass(frozen=True)
class Hyperparameters:
    """How the student learns, in the words of cloud services; None leaves what [train] says by itself.

    `batch_size` is [train] rows_per_step, `num_epochs` is epochs. `temperature` is that of distillation: it softens the teacher's
    log-probabilities where it gives them ([train] temperature); the teacher's sampling has a temperature of its own in its table.
    """

    learning_rate: float | None = None
    batch_size: int | None = None
    num_epochs: float | None = None
    temperature: float | None = None

    def as_train(self) -> dict[str, Json]:
        """Return the keys of [train] that these stand for."""
        named = {
            "learning_rate": self.learning_rate,
            "rows_per_step": self.batch_size,
            "epochs": self.num_epochs,
            "temperature": self.temperature,
        }
        return {name: value for name, value in named.items() if value is not None}


def tables_of(
    *,
    teacher: TeacherTable | Mapping[str, Json],
    student: Path,
    data: Mapping[str, Path | str | None],
    task_type: TaskType,
    hyperparameters: Hyperparameters,
    system_prompt: str,
    max_cost_usd: float,
    student_servers: tuple[str, ...],
    more: Tables,
) -> dict[str, dict[str, Json]]:
    """Return the tables of a job's settings; the keys of `more` win.

    Raises OperatorError for what is none of these things, an unknown task, and a file or a student that is not there.
    """
    if isinstance(student_servers, str):
        raise OperatorError(
            f"student_servers is {student_servers!r}; expected a tuple of addresses; write ({student_servers!r},)"
        )
    if not isinstance(more, Mapping) or not all(isinstance(table, Mapping) for table in more.values()):
        raise OperatorError(
            f"settings is {more!r}; expected tables by name, such as {{'evaluate': {{'timed_decisions': 20}}}}"
        )
    if "record" in more:
        raise OperatorError("settings: a job's record is record.db in its folder, and no other; leave [record] out")
    if not (student / "config.json").is_file():
        raise OperatorError(
            f"student: there is no model in {student}; expected a folder with config.json and its weights; mend the path"
        )
    if task_type not in ACCURACY_OF:
        raise OperatorError(f"task_type = {task_type!r}; expected one of {', '.join(ACCURACY_OF)}")
    datasets: dict[str, Json] = {"task": task_type}
    for key, path in data.items():
        if path is not None:
            datasets[key] = _file(key, Path(path))
    tables: dict[str, dict[str, Json]] = {
        "record": {"path": "record.db"},
        "student": {
            "base": str(student.absolute()),
            "profile": "gpu" if shutil.which("nvidia-smi") else "cpu",
            "servers": list(student_servers),
        },
        "prompt": {"system": system_prompt},
        "runs": {"folder": "runs"},
        "teachers": {"teacher": _teacher(teacher)},
        "datasets": datasets,
        "teach": {"teacher": "teacher", "max_cost_usd": max_cost_usd, "max_calls": 1_000_000},
        "train": hyperparameters.as_train(),
        "evaluate": {"quality_metric": _accuracy(task_type, more), "server_usd_per_hour": 0.0},
        # Without a handbook nobody can tell which facts of a conversation are wrong.
        "promote": {
            "min_retained": 0.9,
            "max_wrong_fact_rate": 0.1 if "handbook" in more or task_type != "conversation" else 1.0,
            "max_loss_to_released": 0.02,
        },
    }
    found = {name: {**tables.get(name, {}), **more.get(name, {})} for name in {**tables, **more}}
    for name, table in found.items():
        try:
            tomlkit.dumps(table)
        except ConvertError as error:
            raise OperatorError(f"settings [{name}]: {error}; leave the key out, or give a value that TOML has") from None
    return found


def write_settings(path: Path, tables: Mapping[str, Mapping[str, Json]]) -> None:
    """Write a settings file, with a port of its own for the student's server, the one from before where there was one."""
    student = dict(tables["student"])
    if "port" not in student:
        before = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        student["port"] = before.get("student", {}).get("port") or _free_port()
    path.write_text(tomlkit.dumps({**tables, "student": student}), encoding="utf-8")


def _file(name: str, path: Path) -> str:
    if not path.is_file():
        raise OperatorError(
            f"{name} data: there is no file {path}; expected JSON Lines as in docs/datasets.md; mend the path"
        )
    return str(path.absolute())


def _teacher(given: TeacherTable | Mapping[str, Json]) -> dict[str, Json]:
    if isinstance(given, TeacherTable):
        return dict(given.model_dump(mode="json", exclude_none=True))
    if not isinstance(given, Mapping):
        raise OperatorError(f"teacher is {given!r}; expected a TeacherTable, or its keys and values")
    return dict(given)


def hyperparameters_of(given: Hyperparameters | Mapping[str, float] | None) -> Hyperparameters:
    """Return hyperparameters that were given as an object or by name.

    Raises OperatorError for a name that is none, with the nearest.
    """
    if given is None or isinstance(given, Hyperparameters):
        return given or Hyperparameters()
    if not isinstance(given, Mapping):
        raise OperatorError(f"hyperparameters is {given!r}; expected Hyperparameters, or values by name")
    known = [each.name for each in dataclasses.fields(Hyperparameters)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            meant = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(known)}."
            raise OperatorError(f"hyperparameters: unknown name {name!r}; {meant} Other keys of [train] go into settings")
    return Hyperparameters(**given)  # type: ignore[arg-type]  # The settings check each value with its name.


def _accuracy(task: TaskType, more: Tables) -> str:
    return _WITH_HANDBOOK if task == "conversation" and "handbook" in more else ACCURACY_OF[task]


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
