"""Choosing from files: every good line of a data set becomes a conversation of the record and its questions decisions.

In: the files of [datasets]. Out: `choose/decisions.jsonl` and the decisions in the record, as `choose` leaves them. What a file is
for fixes the split; where no file is given for it, validation and test are drawn from the training file by a salted hash of the
cluster. Nothing in training is the near-duplicate of a test question. What was decided once stays. Nobody's quota applies: whoever
made the files has chosen.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from conversations import decisions as kept
from conversations.editions import newest_edition
from conversations.errors import OperatorError, Refused
from conversations.exchange.arrivals import conversation_name, turn_name
from conversations.exchange.examples import enter_examples
from conversations.exchange.formats import MAX_LINE_BYTES
from conversations.exchange.line_facts import LineRejected
from conversations.exchange.line_files import check_readable, lines_of
from conversations.language import language_of
from conversations.messages import Author, ChatMessage, Consent, Json, Role, Split, TurnStatus, messages_hash
from conversations.prompt import SpokenTurn, messages_for_model
from conversations.redaction import Redactor, SecondPass
from conversations.store import Record
from distill.dataset.choosing.file_splits import Placing, place
from distill.dataset.choosing.lines import Example, read_example
from distill.dataset.choosing.taught import starting_release
from distill.dataset.second_pass import second_pass
from distill.rows import ChosenRow, LabelsRow, LoggedReply, MessageRow, OfferedRow, Task
from distill.run import Counts, Outcome, Run, Stage
from distill.settings import DatasetsTable, DistillSettings

BECAUSE = "data_set"
_TOLD_PROBLEMS = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """A line that was not taken."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class FromFiles:
    """What the files give. `examples` are by source id, `turns` the question and reply of each decision in the record."""

    rows: tuple[ChosenRow, ...]
    examples: Mapping[str, Example]
    turns: Mapping[str, tuple[str, str | None]]
    left_out: Mapping[str, int]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Question:
    """A question of an example, with what the file is for; an example of the training file is drawn for."""

    row: ChosenRow
    source_id: str
    customer_id: str | None
    fixed: Split | None
    turns: tuple[str, str | None]


def choose_from_files(run: Run) -> Outcome:
    """Enter the files' examples in the record and choose every question of theirs.

    Raises Refused when there is none, OperatorError for a file that cannot be read or a record that tests another task.
    """
    assert run.settings.datasets is not None
    _check_task(run.record, Task(run.settings.datasets.task))
    plan = plan_from_files(run.record, run.settings, second_pass=second_pass(run.settings.redaction))
    for problem in plan.problems[:_TOLD_PROBLEMS]:
        log.warning("%s:%d: %s; the line is left out", problem.file, problem.line, problem.reason)
    entered = enter_examples(run.record, [example.conversation for example in plan.examples.values()])
    allowed = {conversation_name(name) for name, each in entered.items() if not each.refused and each.consent is Consent.YES}
    rows = tuple(row for row in plan.rows if row.conversation_id in allowed)
    left_out = Counter(plan.left_out)
    if len(rows) < len(plan.rows):
        left_out["no_consent"] += len(plan.rows) - len(rows)
    if not rows:
        told = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items())) or "they hold no line"
        raise Refused(
            f"{run.settings.datasets.train}: no question is there to be taught (left out: {told}); mend the lines or name "
            "other files in [datasets]"
        )
    there = kept.put_decisions(run.record, (_decision(row, plan.turns[row.decision_id], run.run_id) for row in rows))
    left_out += Counter({"gone": len(rows) - len(there)})
    rows = tuple(row for row in rows if row.decision_id in there)
    run.write_rows(Stage.CHOOSE, "decisions.jsonl", rows)
    splits: dict[str, Json] = dict(sorted(Counter(row.split.value for row in rows).items()))
    problems: list[Json] = [
        {"file": each.file, "line": each.line, "reason": each.reason} for each in plan.problems[:_TOLD_PROBLEMS]
    ]
    rejected = sum(left_out.values())
    return Outcome(
        Counts(
            taken_in=len(rows) + rejected,
            accepted=len(rows),
            rejected=rejected,
            unscored=0,
            rejected_by_reason=dict(sorted(left_out.items())),
        ),
        {
            "by_split": splits,
            "by_reason": {BECAUSE: len(rows)},
            "clusters": len({row.cluster_id for row in rows}),
            "starts_from": starting_release(run.record, run.settings),
            "problems": problems,
        },
    )


