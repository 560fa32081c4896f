"""What reaches a teacher, in which order, and what makes it another request."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, small_run
from taught_run import chosen, talk, teach_in

from conversations.messages import ChatMessage, Role
from distill.dataset.handbook.articles import Passage
from distill.dataset.teaching.requests import make_request
from distill.rows import ChosenRow, MessageRow, OfferedRow
from distill.settings import TeacherTable

# Keys in an order that no sorting gives, accents and an emoji.
TOOLS = '[{"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {"zip": {}, "é🙂": {}}}}}]'
OFFERED = OfferedRow(
    tools_json=TOOLS, tool_choice_json='{"type": "function", "function": {"name": "track"}}',
    response_format_json='{"type": "json_schema", "json_schema": {"name": "z", "schema": {"b": 1, "a": 2}}}',
)  # fmt: skip
TABLE = TeacherTable(base_url="http://127.0.0.1:9/v1", model="big-1", licence_allows_training="yes")
MESSAGES = (ChatMessage(Role.SYSTEM, "You help."), ChatMessage(Role.USER, "Why?", '{"name": "jo"}'))


def test_history_tools_choice_and_format_reach_the_teacher_byte_for_byte(tmp_path: Path) -> None:
    calls = '{"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "track", "arguments": "{\\"b\\": 1, \\"a\\":2}"}}]}'
    history = (
        MessageRow(role=Role.SYSTEM, content="Be  brief.\n"), MessageRow(role=Role.USER, content="Wo ist es? 🙂"),
        MessageRow(role=Role.ASSISTANT, content="", extra_json=calls),
        MessageRow(role=Role.TOOL, content='{"at": "sea"}', extra_json='{"tool_call_id": "c1"}'),
        MessageRow(role=Role.USER, content="And now?"),
    )  # fmt: skip
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        run = chosen(small, lambda row: row.model_copy(update={"offered": OFFERED, "messages": history}))
        manifest, _ = teach_in(small, run)
        # All eight are the same request now, and are paid once.
        assert len(teacher.seen) == 1 and manifest.counts.accepted == len(QUESTIONS)
        sent = teacher.seen[0].raw.decode()
    for logged in (TOOLS, OFFERED.tool_choice_json, OFFERED.response_format_json):
        assert json.dumps(json.loads(logged), ensure_ascii=False, separators=(",", ":")) in sent
    messages = json.loads(sent)["messages"]
    assert [(each["role"], each["content"]) for each in messages] == [(row.role, row.content) for row in history]
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == '{"b": 1, "a":2}'
    assert messages[3]["tool_call_id"] == "c1"


def test_instruction_and_passages_stand_behind_the_system_prompt_for_the_teacher_alone() -> None:
    passage = Passage(passage_hash="p", article_id="a", title="Coral", text="Wait 12 minutes.")
    request = make_request("d", MESSAGES, name="big", table=TABLE, instruction="Be kind.", passages=[passage])
    sent = json.loads(request.body)["messages"]
    assert [each["role"] for each in sent] == ["system", "system", "system", "user"]
    assert sent[1]["content"] == "Be kind." and "Wait 12 minutes." in sent[2]["content"]
    assert request.passages == ("p",)


def test_only_what_decides_the_answer_makes_another_request() -> None:
    def name(table: TeacherTable = TABLE, messages: tuple[ChatMessage, ...] = MESSAGES, **more: object) -> str:
        return make_request("d", messages, name="big", table=table, **more).request_hash  # type: ignore[arg-type]

    def other(**changed: object) -> TeacherTable:
        return TABLE.model_copy(update=changed)

    passage = Passage(passage_hash="p", article_id="a", title="Coral", text="Wait 12 minutes.")
    different = [
        name(), name(other(temperature=0.5)), name(other(omit_temperature=True)), name(other(model="big-2")),
        name(other(base_url="http://127.0.0.1:10/v1")), name(other(seed=7)), name(other(top_logprobs=3)),
        name(other(max_answer_tokens=401)), name(other(limit_parameter="max_completion_tokens")), name(limit_factor=2),
        name(messages=(ChatMessage(Role.SYSTEM, "You help!"), MESSAGES[1])),
        name(messages=(MESSAGES[0], replace(MESSAGES[1], extra_json=""))),
        name(offered=OFFERED), name(offered=OfferedRow(tools_json=TOOLS)),
        name(offered=OfferedRow(tools_json=TOOLS.replace('"zip": {}, "é🙂": {}', '"é🙂": {}, "zip": {}'))),
        name(instruction="Be kind."), name(passages=[passage]), name(other(kind="handbook"), handbook_digest="1"),
        name(other(kind="handbook"), handbook_digest="2"),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    same = other(
        concurrency=64, prompt_usd_per_million=9.0, completion_usd_per_million=9.0, timeout_seconds=1.0, requests_per_minute=5,
        tokens_per_minute=5, batch_price_share=0.1, licence_allows_training="unknown", api_key_variable="KEY", family="x",
    )  # fmt: skip
    assert name(same) == name(handbook_digest="1") == name()
    assert make_request("another", MESSAGES, name="small", table=TABLE).request_hash == name()


@pytest.mark.parametrize("change", ["temperature = 0.5", "max_answer_tokens = 500", "seed = 3"])
def test_changed_settings_miss_the_replies_paid_for_before(tmp_path: Path, change: str) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        teach_in(small, chosen(small))
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(text.replace("concurrency = 2", "concurrency = 5"), encoding="utf-8")
        teach_in(small, chosen(small))
        assert len(teacher.seen) == len(QUESTIONS)
        small.settings_file.write_text(text.replace("concurrency = 2", change), encoding="utf-8")
        teach_in(small, chosen(small))
        assert len(teacher.seen) == 2 * len(QUESTIONS)


def test_a_conversation_is_asked_in_order_and_one_at_a_time_while_others_go_beside_it(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        return Act(f"About {question}", seconds=0.03)

    talks = [[f"This is question number {turn} about box number {place} again" for turn in range(4)] for place in range(6)]
    with (
        ScriptedTeacher(script) as teacher,
        small_run(tmp_path, teacher.base_url, teacher="handbook_passages = 0") as small,
    ):
        small.settings_file.write_text(
            small.settings_file.read_text(encoding="utf-8").replace("concurrency = 2", "concurrency = 6"), encoding="utf-8"
        )
        small.import_conversations([talk(place, questions) for place, questions in enumerate(talks)])

        def with_depth(row: ChosenRow) -> ChosenRow:
            return row.model_copy(update={"turn_depth": sum(each.role is Role.USER for each in row.messages)})

        teach_in(small, chosen(small, with_depth))
        ended = dict(teacher.answered)
        by_talk: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
        for seen in teacher.seen:
            if "about box number" in seen.question:
                asked = sum(each["role"] == "user" for each in seen.body["messages"])
                by_talk[seen.question.partition("about")[2]].append((asked, seen.arrived_at, ended[seen.question]))
    assert len(by_talk) == 6 and teacher.most_under_way >= 3
    for turns in by_talk.values():
        assert [asked for asked, _, _ in turns] == sorted(asked for asked, _, _ in turns)
        assert all(second[1] >= first[2] for first, second in pairwise(turns))
