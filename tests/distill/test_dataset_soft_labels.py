"""What teachers believed beside their words: whose, for which rows, and what is read of a reply."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, conversation, small_run
from spoken_beliefs import VLLM_CUT_CHARACTERS, believing, spoken

from conversations import erasure
from distill.dataset.assembling.soft_labels import beliefs_in
from distill.rows import DatasetRow, SoftLabelRow, read_rows
from distill.run import STAGES, Run, Stage

UP_TO_ASSEMBLE = STAGES[: STAGES.index(Stage.ASSEMBLE) + 1]
TELLING = "top_logprobs = 3"
WAIT = "Please wait 12 minutes."
# Asked these, the teacher gives no log-probabilities, or those of other words than its answer's.
SILENT, THINKING = QUESTIONS[1::4], QUESTIONS[3::4]


def soft_labels(run: Run) -> dict[str, SoftLabelRow]:
    return {row.decision_id: row for row in read_rows(run.folder / "assemble/soft_labels.jsonl", SoftLabelRow)}


def rows(run: Run, name: str) -> list[DatasetRow]:
    return list(read_rows(run.folder / f"assemble/{name}.jsonl", DatasetRow))


def reply_with(content: list[Any]) -> str:
    return json.dumps({"choices": [{"message": {"content": ""}, "logprobs": {"content": content}}]})


def test_beliefs_are_kept_for_rows_of_training_and_validation_whose_words_they_are(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        if question in SILENT:
            return Act(WAIT)
        # A service that thinks aloud gives log-probabilities of other words than its answer's.
        act = believing(spoken(WAIT))
        if question in THINKING:
            act.more["choices"][0]["message"]["content"] = "Please wait."
        return act

    with (
        ScriptedTeacher(script) as teacher,
        small_run(tmp_path, teacher.base_url, teacher=TELLING, more="[assemble]\nmax_depth_share = 1.0") as small,
    ):
        small.settings_file.write_text(
            small.settings_file.read_text(encoding="utf-8").replace("validation_share = 0.1", "validation_share = 0.4"),
            encoding="utf-8",
        )
        run, manifests = small.perform(*UP_TO_ASSEMBLE)
        assert all(seen.body["top_logprobs"] == 3 for seen in teacher.seen)
        told = soft_labels(run)
        learnt = {split: [row for row in rows(run, split) if row.answer_id] for split in ("train", "validation")}
        assert learnt["train"] and learnt["validation"]
        wanted = {
            row.decision_id for of_split in learnt.values() for row in of_split if row.question not in SILENT + THINKING
        }
        assert wanted and set(told) == wanted
        for row in (*learnt["train"], *learnt["validation"]):
            if row.decision_id in told:
                belief = told[row.decision_id]
                assert (belief.answer_id, belief.teacher) == (row.answer_id, "big")
                assert b"".join(token.said for token in belief.tokens).decode() == row.messages[-1].content
                assert belief.tokens[-1].said == b""
        details = manifests[-1].details["soft_labels"]
        assert isinstance(details, dict)
        assert details["rows"] == len(told) and details["by_teacher"] == {"big": len(told)}
        assert details["tokens"] == sum(len(row.tokens) for row in told.values())
        without = details["without"]
        others = [row.question for row in (*learnt["train"], *learnt["validation"]) if row.decision_id not in told]
        assert without == {
            "no_log_probabilities": sum(question in SILENT for question in others),
            "other_words": sum(question in THINKING for question in others),
        }
        assert all(without.values()), "the salt of this test has put all odd questions of a kind into the test set"


def test_soft_labels_are_the_same_bytes_when_assembled_again(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: believing(spoken(WAIT))) as teacher,
        small_run(tmp_path, teacher.base_url, teacher=TELLING) as small,
    ):
        run, _ = small.perform(*UP_TO_ASSEMBLE)
        path = run.folder / "assemble/soft_labels.jsonl"
        before = path.read_bytes()
        for left in (run.folder / "assemble").iterdir():
            left.unlink()
        small.perform(Stage.ASSEMBLE, run_id=run.run_id)
        assert before and path.read_bytes() == before


def test_every_row_has_the_belief_of_its_own_teacher_alone(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Act:
        question = body["messages"][-1]["content"]
        if body["model"] == "big-1":
            return Act(status=400) if question in QUESTIONS[::2] else believing(spoken(WAIT, sure=0.5))
        return believing(spoken(WAIT, sure=0.9))

    with ScriptedTeacher(by_body=script) as teacher:
        second = (
            f'{TELLING}\n[teachers.second]\nbase_url = "{teacher.base_url}"\nmodel = "second-1"\n'
            f'licence_allows_training = "yes"\n{TELLING}'
        )
        teach = 'fallback = ["second"]\nmax_smoke_failures = 16'
        with small_run(tmp_path, teacher.base_url, teacher=second, teach=teach) as small:
            run, _ = small.perform(*UP_TO_ASSEMBLE)
            by_decision = {row.decision_id: row for row in rows(run, "train")}
            told = soft_labels(run)
            assert {row.teacher for row in told.values()} == {"big", "second"}
            for name, row in told.items():
                assert row.teacher == by_decision[name].teacher
                likeliest = row.tokens[0].choices[0][1]
                assert likeliest == pytest.approx(math.log(0.5 if row.teacher == "big" else 0.9))


def test_no_belief_is_left_of_an_erased_person(tmp_path: Path) -> None:
    phrase = "gramophone"
    with (
        ScriptedTeacher(
            lambda question, before: believing(spoken(f"The {phrase} hums." if phrase in question else WAIT))
        ) as teacher,
        small_run(tmp_path, teacher.base_url, teacher=TELLING) as small,
    ):
        for place in range(30, 40):
            small.import_conversations([conversation(place, f"My {phrase} number {place * 7919} hums all night, why?")])
        run, _ = small.perform(*UP_TO_ASSEMBLE)
        path = run.folder / "assemble/soft_labels.jsonl"
        theirs = [row for row in soft_labels(run).values() if phrase in b"".join(t.said for t in row.tokens).decode()]
        assert theirs and len(theirs) < len(soft_labels(run))
        for place in range(30, 40):
            erasure.erase_customer(small.record, f"customer-{place}", actor="test")
        left = soft_labels(run)
        assert left and not set(left) & {row.decision_id for row in theirs}
        assert not any(row.conversation_id.encode() in path.read_bytes() for row in theirs)


def test_characters_that_vllm_cuts_are_one_belief_as_likely_as_their_tokens_together() -> None:
    colon, smile, end = beliefs_in(reply_with(VLLM_CUT_CHARACTERS))
    assert colon.said == b":" and dict(colon.choices) == {b":": -0.2099502682685852, b" ": -3.0849502086639404}
    # The other cut characters are not told apart, and are no choices.
    assert smile.said == " 😀".encode()
    assert dict(smile.choices) == {
        " 😀".encode(): pytest.approx(-1.3516757488250732 - 0.028249740600585938),
        b"\n": -2.976675748825073,
    }
    # Whatever ends an answer ends it; what opens another turn is no choice.
    assert end.said == b""
    assert dict(end.choices) == {b"": pytest.approx(math.log(math.exp(-0.5) + math.exp(-1.5)))}


def test_what_was_said_is_a_choice_though_it_was_not_among_the_likeliest() -> None:
    (belief,) = beliefs_in(
        reply_with(
            [
                {
                    "token": "a",
                    "logprob": -3.0,
                    "bytes": [97],
                    "top_logprobs": [{"token": "b", "logprob": -0.1, "bytes": None}],
                }
            ]
        )
    )
    assert belief.choices == ((b"b", -0.1), (b"a", -3.0))


@pytest.mark.parametrize(
    "reply",
    [
        "no json",
        "{}",
        '{"choices": []}',
        '{"choices": [{"logprobs": null}]}',
        '{"choices": [{"logprobs": {"content": null}}]}',
        '{"choices": [{"logprobs": {"content": [{"token": 7}]}}]}',
        '{"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1, "bytes": [256]}]}}]}',
        # Token numbers, as vLLM writes them with --return-tokens-as-token-ids: of its tokenizer nothing is known here.
        reply_with([{"token": "token_id:19556", "logprob": -1.8, "bytes": [72, 105], "top_logprobs": []}]),
    ],
)
def test_a_reply_without_log_probabilities_that_can_be_read_has_no_beliefs(reply: str) -> None:
    assert beliefs_in(reply) == ()


@pytest.mark.parametrize("number", ["NaN", "-9999.0", "-Infinity"])
def test_a_log_probability_that_is_none_is_no_choice(number: str) -> None:
    content = f'[{{"token": "a", "logprob": {number}, "bytes": [97], "top_logprobs": [{{"token": "b", "logprob": -1.0}}]}}]'
    (belief,) = beliefs_in('{"choices": [{"logprobs": {"content": ' + content + "}}]}")
    assert (belief.said, belief.choices) == (b"a", ((b"b", -1.0),))


@pytest.mark.parametrize(
    "damaged",
    [
        {"logprob": None, "top_logprobs": [{"token": "a", "logprob": -0.1}]},
        {"logprob": -0.1, "top_logprobs": None},
        {"logprob": 0.5, "top_logprobs": [{"token": "a", "logprob": -0.1}]},
        {"logprob": -0.1, "top_logprobs": [{"token": "b", "logprob": 2.0}]},
        {"logprob": -0.1, "top_logprobs": [{"token": "b", "logprob": None}]},
    ],
)
def test_a_token_without_log_probabilities_that_can_be_ones_believes_nothing_and_the_others_stay(damaged: Any) -> None:
    sound = {"token": "a", "logprob": 1e-6, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0}]}
    first, second, third = beliefs_in(reply_with([sound, {"token": "a", "bytes": [97], **damaged}, sound]))
    assert (second.said, second.choices) == (b"a", ())
    assert first.choices == third.choices == ((b"a", 1e-6), (b"b", -1.0))
