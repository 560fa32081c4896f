"""What earlier runs taught is ready to be learnt again, need not be taught again, and is again where it no longer stands."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import ARTICLE, SmallRun, conversation, small_run

from conversations import decisions, releases, reviews, runs, turns
from conversations.decisions import AnswerAuthor
from conversations.erasure import erase_customer
from conversations.messages import Split, utc_now
from conversations.releases import Release, ReleaseKind, ReleaseState
from conversations.reviews import ReviewVerdict
from distill.dataset.assembling.leaks import HeldOut, KnownTexts
from distill.dataset.assembling.replay import write_replay
from distill.dataset.assembling.rows import read_sources
from distill.dataset.handbook.articles import Handbook
from distill.rows import ChosenRow, DatasetRow, read_rows
from distill.run import Manifest, Run, Stage

STAGES = (Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE)
LEAVE_OUT = '[choose]\ntaught_before = "leave_out"\n'
LATER = (
    "Is there a cheaper tariff for somebody who lives alone and reads mail only?",
    "My grandmother never got the letter with her new contract number",
    "The app shows a grey page whenever I look for the invoice of March",
    "Could a technician come on a Saturday morning, please, I work all week?",
)
LATEST = (
    "Please tell me who may read the meter in our cellar next week",
    "There is a crackling sound on the phone line since the thunderstorm",
    "I was promised a voucher for my birthday, where can I use it?",
    "Somebody called me and asked for my password, was that really you?",
    "Which plug of the grey adapter belongs into the wall socket?",
    "We would like to pay by standing order from now on, is that possible?",
    "How far may the second floor be from the little repeater?",
)

# Every test waits for the embedding model and for several runs.
pytestmark = pytest.mark.slow


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallRun]:
    with small_run(tmp_path / "with", "http://127.0.0.1:9/v1") as made:
        passage = next(iter(Handbook.load(made.folder / "handbook").passages))
        with ScriptedTeacher(
            lambda question, before: Act("Please wait 12 minutes.", more={"handbook_passages": [passage]})
        ) as teacher:
            put(made, "http://127.0.0.1:9/v1", teacher.base_url)
            put(made, "[choose]\n", LEAVE_OUT)
            yield made


def put(small: SmallRun, old: str, new: str) -> None:
    text = small.settings_file.read_text(encoding="utf-8")
    assert old in text
    small.settings_file.write_text(text.replace(old, new), encoding="utf-8")


def complete(small: SmallRun) -> tuple[Run, list[Manifest]]:
    """A run up to its data set that counts as complete, as one does when a release came of it."""
    run, manifests = small.perform(*STAGES)
    runs.finish_run(small.record, run.run_id, state=runs.RunState.COMPLETE, outcome="promote")
    return run, manifests


def released(small: SmallRun, run: Run, name: str, started_from: str | None = None) -> None:
    release = Release(
        name,
        run.run_id,
        "tiny",
        ReleaseKind.LORA,
        str(run.folder),
        "sha256:1",
        {},
        utc_now(),
        ReleaseState.CANDIDATE,
        started_from,
    )
    releases.register(small.record, release, actor="test", reason="test")
    releases.promote(small.record, name, actor="test", reason="test")


def rows_of(run: Run, name: str) -> dict[str, DatasetRow]:
    return {row.decision_id: row for row in read_rows(run.folder / "assemble" / f"{name}.jsonl", DatasetRow)}


def learnt_by(run: Run) -> set[str]:
    """The decisions of the record in a run's training set, without the handbook's own rows."""
    return of_the_record(rows_of(run, "train"))


def replayable(run: Run) -> set[str]:
    return of_the_record(rows_of(run, "replay"))


def of_the_record(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("study_")}


def chosen_by(run: Run) -> dict[str, ChosenRow]:
    return {row.decision_id: row for row in read_rows(run.folder / "choose" / "decisions.jsonl", ChosenRow)}


def come_later(small: SmallRun) -> None:
    small.import_conversations([conversation(20 + place, question) for place, question in enumerate(LATER)])


def test_what_was_taught_is_left_out_and_ready_to_be_replayed_as_it_was_taught(small: SmallRun) -> None:
    first, _ = complete(small)
    taught = learnt_by(first)
    come_later(small)
    second, manifests = complete(small)
    assert taught and manifests[0].counts.rejected_by_reason["taught_before"] == len(taught)
    assert not taught & chosen_by(second).keys()
    held_out = {name for name, row in chosen_by(first).items() if row.split is not Split.TRAIN}
    assert held_out and held_out <= chosen_by(second).keys()

    # The handbook's own sentences, too, are studied once: what rests on no new passage waits to be replayed.
    assert rows_of(second, "replay") == rows_of(first, "train")
    assert rows_of(second, "train").keys() == learnt_by(second)
    studied = len(rows_of(first, "train")) - len(taught)
    counts, figures = manifests[-1].counts, manifests[-1].details["replay"]
    assert counts.taken_in == counts.accepted + counts.rejected + counts.unscored
    assert isinstance(figures, dict) and figures["rows"] == figures["considered"] == len(taught) + studied
    assert studied and figures["of_the_handbook"] == studied
    assert f"{len(taught) + studied} rows of earlier runs" in (second.folder / "assemble/data_card.html").read_text(
        encoding="utf-8"
    )
    assert not (first.folder / "assemble" / "replay.jsonl").read_bytes()

    # Made again, it is the same to the byte.
    before = (second.folder / "assemble" / "replay.jsonl").read_bytes()
    (second.folder / "assemble" / "manifest.json").unlink()
    small.perform(Stage.ASSEMBLE, run_id=second.run_id)
    assert (second.folder / "assemble" / "replay.jsonl").read_bytes() == before


def test_what_people_put_otherwise_is_taught_again_and_its_old_words_are_never_replayed(small: SmallRun) -> None:
    first, _ = complete(small)
    corrected, rejected, *_ = sorted(learnt_by(first))
    decisions.add_answer(
        small.record, corrected, author=AnswerAuthor.OPERATOR, author_name="olga", content="Please wait 12 minutes, dear."
    )
    wrong = next(each for each in decisions.answers(small.record, rejected) if each.author is AnswerAuthor.TEACHER)
    reviews.review(small.record, wrong.answer_id, ReviewVerdict.REJECTED, reviewed_by="olga")
    come_later(small)
    second, _ = complete(small)
    assert {corrected, rejected} <= chosen_by(second).keys()
    assert rows_of(second, "train")[corrected].messages[-1].content == "Please wait 12 minutes, dear."
    assert not {corrected, rejected} & rows_of(second, "replay").keys()
    # A third run leaves the correction out, as it was taught, and replays its words with a person's weight.
    small.import_conversations([conversation(40 + place, question) for place, question in enumerate(LATEST)])
    third, _ = complete(small)
    assert corrected not in chosen_by(third)
    row = rows_of(third, "replay")[corrected]
    assert (row.messages[-1].content, row.weight, row.teacher) == ("Please wait 12 minutes, dear.", 3.0, "people")


def test_what_rests_on_a_changed_passage_is_taught_again(small: SmallRun) -> None:
    first, _ = complete(small)
    article = ARTICLE.replace("The lamp on the box glows coral", "The lamp glows coral").replace(
        "please wait 12 minutes", "please do wait 12 minutes"
    )
    (small.folder / "handbook" / "coral.md").write_text(article, encoding="utf-8")
    second, manifests = small.perform(Stage.CHOOSE)
    assert learnt_by(first) <= chosen_by(second).keys()
    assert "taught_before" not in manifests[0].counts.rejected_by_reason


def test_nobody_who_was_erased_or_has_withdrawn_consent_is_replayed(small: SmallRun) -> None:
    first, _ = complete(small)
    taught = sorted(learnt_by(first))
    of = {row.decision_id: row.conversation_id for row in rows_of(first, "train").values()}
    customer = turns.conversation(small.record, of[taught[0]]).customer_id
    erase_customer(small.record, customer, actor="test")
    with small.record.write() as transaction:
        transaction.execute("UPDATE conversations SET consent = 'no' WHERE conversation_id = ?", [of[taught[1]]])
    come_later(small)
    second, manifests = complete(small)
    assert replayable(second) == set(taught[2:])
    figures = manifests[-1].details["replay"]
    assert isinstance(figures, dict) and figures["left_out"] == {"consent_withdrawn": 1}
    # And whoever goes now goes from the rows that wait to be replayed, too.
    erase_customer(small.record, turns.conversation(small.record, of[taught[2]]).customer_id, actor="test")
    assert taught[2] not in rows_of(second, "replay")


def test_a_student_that_learns_on_leaves_out_what_its_own_line_has_learned_and_no_more(small: SmallRun) -> None:
    put(small, "[evaluate]", '[train]\nstart_from = "release"\n[evaluate]')
    first, manifests = complete(small)
    assert manifests[0].details["starts_from"] is None
    come_later(small)
    # The run was complete, but no release came of it: the base knows nothing.
    again, manifests = small.perform(Stage.CHOOSE)
    assert learnt_by(first) <= chosen_by(again).keys()
    released(small, first, "student-1")
    second, manifests = complete(small)
    assert manifests[0].details["starts_from"] == "student-1"
    assert not learnt_by(first) & chosen_by(second).keys()
    released(small, second, "student-2", "student-1")
    third, manifests = small.perform(Stage.CHOOSE)
    assert manifests[0].details["starts_from"] == "student-2"
    assert not (learnt_by(first) | learnt_by(second)) & chosen_by(third).keys()
    # What a release learned that was rolled back is to be learned again.
    releases.roll_back(small.record, actor="test", reason="test")
    fourth, manifests = small.perform(Stage.CHOOSE)
    assert manifests[0].details["starts_from"] == "student-1"
    assert learnt_by(second) <= chosen_by(fourth).keys() and not learnt_by(first) & chosen_by(fourth).keys()


def test_what_has_become_the_twin_of_a_test_question_is_not_replayed(small: SmallRun) -> None:
    first, _ = complete(small)
    taught = sorted(learnt_by(first))
    twin = rows_of(first, "train")[taught[0]].messages[-2]
    tested = next(iter(rows_of(first, "test").values()))
    held_out = HeldOut(0.5)
    held_out.add(tested.model_copy(update={"messages": (twin, tested.messages[-1])}), [], KnownTexts([], ()))
    come_later(small)
    second, _ = small.perform(*STAGES[:-1])
    handbook = Handbook.load(small.folder / "handbook")
    replay = write_replay(read_sources(second, ()), handbook, held_out, studied=(), taught_now=(), withdrawn=())
    assert (sorted(replay.decision_ids), replay.left_out) == (taught[1:], {"twin_of_test": 1})
    assert replayable(second) == set(taught[1:])