def plan_from_files(record: Record, settings: DistillSettings, second_pass: SecondPass | None = None) -> FromFiles:
    """Return what a run would choose from the files, writing nothing."""
    assert settings.datasets is not None
    table = settings.datasets
    left_out: Counter[str] = Counter()
    problems: list[Problem] = []
    examples: dict[str, Example] = {}
    questions: dict[str, _Question] = {}
    for path, file_split in _files(table):
        for example in _examples(path, Task(table.task), file_split, problems):
            found = list(_questions(example, _fixed(table, file_split), settings, second_pass))
            if not found:
                left_out["no_question"] += 1
            for question in found:
                _take(questions, question, left_out)
            examples.setdefault(example.conversation.source_id, example)
    left_out["line_rejected"] += len(problems)
    placing = place(
        record,
        settings,
        [Placing(each.row.decision_id, _asked(each.row), each.row.conversation_id, each.customer_id, each.fixed, _prompt(each.row))
         for each in questions.values()],
    )  # fmt: skip
    left_out.update(placing.left_out.values())
    rows = [
        questions[name].row.model_copy(update={"split": split, "cluster_id": cluster_id})
        for name, (cluster_id, split) in sorted(placing.placed.items())
    ]
    limit = settings.choose.max_decisions
    if len(rows) > limit:
        left_out["over_limit"] += len(rows) - limit
    rows = rows[:limit]
    used = {questions[row.decision_id].source_id for row in rows}
    return FromFiles(
        tuple(rows),
        {name: example for name, example in examples.items() if name in used},
        {row.decision_id: questions[row.decision_id].turns for row in rows},
        {name: count for name, count in left_out.items() if count},
        tuple(problems),
    )


def _files(table: DatasetsTable) -> list[tuple[Path, Split]]:
    """Return the files, those that fix the most first: a line that stands in two is of the first."""
    given = [(table.test, Split.TEST), (table.validation, Split.VALIDATION), (table.train, Split.TRAIN)]
    found = [(path, split) for path, split in given if path is not None]
    for path, _ in found:
        check_readable(path)
    return found


def _fixed(table: DatasetsTable, file_split: Split) -> Split | None:
    """Return the split of a file's lines; None where they are drawn for."""
    if file_split is Split.TRAIN:
        return None
    return Split.TEST if table.test is None else file_split


def _examples(path: Path, task: Task, file_split: Split, problems: list[Problem]) -> Iterator[Example]:
    for line in lines_of(path, max_line_bytes=MAX_LINE_BYTES):
        if line.refused:
            problems.append(Problem(path.name, line.number, line.refused))
        elif line.content.strip():
            try:
                example = read_example(line.content, task)
            except LineRejected as rejection:
                problems.append(Problem(path.name, line.number, str(rejection)))
                continue
            labels: dict[str, Json] = {"task": task.value, "file_split": file_split.value}
            if example.other_answers:
                labels["other_answers"] = list(example.other_answers)
            yield replace(example, conversation=replace(example.conversation, labels=labels))


def _take(questions: dict[str, _Question], question: _Question, left_out: Counter[str]) -> None:
    """Take a question in, unless the same stands there already; one that stands in test and training is the test's."""
    known = questions.get(question.row.decision_id)
    if known is None:
        questions[question.row.decision_id] = question
    else:
        left_out["duplicate" if known.fixed is question.fixed else f"twin_of_{(known.fixed or Split.TRAIN).value}"] += 1


