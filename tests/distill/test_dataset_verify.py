"""What verify promises: no planted defect is learnt, good answers are kept, and operators have the last word."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from planted_answers import HANDBOOK, NO_REFUSALS, PROMPT, REFUSALS, TOOLS, Planted, defects, good_answers, tool_call
from small_run import SmallRun, small_run

from conversations.decisions import AnswerAuthor, Verdict
from conversations.messages import Author, Role, Split
from conversations.redaction import RedactionRules
from distill.cycle import perform_stage
from distill.dataset.handbook.articles import Handbook
from distill.dataset.verifying.checks import accepted_as, reason_against
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.knowledge import Knowledge
from distill.dataset.verifying.reasons import CannotSay, Unsaid
from distill.dataset.verifying.refusals import declines, refusal_in
from distill.rows import AnswerRow, ChosenRow, LabelsRow, LoggedReply, MessageRow, OfferedRow, Task, VerdictRow, read_rows
from distill.run import Counts, Manifest, Outcome, Run, Stage, new_run
from distill.settings import VerifyTable


def chosen(
    name: str, question: str, *, topic: str = "", system: str = "", task: Task = Task.CONVERSATION, **more: object
) -> ChosenRow:
    head = [MessageRow(role=Role.SYSTEM, content=system)] if system else []
    return ChosenRow.model_validate(
        {
            "decision_id": name, "conversation_id": f"c-{name}", "cluster_id": f"k-{name}", "topic": topic, "split": Split.TRAIN,
            "chosen_because": "coverage", "labels": LabelsRow(), "task": task,
            "messages": (*head, MessageRow(role=Role.USER, content=question)), **more,
        }
    )  # fmt: skip


def answer_row(name: str, text: str, *, passages: Sequence[str] = (), **more: object) -> AnswerRow:
    return AnswerRow.model_validate(
        {
            "decision_id": name, "answer_id": f"a-{name}", "teacher": "big", "text": text, "finish_reason": "stop",
            "passages": passages, "request_hash": "h", "prompt_tokens": 1, "completion_tokens": 1, "cost_usd": 0.0,
            "latency_ms": 1.0, **more,
        }
    )  # fmt: skip


def evidence(
    text: str, *, question: str = "It blinks <EMAIL_1> since 9 o'clock",
    allowed: str | None = "Wait 12 minutes, it costs 6.35 (LT-38).", table: VerifyTable | None = None,
    row: ChosenRow | None = None, **more: object,
) -> Evidence:  # fmt: skip
    told = "You are the support assistant of the good company Tidewell in town."
    known = None if allowed is None else Knowledge((allowed,))
    return Evidence(
        row or chosen("d", question, system=told),
        answer_row("d", text, **more),
        known,
        table or VerifyTable(),
        RedactionRules(),
    )


@pytest.fixture(scope="module")
def handbook() -> Handbook:
    return Handbook.load(HANDBOOK)


def verified(run: Run, rows: Sequence[ChosenRow], answers: Sequence[AnswerRow]) -> tuple[Manifest, dict[str, VerdictRow]]:
    """Let verify loose on rows as choose and teach would have left them."""

    def left(stage: Stage, name: str, written: Sequence[ChosenRow] | Sequence[AnswerRow]) -> None:
        def work(run: Run) -> Outcome:
            run.write_rows(stage, name, written)
            return Outcome(
                Counts(taken_in=len(written), accepted=len(written), rejected=0, unscored=0, rejected_by_reason={})
            )

        run.perform(stage, work)

    # Of a conversation that the record does not have nothing is written.
    talk = run.record.query("SELECT conversation_id FROM conversations LIMIT 1")[0]["conversation_id"]
    left(Stage.CHOOSE, "decisions.jsonl", [row.model_copy(update={"conversation_id": talk}) for row in rows])
    left(Stage.TEACH, "answers.jsonl", answers)
    manifest = perform_stage(run, Stage.VERIFY)
    return manifest, {each.decision_id: each for each in read_rows(run.folder / "verify/verdicts.jsonl", VerdictRow)}


def of_planted(planted: Sequence[Planted], handbook: Handbook) -> tuple[list[ChosenRow], list[AnswerRow]]:
    rows, answers = [], []
    for place, each in enumerate(planted):
        offered = OfferedRow(tools_json=each.tools_json)
        rows.append(chosen(f"d{place:04d}", each.question, topic=each.topic, system=PROMPT, offered=offered))
        cited = [passage.passage_hash for passage in handbook.by_id[each.cites].passages] if each.cites else []
        more = {"finish_reason": each.finish_reason, "extra_json": each.extra_json}
        answers.append(answer_row(f"d{place:04d}", each.text, passages=cited, **more))
    return rows, answers


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallRun]:
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more="[verify]\nmax_declined_share = 1.0") as made:
        text = made.settings_file.read_text(encoding="utf-8")
        made.settings_file.write_text(text.replace('path = "handbook"', f'path = "{HANDBOOK}"'), encoding="utf-8")
        yield made


@pytest.mark.slow
def test_no_planted_defect_is_accepted_each_has_its_code_and_good_answers_are_kept(
    small: SmallRun, handbook: Handbook
) -> None:
    good, bad = good_answers(handbook), list(defects(handbook))
    assert len(good) == 200 and set(Counter(each.reason for each in bad).values()) == {20}
    rows, answers = of_planted([*good, *bad], handbook)
    with new_run(small.record, small.settings) as run:
        manifest, verdicts = verified(run, rows, answers)
    ordered = [verdicts[row.decision_id] for row in rows]
    missed = [
        (each.reason, verdict.reason, verdict.detail, each.text)
        for each, verdict in zip(bad, ordered[len(good) :], strict=True)
        if (verdict.verdict, verdict.reason) != (Verdict.REJECTED, each.reason)
    ]
    lost = [
        (verdict.reason, verdict.detail, each.text)
        for each, verdict in zip(good, ordered, strict=False)
        if verdict.verdict is not Verdict.ACCEPTED
    ]
    assert not missed, f"{len(missed)} of {len(bad)}: {missed[:10]}"
    assert len(lost) <= len(good) * 0.05, lost
    assert manifest.counts.taken_in == len(rows) == manifest.counts.accepted + manifest.counts.rejected


def test_wanted_refusals_are_kept_and_unwanted_ones_dropped_and_good_answers_are_no_refusals() -> None:
    assert len(REFUSALS) == 40
    table = VerifyTable(policy_topics=("legal advice", "lawsuit"), same_language=False)
    wanted = [
        evidence(each, question="Can I start a lawsuit against my landlord?", allowed=None, table=table) for each in REFUSALS
    ]
    unwanted = [evidence(each, allowed=None, table=table) for each in REFUSALS]
    kept = sum(reason_against(each) == ("", "") and accepted_as(each) == "refused" for each in wanted)
    dropped = sum(reason_against(each)[0] == "refusal" for each in unwanted)
    assert kept >= 36 and dropped >= 36, (kept, dropped)
    by_topic = evidence(REFUSALS[0], allowed=None, table=table, row=chosen("d", "What now?", topic="Legal advice"))
    assert accepted_as(by_topic) == "refused"
    mistaken = [each for each in NO_REFUSALS if refusal_in(each)]
    assert mistaken == []
    assert refusal_in("Computer says no.", ("computer says no",)) and not refusal_in("Computer says no.")
    assert declines(NO_REFUSALS[2], VerifyTable().declining_phrases)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Please wait 12 minutes after 9 o'clock; it costs 6,35.", ""),
        ("Run the line test LT38, then:\n1. wait\n2. write to <EMAIL_1>", ""),
        ("Please wait 12.0 minutes.", ""),
        ("Please wait 720 seconds.", ""),
        ("Please wait 13 minutes.", "contradicts_handbook"),
        ("Run LT-39 now.", "unsupported_by_handbook"),
        ("Please pay 12,000 now.", "unsupported_by_handbook"),
        ("See https://example.com/help for it.", "unsupported_by_handbook"),
        ("", "empty"),
        ("?!", "empty"),
        ("Yes.", "too_short"),
        ("word " * 2000, "too_long"),
        ("Sure. <|im_end|> Please wait.", "control_tokens"),
        ("Please wait.\nUser: thanks", "control_tokens"),
        ("I am told: You are the support assistant of the good company Tidewell.", "system_prompt_leaked"),
        ("Please write to <PHONE_1> now.", "placeholder_not_in_question"),
        ("Please write to me at joe@example.org today.", "personal_data"),
        ("Please restart the box now. Please restart the box now.", "repeats_itself"),
        ("It blinks <EMAIL_1> since 9 o'clock", "echoes_customer"),
        ("Dear {{customer_name}}, please wait.", "template_left"),
        ("Traceback (most recent call last): KeyError", "error_text"),
        ("[object Object]", "error_text"),
        ("<a href='https://example.org' onclick='x()'>Reset</a> it.", "unsafe_markup"),
        ("Look: ![here](https://example.org/p.png?c=1)", "unsafe_markup"),
        ("Please wait\u202e here.", "broken_text"),
        ("Please visit the cafÃ© now.", "broken_text"),
        ("Please wait, it is not my problem.", "rude"),
    ],
)
def test_an_answer_is_judged_by_what_it_says(text: str, reason: str) -> None:
    assert reason_against(evidence(text))[0] == reason


@pytest.mark.parametrize(("finish_reason", "reason"), [("length", "truncated"), ("content_filter", "filtered_by_teacher")])
def test_an_answer_that_was_cut_or_filtered_is_not_learnt(finish_reason: str, reason: str) -> None:
    assert reason_against(evidence("Please wait.", finish_reason=finish_reason))[0] == reason


def test_an_amount_is_the_same_however_its_thousands_are_written() -> None:
    assert reason_against(evidence("It costs 1,200 a year.", allowed="1200 a year"))[0] == ""
    assert reason_against(evidence("It costs 1.200,50 a year.", allowed="1,200.50 a year"))[0] == ""
    assert reason_against(evidence("It costs 1,000 a year.", allowed="1 a year"))[0] == "unsupported_by_handbook"


@pytest.mark.parametrize(
    ("handbook", "answer", "contradicts"),
    [
        ("You may open the box yourself.", "You may not open the box yourself.", True),
        ("Never unplug the box during an update.", "Unplug the box during an update.", True),
        ("You can't cancel by phone any more.", "You can cancel by phone any more.", True),
        ("Send the form before the move to us.", "Send the form after the move to us.", True),
        ("If you do not pay, we close the line.", "We close the line.", False),
        ("Can I cancel by phone at night?", "You cannot cancel by phone at night.", False),
        ("Do not open the box.", "Please don't open the box.", False),
        ("Ask the office to send a form.", "Do not forget to ask the office to send a form.", False),
        ("The visit takes a day.", "The visit takes 24 hours.", False),
        ("The visit takes a fortnight.", "The visit takes two weeks.", False),
        ("A code is valid for 11 minutes.", "A code is valid for 11 hours.", True),
    ],
)
def test_a_handbook_is_contradicted_by_another_amount_or_by_the_reverse_of_its_own_sentence(
    handbook: str, answer: str, contradicts: bool
) -> None:
    assert (reason_against(evidence(answer, allowed=handbook))[0] == "contradicts_handbook") is contradicts


@pytest.mark.parametrize(
    ("offered", "choice", "extra", "reason"),
    [
        (TOOLS, "", tool_call(), ""),
        (TOOLS, '"auto"', "", ""),
        (TOOLS, '"none"', tool_call(), "tool_call_invalid"),
        (TOOLS, '"required"', "", "tool_call_invalid"),
        (TOOLS, '{"type": "function", "function": {"name": "book_visit"}}', tool_call(), ""),
        (TOOLS, '{"type": "function", "function": {"name": "other"}}', tool_call(), "tool_call_invalid"),
        (TOOLS, "", tool_call(arguments='{"day": "sunday"}'), "tool_call_invalid"),
        ("", "", tool_call(), "tool_call_invalid"),
    ],
)
def test_a_tool_call_is_valid_when_it_was_offered_allowed_and_fits_its_schema(
    offered: str, choice: str, extra: str, reason: str
) -> None:
    row = chosen("d", "Please book a visit", offered=OfferedRow(tools_json=offered, tool_choice_json=choice))
    assert reason_against(evidence("Booked it.", row=row, extra_json=extra))[0] == reason


def test_a_broken_schema_of_a_tool_leaves_the_answer_unscored_and_fetches_nothing() -> None:
    for schema in ({"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/schema.json"}):
        tools = json.dumps([{"type": "function", "function": {"name": "book_visit", "parameters": schema}}])
        row = chosen("d", "Please book a visit", offered=OfferedRow(tools_json=tools))
        with pytest.raises(CannotSay) as raised:
            reason_against(evidence("", row=row, extra_json=tool_call()))
        assert raised.value.reason is Unsaid.TOOL_SCHEMA_BROKEN


@pytest.mark.parametrize(
    ("task", "reference", "text", "reason"),
    [
        (Task.NLI, "neutral", "Neutral.", ""),
        (Task.NLI, "neutral", "entailment", "contradicts_reference"),
        (Task.NLI, "", "Entailment", ""),
        (Task.NLI, "", "It is rather neutral, I think", "not_a_label"),
        (Task.MATH, "So 6 + 6.\n#### 12", "Add them: 6 + 6 = 12. The answer is 12.", ""),
        (Task.MATH, "#### 1,200", "That makes $1200", ""),
        (Task.MATH, "#### 12", "The answer is 13.", "contradicts_reference"),
        (Task.MATH, "#### 12", "I have no number", "contradicts_reference"),
        (Task.QA, "Paris", "Paris", ""),
        (
            Task.SUMMARIZATION,
            "",
            "It was long and there were many more words in it than anybody needs to say this.",
            "too_long",
        ),
        (Task.SUMMARIZATION, "", "It was long.", ""),
    ],
)
def test_answers_to_the_tasks_of_files_are_labels_and_right_results(
    task: Task, reference: str, text: str, reason: str
) -> None:
    row = chosen(
        "d", "A source of some ten words, more or less, stands here.", task=task, labels=LabelsRow(reference=reference)
    )
    assert reason_against(evidence(text, row=row, allowed=None))[0] == reason


def test_what_operators_say_overrides_every_rule_but_those_that_protect_people(small: SmallRun, handbook: Handbook) -> None:
    from conversations import decisions, reviews

    with new_run(small.record, small.settings) as run:
        perform_stage(run, Stage.CHOOSE)
        rows = list(read_rows(run.folder / "choose/decisions.jsonl", ChosenRow))
        texts = [
            "Wait 99 minutes.",
            "Wait 99 minutes.",
            "Please push the plug in.",
            "Wait 99 minutes.",
            "Write to joe@example.org please.",
        ]
        entered = [
            decisions.add_answer(
                run.record, row.decision_id, author=AnswerAuthor.OPERATOR if place >= 3 else AnswerAuthor.TEACHER,
                author_name="olga", content=text,
            )
            for place, (row, text) in enumerate(zip(rows, texts, strict=False))
        ]  # fmt: skip
        reviews.review(run.record, entered[1].answer_id, reviews.ReviewVerdict.REJECTED, reviewed_by="olga")
        reviews.review(run.record, entered[1].answer_id, reviews.ReviewVerdict.APPROVED, reviewed_by="olga")
        reviews.review(run.record, entered[2].answer_id, reviews.ReviewVerdict.REJECTED, reviewed_by="olga", note="too curt")
        answers = [answer_row(e.decision_id, e.content, answer_id=e.answer_id, author=e.author) for e in entered]

        def work(run: Run) -> Outcome:
            run.write_rows(Stage.TEACH, "answers.jsonl", answers)
            return Outcome(Counts(taken_in=5, accepted=5, rejected=0, unscored=0, rejected_by_reason={}))

        run.perform(Stage.TEACH, work)
        manifest = perform_stage(run, Stage.VERIFY)
        found = [each for each in read_rows(run.folder / "verify/verdicts.jsonl", VerdictRow) if each.answer_id]
        by_answer = {each.answer_id: (each.verdict, each.reason, each.by) for each in found}
        assert [by_answer[each.answer_id] for each in entered] == [
            (Verdict.REJECTED, "contradicts_handbook", "rules"),
            (Verdict.ACCEPTED, "by_operator", "operator"),
            (Verdict.REJECTED, "rejected_by_operator", "operator"),
            (Verdict.ACCEPTED, "by_operator", "operator"),
            (Verdict.UNSCORED, "personal_data", "operator"),
        ]
        assert manifest.details["unscored_by_reason"] == {"no_answer": len(rows) - 5, "personal_data": 1}
        assert reviews.newest(run.record)[entered[2].answer_id].note == "too curt"
        assert decisions.answers(run.record, entered[2].decision_id)[0].verdict is Verdict.REJECTED


JUDGE = '\n[teachers.other]\nbase_url = "{base_url}"\nmodel = "other-1"\nlicence_allows_training = "no"\n[judge]\nteacher = "other"\n'


@pytest.mark.parametrize(
    ("prefers", "expected"),
    [("teacher", ("accepted", "answered")), ("logged", ("rejected", "worse_than_logged")), ("A", ("accepted", "answered")),
     ("silent", ("unscored", "judge_did_not_say"))],
)  # fmt: skip
def test_an_answer_worse_than_what_was_logged_is_rejected_and_without_the_judges_word_unscored(
    tmp_path: Path, prefers: str, expected: tuple[str, str]
) -> None:
    from scripted_teacher import Act, ScriptedTeacher

    texts = {"teacher": "Please push the plug in.", "logged": "Push the plug in until it clicks."}

    def script(question: str, before: int) -> Act:
        shown = json.loads(question)
        side = prefers if prefers == "A" else next((s for s in "AB" if shown[f"answer_{s}"] == texts.get(prefers)), "")
        return Act(json.dumps({"better": side}) if side else "I like both!")

    with (
        ScriptedTeacher(script) as teacher,
        small_run(tmp_path, "http://127.0.0.1:9/v1", more=JUDGE.format(base_url=teacher.base_url)) as small,
        new_run(small.record, small.settings) as run,
    ):
        logged = LoggedReply(author=Author.OPERATOR, content=texts["logged"])
        rows = [
            chosen("d1", "My light glows coral", logged=logged),
            chosen("d2", "My light glows coral", logged=logged, split=Split.TEST),
            chosen("d3", "My light glows coral", logged=LoggedReply(author=Author.STUDENT, content=texts["logged"])),
            chosen("d4", "My light glows coral", logged=logged),
        ]
        answers = [answer_row(row.decision_id, texts["teacher"]) for row in rows[:3]]
        answers.append(answer_row("d4", texts["logged"], author=AnswerAuthor.LOGGED))
        manifest, verdicts = verified(run, rows, answers)
    assert (verdicts["d1"].verdict.value, verdicts["d1"].reason) == expected
    assert all(verdicts[name].verdict is Verdict.ACCEPTED for name in ("d2", "d3", "d4"))
    judged = manifest.details["judge"]
    assert isinstance(judged, dict) and judged["comparisons"] == 1 and len(teacher.seen) == 2


def test_of_a_customer_who_is_erased_while_the_judge_thinks_a_number_is_left_and_no_row(tmp_path: Path) -> None:
    from scripted_teacher import Act, ScriptedTeacher
    from small_run import QUESTIONS

    from conversations import erasure

    def judge(question: str, before: int) -> Act:
        erasure.erase_customer(small.record, "customer-0", actor="test")
        return Act('{"better": "both"}')

    def script(question: str, before: int) -> Act:
        return Act("Wait 99 minutes." if question == QUESTIONS[0] else "Please push the plug in.")

    with (
        ScriptedTeacher(script) as teacher,
        ScriptedTeacher(judge) as judging,
        small_run(tmp_path, teacher.base_url, more=JUDGE.format(base_url=judging.base_url)) as small,
    ):
        run, (chosen_then, _, manifest) = small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY)
    assert judging.seen
    text = (run.folder / "verify/verdicts.jsonl").read_text(encoding="utf-8")
    assert manifest.counts.taken_in == chosen_then.counts.accepted == len(text.splitlines()) + 1
    assert manifest.counts.rejected_by_reason["erased"] == 1
    assert "99 minutes" not in text and "contradicts_handbook" not in text


def test_every_sentence_must_be_supported_where_the_settings_ask_for_it(tmp_path: Path) -> None:
    more = '[verify]\ngrounding = "sentences"\n'
    with (
        small_run(tmp_path, "http://127.0.0.1:9/v1", more=more) as small,
        new_run(small.record, small.settings) as run,
    ):
        texts = [
            "Coral light: please wait 12 minutes.",
            "The coral lamp means that you should be patient for 12 minutes. Is there anything else I can help with?",
            "Please wait 12 minutes. The ocean liners of the company sail to Lisbon on every Tuesday morning.",
            "I don't know that, so I'm passing this to a colleague who sails ocean liners.",
        ]
        rows = [chosen(f"d{place}", "Why does the lamp on my box glow coral?") for place in range(len(texts))]
        _, verdicts = verified(run, rows, [answer_row(f"d{place}", text) for place, text in enumerate(texts)])
    assert [verdicts[row.decision_id].reason for row in rows] == [
        "answered",
        "answered",
        "unsupported_by_handbook",
        "declined",
    ]


def test_an_answer_costs_little_time(handbook: Handbook) -> None:
    text = handbook.by_id["late-fee"].passages[0].text
    began = time.perf_counter()
    for place in range(200):
        reason_against(evidence(f"Case {chr(97 + place % 26)}: {text}", allowed=text))
    assert (time.perf_counter() - began) / 200 < 0.02
