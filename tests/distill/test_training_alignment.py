"""A teacher's tokens put to the student's by their bytes: against a slow and plain reference, on tokenizers of every kind."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import Kind, renderer_of, small_tokenizer
from tokenizers import decoders

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from distill.rows import TokenBelief
from distill.training.decisions.beliefs import Alignment, OtherWords
from distill.training.decisions.training_row import SoftLabels

KINDS: tuple[Kind, ...] = ("byte-level", "sentencepiece", "bytes")
RENDERERS = {kind: renderer_of(small_tokenizer(kind)) for kind in KINDS}
TEACHERS = {kind: renderer_of(small_tokenizer(kind, size=300, first_line=1)) for kind in KINDS}
ALIGNMENTS = {kind: Alignment(renderer) for kind, renderer in RENDERERS.items()}
TEXTS = st.lists(
    st.sampled_from(
        ["Please wait", " 12 minutes", ", then", " restart", " the box", ".", " Refund", " part", "s", "é", " 😀", "\n", " ", "ing",
         "re"]
    ),
    min_size=1,
    max_size=8,
).map("".join)  # fmt: skip


def cut(renderer: Renderer, text: str) -> list[bytes]:
    """A text as a tokenizer cuts it, without the space that it may have put before."""
    spelt = [renderer.token_bytes()[token_id] for token_id in renderer.unfinished(text)]
    if b"".join(spelt) == b" " + text.encode():
        spelt[0] = spelt[0][1:]
    assert b"".join(spelt) == text.encode()
    return [each for each in spelt if each]


def told(renderer: Renderer, text: str, *, seed: int, before: str = "", after: str = "") -> list[TokenBelief]:
    """What a teacher of another tokenizer could have believed while it said a text: other tokens and the end beside each."""
    draw = random.Random(seed)
    pieces = sorted({*renderer.token_bytes().values()} - {b""})
    beliefs = []
    for said in [*cut(renderer, before + text + after), b""]:
        others = {draw.choice(pieces) for _ in range(draw.randrange(5))} | ({b""} if draw.random() < 0.3 else set())
        others -= {said}
        shares = {each: draw.uniform(0.01, 1) for each in (said, *sorted(others))}
        total = sum(shares.values()) + draw.choice([0.0, 0.5])
        beliefs.append(
            TokenBelief(said=said, choices=tuple((each, math.log(share / total)) for each, share in shares.items()))
        )
    return beliefs


def reference(renderer: Renderer, text: str, beliefs: list[TokenBelief]) -> list[dict[int, float]]:
    """The masses of each token of the answer, by joining and comparing whole prefixes."""
    table = renderer.token_bytes()
    answer_ids = renderer.answer(text)
    spelt = [table[token_id] for token_id in answer_ids[:-1]]
    lead = b" " if b"".join(spelt) == b" " + text.encode() else b""
    wanted = text.encode()
    white = len(b"".join(each.said for each in beliefs).decode()) - len(
        b"".join(each.said for each in beliefs).decode().lstrip()
    )
    masses: list[dict[int, float]] = []
    used: set[int] = set()
    for place in range(len(answer_ids)):
        before = b"".join(spelt[:place])[len(lead) :]
        of_place: dict[int, float] = {}
        masses.append(of_place)
        matching = []
        for number, belief in enumerate(beliefs):
            prefix = b"".join(each.said for each in beliefs[:number])[white:]
            through = b"".join(each.said for each in beliefs[: number + 1])[white:]
            if prefix == before and (through != b"" or wanted == b""):
                matching.append((number, belief))
        if not matching or matching[0][0] in used:
            continue
        number, belief = matching[0]
        used.add(number)
        is_end = place == len(answer_ids) - 1
        if is_end != (belief.said == b""):
            continue
        through_student = wanted if is_end else b"".join(spelt[: place + 1])[len(lead) :]
        for choice, log_probability in belief.choices:
            mass = math.exp(log_probability)
            if choice == belief.said:
                token_id = answer_ids[place]
                last = number
                while len(b"".join(each.said for each in beliefs[: last + 1])[white:]) < len(through_student):
                    last += 1
                    mass *= math.exp(dict(beliefs[last].choices)[beliefs[last].said])
            elif choice == b"":
                token_id = answer_ids[-1]
            else:
                shown = choice if place else lead + choice.lstrip()
                if not place and shown == lead:
                    continue
                same = [each for each, bytes_ in table.items() if bytes_ == shown]
                if same:
                    token_id = max(same)
                else:
                    try:
                        whole = (before + (choice if place else choice.lstrip())).decode()
                    except UnicodeDecodeError:
                        continue
                    ids = renderer.unfinished(whole)
                    if ids[:place] != answer_ids[:place] or len(ids) <= place:
                        continue
                    token_id = ids[place]
            of_place[token_id] = of_place.get(token_id, 0.0) + mass
    return masses


def as_dicts(soft: SoftLabels | None, length: int) -> list[dict[int, float]]:
    if soft is None:
        return [{} for _ in range(length)]
    return [{token_id: math.exp(said) for token_id, said in soft.at(place)} for place in range(length)]


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
@given(text=TEXTS, seed=st.integers(0, 10**6), around=st.sampled_from([("", ""), (" ", ""), ("\n\n", " \n"), ("", "\n")]))
@settings(max_examples=40, deadline=None)
def test_beliefs_of_any_tokenizer_are_put_to_the_students_as_the_plain_reference_puts_them(
    student, teacher, text, seed, around
):
    text = text.strip()
    if not text:
        return
    renderer = RENDERERS[student]
    beliefs = told(TEACHERS[teacher], text, seed=seed, before=around[0], after=around[1])
    soft = ALIGNMENTS[student].soft_labels(text, renderer.answer(text), beliefs)
    expected = reference(renderer, text, beliefs)
    for mine, plain in zip(as_dicts(soft, len(expected)), expected, strict=True):
        assert mine == pytest.approx(plain, rel=1e-4)
        assert sum(mine.values()) <= 1 + 1e-5


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
@given(text=st.lists(TEXTS, min_size=9, max_size=11).map("".join), seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_the_beliefs_at_the_end_of_a_long_answer_are_put_as_the_plain_reference_puts_them(student, teacher, text, seed):
    text = text.strip() or "."
    beliefs = told(TEACHERS[teacher], text, seed=seed)
    answer_ids = RENDERERS[student].answer(text)
    found = as_dicts(ALIGNMENTS[student].soft_labels(text, answer_ids, beliefs), len(answer_ids))
    for mine, plain in zip(found, reference(RENDERERS[student], text, beliefs), strict=True):
        assert mine == pytest.approx(plain, rel=1e-4)


class CountingRenderer(Renderer):
    """Counts the letters that it is asked to cut."""

    letters = 0

    def unfinished(self, text: str) -> tuple[int, ...]:
        self.letters += len(text)
        return super().unfinished(text)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_twice_the_length_is_twice_the_work(kind):
    renderer = renderer_of(small_tokenizer(kind))
    renderer.__class__ = CountingRenderer
    alignment, letters = Alignment(renderer), []
    for sentences in (40, 80):
        text = " ".join(f"Please wait {number} minutes, then restart the box." for number in range(sentences))
        renderer.letters = 0
        # What no token says whole: the student must be asked how it would begin to say it.
        told_ = [*((each, ((each, -0.1), (b" zebra" + each, -3.0))) for each in cut(renderer, text)), (b"", ((b"", -0.1),))]
        beliefs = [TokenBelief(said=said, choices=choices) for said, choices in told_]
        assert alignment.soft_labels(text, renderer.answer(text), beliefs) is not None
        letters.append(renderer.letters)
    assert letters[0] > 0 and letters[1] < 2.3 * letters[0]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_with_one_tokenizer_for_both_every_token_has_the_teachers_own_belief(kind, text, seed):
    text = text.strip()
    if not text:
        return
    renderer = RENDERERS[kind]
    table = renderer.token_bytes()
    answer_ids = renderer.answer(text)
    # Bytes that stand for a character of the vocabulary are never used for it, and a space of its own before a text takes no place.
    usual = [token_id for token_id in table if max(each for each in table if table[each] == table[token_id]) == token_id]
    draw = random.Random(seed)
    lead = b" " if b"".join(table[each] for each in answer_ids[:-1]) != text.encode() else b""
    if lead and table[answer_ids[0]] == lead:
        return
    beliefs, expected = [], []
    for place, token_id in enumerate(answer_ids):
        others = {draw.choice(usual) for _ in range(4)} - {token_id}
        if not place:
            others = {each for each in others if table[each][len(lead) :].strip() and table[each].startswith(lead)}
            others = {each for each in others if not table[each][len(lead) :].startswith((b" ", b"\n"))}
        masses = {each: 0.9 / (len(others) + 1) for each in (token_id, *others)}
        spell = {each: (b"" if each == answer_ids[-1] else table[each][0 if place else len(lead) :]) for each in masses}
        beliefs.append(
            TokenBelief(said=spell[token_id], choices=tuple((spell[each], math.log(mass)) for each, mass in masses.items()))
        )
        expected.append(masses)
    soft = ALIGNMENTS[kind].soft_labels(text, answer_ids, beliefs)
    assert soft is not None and soft.positions == len(answer_ids)
    for mine, masses in zip(as_dicts(soft, len(answer_ids)), expected, strict=True):
        assert mine == pytest.approx(masses, rel=1e-5)


def belief(said: str, **others: float) -> TokenBelief:
    mass = 1 - sum(others.values())
    spelt = [(said.encode(), math.log(mass)), *((each.encode(), math.log(share)) for each, share in others.items())]
    return TokenBelief(said=said.encode(), choices=tuple(spelt))


def test_a_token_that_takes_several_of_the_teachers_is_as_likely_as_they_are_together():
    renderer = RENDERERS["byte-level"]
    (whole,) = renderer.unfinished(" the")
    text = "Please wait the box"
    answer_ids = renderer.answer(text)
    place = answer_ids.index(whole)
    pieces = [belief("Please wait"), belief(" t", **{" b": 0.25}), belief("he", o=0.5), belief(" box"), belief("")]
    soft = ALIGNMENTS["byte-level"].soft_labels(text, answer_ids, pieces)
    assert soft is not None
    masses = {token_id: math.exp(said) for token_id, said in soft.at(place)}
    # P(" t") P("he"), and of " b" the student's first token; what else begins with " t" is in the rest.
    assert masses == pytest.approx({whole: 0.75 * 0.5, renderer.unfinished(" b")[0]: 0.25})
    # The next token of the teacher begins within one of the student's: nothing is known there.
    assert sum(1 for at in range(len(answer_ids)) if soft.at(at)) == 1 + 1 + 1 + 1


def test_where_the_tokens_do_not_meet_there_is_no_soft_label_and_coverage_says_so():
    renderer = RENDERERS["bytes"]
    text = "wait"
    soft = ALIGNMENTS["bytes"].soft_labels(text, renderer.answer(text), [belief("wa", w=0.25), belief("it"), belief("")])
    assert soft is not None and [len(soft.at(place)) for place in range(5)] == [1, 0, 1, 0, 1]
    assert soft.positions == 3
    # "wa" and "w" both begin with the byte w.
    assert soft.at(0)[0][1] == pytest.approx(0.0, abs=1e-6)


def test_the_teachers_white_space_around_an_answer_is_not_learnt():
    renderer = RENDERERS["byte-level"]
    text = "wait"
    plain = [belief("wait", the=0.1), belief("")]
    around = [belief("\n"), belief(" wait", **{" the": 0.1, "  ": 0.2}), belief("\n"), belief("")]
    answer_ids = renderer.answer(text)
    one, other = (ALIGNMENTS["byte-level"].soft_labels(text, answer_ids, each) for each in (plain, around))
    assert one is not None and other is not None
    assert {token_id for token_id, _ in one.at(0)} == {token_id for token_id, _ in other.at(0)}
    # The teacher went on with a line break, which says nothing of where the stripped answer ends.
    assert one.at(len(answer_ids) - 1) and not other.at(len(answer_ids) - 1)


def test_beliefs_about_other_words_are_refused():
    with pytest.raises(OtherWords):
        ALIGNMENTS["bytes"].soft_labels("wait", RENDERERS["bytes"].answer("wait"), [belief("stay")])


def test_bytes_of_every_token_spell_what_the_tokenizer_decodes():
    for renderer in RENDERERS.values():
        text = "Please refund 12 é 😀\n  days"
        spelt = b"".join(renderer.token_bytes()[token_id] for token_id in renderer.unfinished(text))
        assert spelt.decode().removeprefix(" ") == text
        assert not set(renderer.token_bytes()) & set(renderer.stop_ids)


def test_a_tokenizer_whose_tokens_have_no_bytes_is_named():
    tokenizer = small_tokenizer("bytes")
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(OperatorError, match=r"WordPiece.*soft_weight to 0"):
        Alignment(renderer_of(tokenizer))


def test_soft_labels_stand_likeliest_first_and_are_padded_with_what_says_nothing():
    renderer = RENDERERS["bytes"]
    soft = ALIGNMENTS["bytes"].soft_labels("ab", renderer.answer("ab"), [belief("a", b=0.6, c=0.1), belief("b"), belief("")])
    assert soft is not None
    assert soft.token_ids.dtype == np.int32 and soft.log_probabilities.dtype == np.float32
    assert np.all(np.diff(soft.log_probabilities[0]) <= 0)
    assert soft.token_ids[1].tolist()[1:] == [-1, -1] and np.isneginf(soft.log_probabilities[1][1:]).all()