def _questions(
    example: Example, fixed: Split | None, settings: DistillSettings, second_pass: SecondPass | None
) -> Iterator[_Question]:
    """Yield every question of an example that an answer follows or that stands last, on what was said before it."""
    assert settings.datasets is not None
    said = example.conversation.messages
    spoken = [SpokenTurn(each.role, TurnStatus.COMPLETE, each.content, each.extra_json) for each in said]
    rules = settings.redaction.rules
    redacted, _ = messages_for_model(spoken, system_prompt=settings.prompt.system, rules=rules, second_pass=second_pass)
    shift = len(redacted) - len(said)
    conversation_id = conversation_name(example.conversation.source_id)
    depth = 0
    for at, message in enumerate(said):
        depth += message.role is Role.USER
        following = said[at + 1] if at + 1 < len(said) else None
        if message.role is not Role.USER or (following is not None and following.role is not Role.ASSISTANT):
            continue
        reply = redacted[at + 1 + shift] if following is not None else None
        question_turn = turn_name(conversation_id, at)
        yield _Question(
            row=ChosenRow(
                decision_id=f"decision_{hashlib.sha256(question_turn.encode()).hexdigest()[:24]}",
                conversation_id=conversation_id,
                cluster_id="",
                topic=example.topic,
                split=fixed or Split.TRAIN,
                chosen_because=BECAUSE,
                signals=(BECAUSE,),
                task=Task(settings.datasets.task),
                language=example.conversation.language or language_of(message.content),
                turn_depth=depth,
                labels=LabelsRow(
                    reference=reply.content if reply else "",
                    replies=tuple(Redactor(rules, second_pass).redact(each) for each in example.other_answers),
                ),
                offered=OfferedRow(tools_json=_redacted_tools(example, Redactor(rules, second_pass))),
                logged=LoggedReply(author=Author.IMPORTED, content=reply.content, extra_json=reply.extra_json) if reply else None,
                messages=tuple(MessageRow.of(each) for each in redacted[: at + shift + 1]),
            ),
            source_id=example.conversation.source_id,
            customer_id=example.conversation.customer_id,
            fixed=fixed,
            turns=(question_turn, turn_name(conversation_id, at + 1) if following is not None else None),
        )  # fmt: skip


def _redacted_tools(example: Example, redactor: Redactor) -> str:
    """Return the tools with personal data taken out of their texts; what else they say stays byte for byte where it can."""
    tools_json = example.conversation.tools_json
    redacted = redactor.redact(tools_json) if tools_json else ""
    try:
        json.loads(redacted or "null")
    except ValueError:
        return ""
    return redacted


def _asked(row: ChosenRow) -> str:
    return row.messages[-1].content


def _prompt(row: ChosenRow) -> str:
    return "\n".join(f"{each.role} {' '.join(each.content.casefold().split())}" for each in row.messages)


def _check_task(record: Record, task: Task) -> None:
    """Make sure, before the teacher is paid, that the record's test set is of this task."""
    tested = {json.loads(line).get("task", Task.CONVERSATION.value) for line in newest_edition(record).lines.values()}
    other = sorted(tested - {task.value})
    if other:
        raise OperatorError(
            f"{record.path}: its test set holds rows of {' and '.join(other)}, and [datasets] task is {task.value}; expected "
            "one task in a record; give this data set a record of its own ([record] path)"
        )


def _decision(row: ChosenRow, turns: tuple[str, str | None], run_id: str) -> kept.Decision:
    return kept.Decision(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        question_turn_id=turns[0],
        reply_turn_id=turns[1],
        cluster_id=row.cluster_id,
        split=row.split,
        topic=row.topic,
        history_hash=messages_hash([ChatMessage(each.role, each.content, each.extra_json) for each in row.messages]),
        chosen_by_run_id=run_id,
        chosen_because=row.chosen_because,
    )
