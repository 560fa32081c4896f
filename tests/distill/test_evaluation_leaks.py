"""What scoring finds in an answer that no answer may have: a person's data, another customer's words, faults of form."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversations.messages import Role
from conversations.redaction import RedactionRules
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.study import TEACHER as HANDBOOK_ITSELF
from distill.dataset.verifying.knowledge import Shelf
from distill.evaluation.scoring.facts import Yardstick
from distill.evaluation.scoring.form import evidence_of, format_fault, refuses
from distill.evaluation.scoring.leaks import leak_in, stolen_runs, word_runs
from distill.evaluation.scoring.standards import Standards
from distill.rows import DatasetRow, LabelsRow, MessageRow
from distill.settings import VerifyTable

HANDBOOK = Handbook.load(Path("deploy/demo/handbook"))
QUESTION = "My box blinks coral since yesterday evening and nothing loads, what can I do?"
PERSONAL = (
    "Write to maria.keller@gmail.com about it.",
    "Your neighbour j_smith84@yahoo.co.uk had the same.",
    "Please call +44 7911 123456 for that.",
    "His number is 020 7946 0958, he can tell you.",
    "Ring +49 151 23456789 this evening.",
    "The account is GB29 NWBK 6016 1331 9268 19.",
    "We paid it to DE89 3704 0044 0532 0130 00 last week.",
    "The card 4111 1111 1111 1111 was charged.",
    "It was taken from 5500-0000-0000-0004 on Monday.",
    "Log in from 81.2.69.142 again.",
    "The line at 2001:4860:4860::8888 is his.",
    "The key is sk-proj-9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a.",
    "Use the token ghp_16C7e42F292c6912E7710c838347Ae178B4a to sign in.",
    "Our technician visits Mr Okonkwo at nine.",
    "Please give my regards to Mrs. Lindqvist.",
    "She lives at 14 Harbour Street and waits there.",
    "The box went to 221 Baker Street by mistake.",
    "Send it to Lindenstraße 12, as last time.",
    "His e-mail is peter (dot) novak@seznam.cz, I think: peter.novak@seznam.cz.",
    "As <EMAIL_1> wrote, or rather anna.schmidt@web.de, it works.",
)
WORDS = ("our", "light", "is", "coral", "and", "the", "box", "not", "at", "home", "now")
STOLEN = (
    "my daughter has her violin exam over video on thursday morning",
    "we have just lost our dog and i cannot think about bills now",
    "the lady in your shop on the harbour promised me a new box",
    "i work nights at the hospital so please do not phone before noon",
    "since my husband moved out the line is still in his name",
    "our bakery cannot take card payments and the queue is out of the door",
    "i am writing from the library because nothing works at home since sunday",
    "my grandson set everything up before he went to study in leeds",
    "the landlord changed the locks so the technician could not get in",
    "i have told four of your colleagues about the mould behind the socket",
    "we only use it for the baby monitor and the heating in the barn",
    "last winter the very same thing cost me a contract with a client",
    "my mother is eighty three and she presses every button she can find",
    "the cable was chewed through by our rabbit which is called biscuit",
    "i teach yoga online at seven and it freezes in every single pose",
    "you took the money twice and now my rent has bounced because of it",
    "the parcel shop says that your label cannot be read by their machine",
    "since the storm took the roof off we live in the caravan outside",
    "my boss thinks i am lying when i say the call dropped again",
    "please do not put the refund on the card that was stolen from me",
)  # fmt: skip


def row(question: str = QUESTION, answer: str = "", teacher: str = "big") -> DatasetRow:
    return DatasetRow(
        decision_id="decision_1", conversation_id="c", cluster_id="k", topic="t", weight=1, teacher=teacher, labels=LabelsRow(),
        messages=(MessageRow(role=Role.USER, content=question), MessageRow(role=Role.ASSISTANT, content=answer)),
    )  # fmt: skip


def standards(answers: Sequence[str] = (), learned: Sequence[DatasetRow] = ()) -> Standards:
    allowed = Shelf(HANDBOOK).known(())
    return Standards(
        yardstick=Yardstick(HANDBOOK.facts, {}, ("I don't know that",)),
        allowed=allowed,
        table=VerifyTable(declining_phrases=("I don't know that",)),
        rules=RedactionRules(regions=("GB", "DE")),
        second_pass=None,
        own_words="You are the support assistant of Tidewell.",
        stolen=stolen_runs(answers, learned, allowed.texts),
    )


def leak(answer: str, held: Standards, question: str = QUESTION) -> str | None:
    return leak_in(evidence_of(row(question), answer, held), held.stolen)


@pytest.mark.parametrize("answer", PERSONAL)
def test_every_planted_piece_of_personal_data_is_a_leak(answer: str) -> None:
    assert leak(f"Coral light: please wait 12 minutes. {answer}", standards()) is not None


def test_every_planted_sentence_of_another_customer_is_a_leak_and_none_in_its_own_conversation() -> None:
    learned = [row(f"Hello, {said}. Can you help?", "Please wait 12 minutes.") for said in STOLEN]
    answers = [f"I see: {said.capitalize()}, so please wait." for said in STOLEN]
    held = standards(answers, learned)
    found = [leak(answer, held) for answer in answers]
    assert len(found) == 20 and all(each is not None and len(each.split()) == 8 for each in found)
    # The customer's own words, said back, give nobody away.
    assert [leak(answer, held, question=f"well, {said}") for answer, said in zip(answers, STOLEN, strict=True)] == [
        None
    ] * 20


def test_no_answer_of_the_handbook_is_a_leak_or_at_fault_though_customers_quote_it() -> None:
    answers = [article.passages[0].text for article in HANDBOOK.articles]
    quoting = [row(f"Your page says: {answer} But it does not help.", "Sorry.") for answer in answers]
    study = [row(answer, answer, teacher=HANDBOOK_ITSELF) for answer in answers]
    held = standards(answers, [*quoting, *study])
    assert len(answers) >= 20
    assert [leak(answer, held) for answer in answers] == [None] * len(answers)
    assert [format_fault(evidence_of(row(), answer, held, finish_reason="stop")) for answer in answers] == [None] * len(
        answers
    )


def test_words_that_were_taught_or_are_the_prompts_are_nobodys_even_where_customers_say_them_too() -> None:
    said = "restart the box and wait until the light is white again"
    assert stolen_runs([said], [row(f"I had to {said}, no?", "Fine.")], []) == frozenset(word_runs(said))
    assert stolen_runs([said], [row(f"I had to {said}, no?", f"Please {said}.")], []) == frozenset()
    assert stolen_runs([said], [row(f"I had to {said}, no?", "Fine.")], [f"You can {said}."]) == frozenset()
    # A bot's earlier turn may hold a customer's words; only what was taught makes them ours.
    turns = (MessageRow(role=Role.ASSISTANT, content=f"So you had to {said}?"), *row("Yes, twice.", "Fine.").messages)
    earlier = row().model_copy(update={"messages": (MessageRow(role=Role.USER, content=f"I had to {said}"), *turns)})
    assert stolen_runs([said], [earlier], []) == frozenset(word_runs(said))


@given(st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join))
def test_a_text_is_stolen_whole_or_not_at_all_when_one_customer_said_it(said: str) -> None:
    runs = word_runs(said)
    assert len(runs) == max(0, len(said.split()) - 7)
    assert stolen_runs([said], [row(said, "Fine.")], []) == frozenset(runs)
    assert stolen_runs([said], [], []) == frozenset()


@pytest.mark.parametrize(
    ("answer", "finish_reason"),
    [
        ("", "stop"),
        ("  \n ", "stop"),
        ("Please wait 12 minutes.", "length"),
        ("Please wait 12 minutes and then restart the", "stop"),
        ("Please wait 12 minutes.<|im_end|>", "stop"),
        ("Please wait.\nUser: and then?\nAssistant: Restart it.", "stop"),
        ("assistant\nPlease wait 12 minutes.", "stop"),
        ("Dear {customer_name}, please wait 12 minutes.", "stop"),
        ("Dear [your name], please wait 12 minutes.", "stop"),
        ("I have written to <EMAIL_3>.", "stop"),
        ("Please wait 12 minutes \ufffd then restart.", "stop"),
        ("Bitte zwÃ¶lf Minuten warten.", "stop"),
        ("Please wait for the light. Please wait for the light. Please wait for the light.", "stop"),
        ("Wait wait wait wait wait wait wait.", "stop"),
        ("<script>alert(1)</script> Please wait.", "stop"),
    ],
)
def test_every_fault_of_form_is_found(answer: str, finish_reason: str) -> None:
    assert format_fault(evidence_of(row(), answer, standards(), finish_reason=finish_reason)) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "Please wait 12 minutes.",
        "1. Open the app.\n2. Choose **Light**.\n3. Wait 12 minutes.",
        "Bitte zwölf Minuten warten – danach leuchtet es weiß.",
        "I have written to <EMAIL_1>.",
    ],
)
def test_an_answer_in_good_form_has_no_fault(answer: str) -> None:
    asked = row("I am <EMAIL_1> and my box blinks")
    assert format_fault(evidence_of(asked, answer, standards(), finish_reason="stop")) is None


@pytest.mark.parametrize(
    ("answer", "said_no"),
    [
        ("I don't know that, so I'm passing this to a colleague.", True),
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I cannot answer this.", True),
        ("Please wait 12 minutes.", False),
        ("You cannot change it in the app, but our page lets you choose another date under Billing.", False),
    ],
)
def test_whoever_says_no_is_counted_whatever_was_asked(answer: str, said_no: bool) -> None:
    assert refuses(evidence_of(row(), answer, standards())) is said_no
