"""What an operator's word promises: it is kept as it will be learnt, never changed, and above every earlier word."""

import pytest

from conversations import audit, decisions, erasure, reviews, runs, turns
from conversations.corrections import correct, personal_in
from conversations.decisions import AnswerAuthor, Decision, NewAnswer
from conversations.errors import OperatorError
from conversations.messages import Author, Role, Split
from conversations.redaction import RedactionRules
from conversations.replies import TeacherReply, save_reply
from conversations.reviews import ReviewVerdict
from conversations.store import Record


@pytest.fixture
def decision_id(record: Record) -> str:
    talk = turns.create_conversation(record, customer_id="eve", channel="chat").conversation_id
    turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "I am eve@example.org")
    turns.append_message(record, talk, Role.ASSISTANT, Author.STUDENT, "And the new address?")
    asked = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "eve@example.com from today on")
    runs.begin_run(record, run_id="run-1", path="run", settings_digest="x")
    made = Decision("decision-1", talk, asked.turn_id, None, "c", Split.TRAIN, "t", "h", "run-1", "coverage")
    decisions.put_decisions(record, [made])
    return "decision-1"


def test_a_correction_has_the_placeholders_of_its_conversation_and_versions_that_stay(
    record: Record, decision_id: str
) -> None:
    first = correct(record, decision_id, " We write to eve@example.com now. ", operator="ann", rules=RedactionRules())
    assert first.content == "We write to <EMAIL_2> now."
    second = correct(record, decision_id, "Done, eve@example.org is gone.", operator="ann", rules=RedactionRules())
    assert (second.version, second.content) == (2, "Done, <EMAIL_1> is gone.")
    assert [each.version for each in decisions.answers(record, decision_id)] == [2, 1]
    assert correct(record, decision_id, "Another.", operator="bob", rules=RedactionRules()).version == 1
    assert {each.author for each in decisions.answers(record, decision_id)} == {AnswerAuthor.OPERATOR}


@pytest.mark.parametrize("text", ["", " \n ", "a\x00b"])
def test_a_correction_that_says_nothing_or_cannot_be_kept_is_refused(record: Record, decision_id: str, text: str) -> None:
    with pytest.raises(OperatorError):
        correct(record, decision_id, text, operator="ann", rules=RedactionRules())
    with pytest.raises(OperatorError, match="no decision 'decision-9'"):
        correct(record, "decision-9", "text", operator="ann", rules=RedactionRules())
    assert decisions.answers(record, decision_id) == []


def test_the_newest_review_counts_and_none_is_lost(record: Record, decision_id: str) -> None:
    given = decisions.add_answer(record, decision_id, author=AnswerAuthor.TEACHER, author_name="big", content="Yes.")
    reviews.review(record, given.answer_id, ReviewVerdict.APPROVED, reviewed_by="ann")
    reviews.review(record, given.answer_id, ReviewVerdict.REJECTED, reviewed_by="bob", note="no")
    found = reviews.newest(record, decision_id)[given.answer_id]
    assert (found.verdict, found.reviewed_by, found.note) == (ReviewVerdict.REJECTED, "bob", "no")
    assert reviews.newest(record) == reviews.newest(record, decision_id)
    assert [row["action"] for row in record.query("SELECT action FROM audit ORDER BY audit_seq")][-2:] == [
        "answer approved",
        "answer rejected",
    ]
    # What an erasure takes with the review must not stand in the audit, which keeps everything.
    assert [each.detail_json for each in audit.entries_of(record, given.answer_id, "answer rejected")] == [
        f'{{"review_id":"{found.review_id}"}}'
    ]
    with pytest.raises(OperatorError, match="no answer 'answer-9'"):
        reviews.review(record, "answer-9", ReviewVerdict.APPROVED, reviewed_by="ann")
    with record.snapshot() as now:
        assert list(audit.broken_entries(now)) == []


