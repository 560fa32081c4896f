"""What the second pass promises: it finds more, off the network, before anything is taught, and never in the chat."""

import subprocess
import sys
from pathlib import Path

import pytest
from scripted_teacher import ScriptedTeacher
from small_run import QUESTIONS, conversation, small_run

from conversations.errors import OperatorError
from conversations.messages import Role, Split
from conversations.redaction import RedactionRules, Redactor, SecondPass
from conversations.settings import RedactionTable
from distill.cycle import check_before
from distill.dataset.second_pass import check_second_pass, second_pass
from distill.dataset.verifying.checks import reason_against
from distill.dataset.verifying.evidence import Evidence
from distill.rows import AnswerRow, ChosenRow, LabelsRow, MessageRow, read_rows
from distill.run import Stage
from distill.settings import VerifyTable

OFFLINE = """
import logging, socket, sys
tried = []
def refuse(*given, **named):
    tried.append(given)
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = refuse
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s")
from conversations.settings import RedactionTable
from distill.dataset.second_pass import second_pass
found = second_pass(RedactionTable())("I am SSN 219-09-9999, jo@example.com, at 10.0.0.7")
print(len(found), len(tried))
"""
NOT_LOADED = """
import sys
from pathlib import Path
import distill.cli, distill.cycle, distill.dataset.teaching.estimate, distill.dataset.choose, distill.dataset.verify
from conversations.settings import RedactionTable
from distill.dataset.second_pass import check_second_pass
check_second_pass(RedactionTable())
print(sorted(name for name in ("presidio_analyzer", "spacy", "torch") if name in sys.modules))
"""


def redacted(text: str, table: RedactionTable | None = None) -> str:
    table = table or RedactionTable()
    return Redactor(table.rules, second_pass(table)).redact(text)


def in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my SSN is 219-09-9999", "my SSN is <SSN_1>"),
        ("passport number 533380006", "passport number <PASSPORT_1>"),
        ("мій паспорт 533380006", "мій паспорт <PASSPORT_1>"),
        ("national insurance AB123456C", "national insurance <INSURANCENUMBER_1>"),
        ("jo@example.com, SSN 219-09-9999", "<EMAIL_1>, SSN <SSN_1>"),
    ],
)
def test_it_finds_what_the_chat_does_not_look_for(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "since version 4.12.7.1 it fails",
        "firmware 10.2.0.4",
        "order 533380006",
        "contact us about order 20459981",
        "order number 2125550123",
        "call me about order 2125550123",
        "замовлення 20459981 від 12.11.2024",
        "std::vector",
        "it cost 1,299.00 on 2024-11-24",
    ],
)
def test_it_takes_no_version_and_no_order_number(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.slow
def test_it_asks_nothing_of_the_network_and_logs_no_fault() -> None:
    done = in_a_process(OFFLINE)
    assert done.stdout.split() == ["3", "0"]
    assert "Traceback" not in done.stderr and "tldextract" not in done.stderr


def test_presidio_is_loaded_by_no_command_before_it_has_something_to_read() -> None:
    assert in_a_process(NOT_LOADED).stdout.strip() == "[]"


def test_what_only_it_finds_has_a_kind_that_the_chat_does_not_know() -> None:
    table = RedactionTable(patterns={"SSN": r"never-\d"})
    assert redacted("SSN 219-09-9999", table) == "SSN <SSN2_1>"


def test_names_are_found_by_a_spacy_model_where_one_is_named(tmp_path: Path) -> None:
    import spacy

    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Olena Petrenko"}])
    pipeline.to_disk(tmp_path / "model")
    table = RedactionTable(spacy_model=str(tmp_path / "model"))
    assert redacted("Olena Petrenko wrote from jo@example.com", table) == "<PERSON_1> wrote from <EMAIL_1>"
    assert redacted("Olena Petrenko wrote") == "Olena Petrenko wrote"


def test_a_model_that_is_not_installed_stops_a_cycle_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="xx_no_such_model"):
        check_second_pass(RedactionTable(spacy_model="xx_no_such_model"))
    named = '[redaction]\nspacy_model = "xx_no_such_model"\n'
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more=named) as small, pytest.raises(OperatorError, match="xx_no_such"):
        check_before(small.settings)


def test_what_is_chosen_and_what_the_teacher_is_sent_have_passed_both_passes(tmp_path: Path) -> None:
    told = "My SSN is 219-09-9999 and my mail is jo@example.com, why does the lamp glow coral?"
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        small.import_conversations([conversation(20, told)])
        run, _ = small.perform(Stage.CHOOSE, Stage.TEACH)
        chosen = (run.stage_folder(Stage.CHOOSE) / "decisions.jsonl").read_text(encoding="utf-8")
        sent = " ".join(str(seen.body) for seen in teacher.seen)
        for text in (chosen, sent):
            assert "219-09-9999" not in text and "jo@example.com" not in text
            assert "My SSN is <SSN_1> and my mail is <EMAIL_1>" in text
        assert len(list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))) == len(QUESTIONS) + 1


def evidence(text: str, further: SecondPass | None = None) -> Evidence:
    row = ChosenRow(
        decision_id="d", conversation_id="c", cluster_id="k", topic="", split=Split.TRAIN, chosen_because="all", labels=LabelsRow(),
        messages=(MessageRow(role=Role.USER, content="I am <SSN_1>, write to <EMAIL_1>"),),
    )  # fmt: skip
    answer = AnswerRow(
        decision_id="d", answer_id="a", teacher="big", text=text, finish_reason="stop", passages=(), request_hash="h",
        prompt_tokens=1, completion_tokens=1, cost_usd=0.0, latency_ms=1.0,
    )  # fmt: skip
    return Evidence(row, answer, None, VerifyTable(), RedactionRules(), further)


def test_an_answer_with_a_placeholder_that_the_chat_cannot_put_back_is_rejected() -> None:
    assert reason_against(evidence("Thank you, we write to <EMAIL_1>.")) == ("", "")
    assert reason_against(evidence("Thank you, we noted <SSN_1>.")) == ("placeholder_unknown_to_chat", "<SSN_1>")


def test_an_answer_in_which_only_the_second_pass_finds_something_personal_is_rejected() -> None:
    told = "It is SSN 219-09-9999."
    assert reason_against(evidence(told)) == ("", "")
    assert reason_against(evidence(told, second_pass(RedactionTable()))) == ("personal_data", "<SSN_1>")
