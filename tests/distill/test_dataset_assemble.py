"""What verifying and assembling promise: only supported answers are learnt, tests stay apart, the handbook is studied."""

from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, small_run

from conversations.decisions import Verdict
from conversations.errors import OperatorError, Refused
from conversations.messages import Split
from conversations.redaction import RedactionRules
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.study import study_handbook
from distill.rows import ChosenRow, DatasetRow, VerdictRow, read_rows
from distill.run import STAGES, Stage

UP_TO_ASSEMBLE = STAGES[: STAGES.index(Stage.ASSEMBLE) + 1]


def test_rejected_answers_are_counted_and_never_learnt_and_test_questions_keep_theirs(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(
            lambda question, before: Act("Please wait 99 minutes." if question in QUESTIONS[::2] else "Please wait.")
        ) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        run, manifests = small.perform(*UP_TO_ASSEMBLE)
        folder = run.folder
        verdicts = {row.decision_id: row for row in read_rows(folder / "verify/verdicts.jsonl", VerdictRow)}
        chosen = list(read_rows(folder / "choose/decisions.jsonl", ChosenRow))
        for row in chosen:
            is_wrong = row.messages[-1].content in QUESTIONS[::2]
            assert verdicts[row.decision_id].verdict is (Verdict.REJECTED if is_wrong else Verdict.ACCEPTED)
        train, test = (list(read_rows(folder / f"assemble/{name}.jsonl", DatasetRow)) for name in ("train", "test"))
        assert all("99" not in row.messages[-1].content for row in train)
        held_out = {row.decision_id for row in chosen if row.split is Split.TEST}
        assert held_out and {row.decision_id for row in test} == held_out
        assert manifests[-1].counts.rejected_by_reason["contradicts_handbook"] == sum(
            row.split is not Split.TEST and row.messages[-1].content in QUESTIONS[::2] for row in chosen
        )


def test_the_handbook_is_studied_in_training_alone_and_never_a_twin_of_a_test_question(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        run, manifests = small.perform(*UP_TO_ASSEMBLE)
        train, test, validation = (
            list(read_rows(run.folder / f"assemble/{name}.jsonl", DatasetRow)) for name in ("train", "test", "validation")
        )
        studied = [row for row in train if row.decision_id.startswith("study_")]
        assert {row.messages[-2].content for row in studied} == {
            "The light glows coral", "The lamp on the box glows coral all evening.", "Nothing loads any more, on no device.",
        }  # fmt: skip
        assert {row.messages[-1].content for row in studied} == {"Coral light: please wait 12 minutes."}
        assert not [row for row in (*test, *validation) if row.decision_id.startswith("study_")]
        assert manifests[-1].details["study_rows"] == len(studied)
        handbook = Handbook.load(small.folder / "handbook")
        twin = study_handbook(
            handbook, ["the lamp on the box GLOWS coral all evening"],
            system_prompt="You help.", rules=RedactionRules(), near_duplicate_jaccard=0.5,
        )  # fmt: skip
        assert (len(twin.rows), twin.twins_of_test) == (2, 1)


def test_a_run_without_one_accepted_answer_says_so_and_leaves_no_half_stage(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act("Wait 99 minutes.")) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        with pytest.raises(Refused, match=r"no answer is left to learn from.*contradicts_handbook"):
            small.perform(*UP_TO_ASSEMBLE)
        assert not list(small.folder.glob("runs/*/assemble/manifest.json"))


def test_an_edition_keeps_its_rows_when_the_next_run_adds_new_ones(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        first, manifests = small.perform(*UP_TO_ASSEMBLE)
        names = ("alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta")
        more = [f"Question number {name} about a {name} thing that nobody asked before" for name in names]
        small.import_conversations(
            [
                {
                    "id": f"n{place}", "customer_id": f"new-{place}", "created_at": "2026-08-03T08:00:00Z", "consent": True,
                    "messages": [{"role": "user", "content": text}],
                }
                for place, text in enumerate(more)
            ]
        )  # fmt: skip
        second, later = small.perform(*UP_TO_ASSEMBLE)
        old, new = (
            {row.decision_id: row for row in read_rows(run.folder / "assemble/test.jsonl", DatasetRow)}
            for run in (first, second)
        )
        assert set(old) <= set(new) and all(new[name] == row for name, row in old.items())
        assert later[-1].details["test_edition"] == manifests[-1].details["test_edition"] + (len(new) > len(old))


def test_only_what_the_teacher_refused_is_tested_without_its_answer(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act(status=400) if question == QUESTIONS[0] else Act()) as teacher,
        small_run(tmp_path, teacher.base_url, teach="smoke_decisions = 1") as small,
    ):
        text = small.settings_file.read_text(encoding="utf-8").replace("max_calls = 1000", "max_calls = 5")
        small.settings_file.write_text(text.replace("concurrency = 2", "concurrency = 1"), encoding="utf-8")
        run, _ = small.perform(*UP_TO_ASSEMBLE)
        refused = {row.decision_id for row in read_rows(run.folder / "choose/decisions.jsonl", ChosenRow)
                   if row.messages[-1].content == QUESTIONS[0]}  # fmt: skip
        test = list(read_rows(run.folder / "assemble/test.jsonl", DatasetRow))
        assert test and all(row.messages[-1].content or row.decision_id in refused for row in test)


def test_every_copy_of_a_held_out_wording_stays_out_of_the_study(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text(
            f"---\nid: {name}\ntitle: {name}\n---\n# {name}\n\nThe lamp on the box glows coral all evening.\n\n## Answer:\n\nWait.\n",
            encoding="utf-8",
        )
    study = study_handbook(
        Handbook.load(tmp_path), ["The lamp on the box glows coral all evening"],
        system_prompt="You help.", rules=RedactionRules(), near_duplicate_jaccard=0.5,
    )  # fmt: skip
    assert ([row.messages[-2].content for row in study.rows], study.twins_of_test) == (["one", "two"], 2)


def test_a_comment_in_a_fenced_block_is_no_heading(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "---\nid: a\ntitle: A\n---\n# A\n\n## Answer\n\nRun this:\n\n```\n# restart the box\nreboot now\n```\n",
        encoding="utf-8",
    )
    assert "reboot now" in Handbook.load(tmp_path).articles[0].passages[0].text


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ("[{id: a, says: x, match: ['x']}, {id: a, says: y, match: ['y']}]", "a names more than one fact"),
        ("[{id: a, says: x, match: []}]", "write at least one"),
        ("[{id: a, says: x, match: ['']}]", "is found in every text"),
        ("[{id: a, says: x, match: ['(']}]", "is no regular expression"),
        ('"\\x07"', "expected|valid tuple"),
    ],
)
def test_a_fact_that_measures_nothing_is_an_error_that_names_the_file(tmp_path: Path, facts: str, told: str) -> None:
    (tmp_path / "a.md").write_text(f"---\nid: a\ntitle: A\nfacts: {facts}\n---\n# A\n\nText.\n", encoding="utf-8")
    with pytest.raises(OperatorError, match=rf"a\.md:1: .*(?:{told})"):
        Handbook.load(tmp_path)