def test_what_the_customer_never_said_stays_and_is_told(record: Record, decision_id: str) -> None:
    rules = RedactionRules()
    written = correct(
        record, decision_id, "Not eve@example.org: write to help@ours.example, <EMAIL_2>.", operator="ann", rules=rules
    )
    assert written.content == "Not <EMAIL_1>: write to help@ours.example, <EMAIL_2>."
    assert personal_in(written, rules) == ("help@ours.example",)


def test_the_last_word_wins_also_where_an_operator_goes_back_to_an_earlier_one(record: Record, decision_id: str) -> None:
    def say(operator: str, text: str) -> str:
        return correct(record, decision_id, text, operator=operator, rules=RedactionRules()).answer_id

    def newest() -> str:
        return decisions.newest_answers(record, AnswerAuthor.OPERATOR)[decision_id].content

    first = say("ann", "Unplug it.")
    assert say("ann", "Unplug it.") == first
    say("bob", "Never unplug it.")
    assert newest() == "Never unplug it."
    again = say("ann", "Unplug it.")
    assert again != first and newest() == "Unplug it."
    reviews.review(record, again, ReviewVerdict.REJECTED, reviewed_by="bob")
    assert newest() == "Never unplug it."
    assert say("ann", "Unplug it.") not in (first, again) and newest() == "Unplug it."


def test_only_approved_answers_of_others_than_students_are_approved_and_the_newest_word_is_first(
    record: Record, decision_id: str
) -> None:
    given = {
        kind: decisions.add_answer(record, decision_id, author=kind, author_name="x", content=kind).answer_id
        for kind in (AnswerAuthor.TEACHER, AnswerAuthor.STUDENT, AnswerAuthor.LOGGED)
    }
    for answer_id in given.values():
        reviews.review(record, answer_id, ReviewVerdict.APPROVED, reviewed_by="ann")
    found = decisions.newest_approved(record)[decision_id]
    assert [each.author for each in found] == [AnswerAuthor.LOGGED, AnswerAuthor.TEACHER]
    reviews.review(record, given[AnswerAuthor.LOGGED], ReviewVerdict.REJECTED, reviewed_by="ann")
    assert [each.author for each in decisions.newest_approved(record)[decision_id]] == [AnswerAuthor.TEACHER]


def test_a_person_erased_while_a_run_goes_on_costs_it_no_other_answer(record: Record, decision_id: str) -> None:
    talk = turns.create_conversation(record, customer_id="jo", channel="chat").conversation_id
    questions = [
        turns.append_message(record, talk, Role.USER, Author.CUSTOMER, words).turn_id for words in ("And I?", "And now?")
    ]
    gone = decisions.decision(record, decision_id)
    chosen = [
        Decision(f"decision-{number}", talk, question, None, "d", Split.TRAIN, "t", "h", "run-1", "coverage")
        for number, question in enumerate(questions, start=2)
    ]
    decisions.put_decisions(record, chosen[:1])
    save_reply(record, TeacherReply("sha256:1", decision_id, "big", "{}", 1, 1, 0.0, 1.0))
    erasure.erase_customer(record, "eve", actor="ann")
    assert decisions.put_decisions(record, [gone, *chosen]) == {"decision-2", "decision-3"}
    assert [each.decision_id for each in decisions.decisions(record)] == ["decision-2", "decision-3"]
    # A reply serves every decision with the same history, and goes with the one that it was asked for.
    said = [
        NewAnswer(name, AnswerAuthor.TEACHER, "big", "Yes.", request_hash="sha256:1")
        for name in (decision_id, "decision-2", "decision-3")
    ]
    entered = decisions.add_answers(record, said, run_id="run-1")
    assert [each.decision_id for each in entered] == ["decision-2", "decision-3"]
    with pytest.raises(OperatorError, match="no decision 'decision-1'"):
        decisions.add_answer(record, decision_id, author=AnswerAuthor.STUDENT, author_name="small", content="Yes.")
