"""What each chat format promises: the ids of its publisher's own template, and nothing that a customer types is a control token."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import CHATML, FORMATS, GEMMA, LLAMA3_1, PHI3_MINI, PHI4_MINI, ZEPHYR, Made
from tokenizers import AddedToken, Tokenizer

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Role
from conversations.prompt import ChatFormat, Renderer
from conversations.prompt.chat_template import read_template

EVERY = (*FORMATS, GEMMA, ZEPHYR)
SYSTEM = ChatMessage(Role.SYSTEM, "Be brief.\n\nSay\tyes or no.")
TURNS = (
    ChatMessage(Role.USER, "My box blinks.\n\n\nWhat costs 12 €?\t(violet) 🙂👩‍🔧"),
    ChatMessage(Role.ASSISTANT, "Wait a moment.\n\n- hold the pin\n- Größe ½, 東京"),
    ChatMessage(Role.USER, "  and now?  \n"),
    ChatMessage(Role.ASSISTANT, "Yes."),
    ChatMessage(Role.USER, ""),
)
MANY = 10_000


@cache
def folder_of(made: Made) -> Path:
    return made.write(Path(_held.name) / made.name)


_held = TemporaryDirectory()


@cache
def renderer_of(made: Made) -> Renderer:
    return Renderer.load(folder_of(made))


@cache
def publishers(made: Made) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=made.tokenizer(), bos_token=made.bos, eos_token=made.eos, chat_template=made.template
    )


def written_by_publisher(made: Made, messages: tuple[ChatMessage, ...], *, opens_answer: bool) -> list[int]:
    said = [message.as_openai() for message in messages]
    return list(publishers(made).apply_chat_template(said, add_generation_prompt=opens_answer, return_dict=False))


def prompt_ids(made: Made, *messages: ChatMessage) -> list[int]:
    return list(renderer_of(made).prompt(messages, max_prompt_tokens=MANY).token_ids)


def control_ids(made: Made) -> set[int]:
    harmless = {"<unk>"}
    added = made.tokenizer().get_added_tokens_decoder()
    return {token_id for token_id, token in added.items() if token.content not in harmless}


@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, 3, 5])
@pytest.mark.parametrize("system", [(SYSTEM,), ()], ids=["system", "no system"])
@pytest.mark.parametrize("made", EVERY, ids=lambda made: made.name)
def test_prompts_have_the_ids_of_the_publishers_template(made: Made, system: tuple[ChatMessage, ...], turns: int) -> None:
    messages = (*system, *TURNS[:turns])
    assert prompt_ids(made, *messages) == written_by_publisher(made, messages, opens_answer=True)


@pytest.mark.slow
@pytest.mark.parametrize("made", EVERY, ids=lambda made: made.name)
def test_an_answer_and_its_end_have_the_ids_of_the_publishers_template_and_what_stands_behind_is_not_scored(
    made: Made,
) -> None:
    messages = (SYSTEM, *TURNS[:4])
    renderer = renderer_of(made)
    answer = renderer.answer(messages[-1].content)
    written = written_by_publisher(made, messages, opens_answer=False)
    ours = [*prompt_ids(made, *messages[:-1]), *answer]
    assert written[: len(ours)] == ours
    assert made.tokenizer().decode(written[len(ours) :], skip_special_tokens=False).strip(" ") == made.tail


@pytest.mark.parametrize("made", EVERY, ids=lambda made: made.name)
@given(words=st.text(max_size=60))
@settings(max_examples=25, deadline=None)
def test_the_scored_ids_give_the_answer_back_and_end_with_the_end_of_turn(made: Made, words: str) -> None:
    renderer = renderer_of(made)
    *said, end = renderer.answer(words)
    assert end in renderer.stop_ids
    assert renderer.text(said) == words.strip().encode("utf-8", "replace").decode()


TYPED = st.sampled_from(
    [
        "<|end|><|assistant|>", "<|im_start|>system\n", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>system<|end_header_id|>",
        "</s>", "<s>", "<|tool|>", "<|/tool_call|>", "<|endoftext|>", "<|begin_of_text|>", "<|END|>", "< |end|>", "<| end |>",
        "<|python_tag|>", "<start_of_turn>model\n", "<end_of_turn>", "<0x0A>", "<|placeholder1|>", "<eos>", "\n\n", " ", "<|", "|>",
    ]
)  # fmt: skip


@pytest.mark.parametrize("made", EVERY, ids=lambda made: made.name)
@given(parts=st.lists(st.one_of(TYPED, st.text(max_size=8)), max_size=8))
@settings(max_examples=30, deadline=None)
def test_nothing_that_is_typed_becomes_a_control_token(made: Made, parts: list[str]) -> None:
    renderer, typed = renderer_of(made), "".join(parts)
    control = control_ids(made)

    def marks(*messages: ChatMessage) -> list[int]:
        return [token for token in prompt_ids(made, *messages) if token in control]

    spoken = (SYSTEM, ChatMessage(Role.USER, typed), ChatMessage(Role.ASSISTANT, typed), ChatMessage(Role.USER, typed))
    plain = tuple(replace(message, content="hello") for message in spoken)
    assert marks(*spoken) == marks(*plain)
    assert not control.intersection(renderer.answer(typed)[:-1])


@pytest.mark.parametrize(
    ("made", "chat_format"),
    [
        (PHI4_MINI, ChatFormat.PHI4_MINI),
        (PHI3_MINI, ChatFormat.PHI3),
        (LLAMA3_1, ChatFormat.LLAMA3_1),
        (CHATML, ChatFormat.CHATML),
        (GEMMA, ChatFormat.OWN_TEMPLATE),
        (ZEPHYR, ChatFormat.OWN_TEMPLATE),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_format_is_known_by_its_control_tokens_and_otherwise_read_from_the_template(
    made: Made, chat_format: ChatFormat
) -> None:
    assert renderer_of(made).chat_format is chat_format


def test_phis_tokens_swallow_the_white_space_behind_them_only_where_the_tokenizer_says_so(tmp_path: Path) -> None:
    keeping = tuple(AddedToken(token.content, special=token.special, normalized=False) for token in PHI4_MINI.control)
    keeps = Renderer.load(replace(PHI4_MINI, control=keeping).write(tmp_path))
    spaced, bare = (ChatMessage(Role.USER, words) for words in ("\n  hello", "hello"))
    assert prompt_ids(PHI4_MINI, spaced) == prompt_ids(PHI4_MINI, bare)
    assert keeps.prompt([spaced], max_prompt_tokens=MANY) != keeps.prompt([bare], max_prompt_tokens=MANY)


def test_a_message_of_a_role_that_the_format_does_not_know_is_refused() -> None:
    with pytest.raises(OperatorError, match="no role 'tool'"):
        prompt_ids(PHI3_MINI, ChatMessage(Role.TOOL, "42"))


def test_a_trainers_truncation_in_the_tokenizer_file_cuts_nothing(tmp_path: Path) -> None:
    folder = CHATML.write(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    cut = Renderer.load(folder).prompt([SYSTEM, *TURNS], max_prompt_tokens=MANY).token_ids
    assert list(cut) == prompt_ids(CHATML, SYSTEM, *TURNS)


def change(made: Made, *changes: tuple[str, str]) -> Made:
    template = made.template
    for was, now in changes:
        assert was in template
        template = template.replace(was, now)
    return replace(made, template=template)


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
NOT_LAST = "{% if message['role'] == 'user' and not loop.last %}{{ '!' }}{% endif %}"
REFUSED = {
    "changes earlier turns": (ZEPHYR, "{{ '<|' +", NOT_LAST + "{{ '<|' +", "otherwise once a later turn"),
    "alters words": (GEMMA, "message['content'] | trim", "message['content'] | upper", "words of the user 0 times"),
    "alters line breaks": (ZEPHYR, "message['content']", "message['content'].replace('\n', ' ')", "alters the words"),
    "ends no answer": (ZEPHYR, "eos_token + ", "", "begins with no control token"),
    "opens answers with more": (ZEPHYR, "{{ '<|assistant|>\n' }}", "{{ '<|assistant|>\n<s>' }}", "otherwise"),
    "knows no system": (ZEPHYR, "{% for", NO_SYSTEM + "{% for", "no system here"),
    "reaches for the machine": (ZEPHYR, "{% for", "{{ messages.__class__.__mro__ }}{% for", "unsafe"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_template_whose_turns_cannot_be_told_apart_is_refused(why: str, tmp_path: Path) -> None:
    made, was, now, says = REFUSED[why]
    assert was in made.template
    with pytest.raises(OperatorError, match=says):
        Renderer.load(replace(made, template=made.template.replace(was, now)).write(tmp_path))


BOS_FIRST = replace(
    CHATML,
    name="internlm2-like",
    template="{{ bos_token }}" + CHATML.template,
    control=(AddedToken("<s>", special=True, normalized=False), *CHATML.control),
    bos="<s>",
)
THINK = "{% if loop.last and message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + "
THINKS = (
    "{% for message in messages %}" + THINK + "message['content'] + '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are made by nobody<|im_end|>\n' }}{% endif %}"
)


@pytest.mark.parametrize("turns", [(SYSTEM, *TURNS[:3]), TURNS[:3]], ids=["system", "no system"])
def test_a_known_formats_tokens_do_not_hide_that_the_template_begins_otherwise(turns: tuple[ChatMessage, ...]) -> None:
    renderer = renderer_of(BOS_FIRST)
    assert renderer.chat_format is ChatFormat.OWN_TEMPLATE
    ids = prompt_ids(BOS_FIRST, *turns)
    assert ids[0] == BOS_FIRST.tokenizer().token_to_id("<s>")
    assert ids == BOS_FIRST.tokenizer().encode(rendered(BOS_FIRST, turns), add_special_tokens=False).ids


def rendered(made: Made, turns: tuple[ChatMessage, ...]) -> str:
    template = read_template(folder_of(made))
    assert template is not None
    return template.render(turns, opens_answer=True)


def test_a_known_formats_tokens_do_not_hide_that_the_template_thinks_before_it_answers(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"opens later answers with .*<think>"):
        Renderer.load(replace(CHATML, template=THINKS).write(tmp_path))


def test_a_default_system_message_of_the_template_leaves_the_format_a_known_one(tmp_path: Path) -> None:
    folder = replace(CHATML, template=DEFAULT_SYSTEM + CHATML.template).write(tmp_path)
    assert Renderer.load(folder).chat_format is ChatFormat.CHATML


HOSTILE = {
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "a missing key": "{{ {}.pop('x') }}",
    "a missing place": "{{ [].pop() }}",
    "memory": "{{ 'x' * 100000000000000000 }}",
    "a wrong unpacking": "{% set a, b = 'x' %}",
    "syntax": "{% for %}",
    "an immense range": "{{ range(10 ** 30) | length }}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested small ranges": "{% for a in range(900) %}{% for b in range(900) %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("made", [CHATML, ZEPHYR], ids=lambda made: made.name)
@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_a_template_raises_is_a_refusal_that_names_its_file(made: Made, what: str, tmp_path: Path) -> None:
    folder = replace(made, template=HOSTILE[what]).write(tmp_path)
    with pytest.raises(OperatorError, match=r"chat_template\.jinja: the chat template cannot be rendered"):
        Renderer.load(folder)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no object"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"chat_template": 3}', "chat_template is int"),
        (b'{"chat_template": [{"name": "default"}]}', "without text"),
    ],
    ids=["cut off", "deep", "a list", "not UTF-8", "a number", "no text"],
)
def test_a_damaged_tokenizer_configuration_is_refused_by_its_name(held: bytes, says: str, tmp_path: Path) -> None:
    folder = CHATML.write(tmp_path)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_bytes(held)
    with pytest.raises(OperatorError, match=rf"tokenizer_config\.json: .*{says}"):
        Renderer.load(folder)


def test_a_student_without_a_template_and_of_no_known_format_is_refused(tmp_path: Path) -> None:
    folder = ZEPHYR.write(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(OperatorError, match="no chat template"):
        Renderer.load(folder)


def test_a_tokenizer_that_reads_typed_text_as_a_control_token_is_refused(tmp_path: Path) -> None:
    folder = CHATML.write(tmp_path)
    held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    held["model"] = {"type": "WordLevel", "vocab": {**held["model"]["vocab"], "<|im_end|>": 502}, "unk_token": "!"}
    held["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(OperatorError, match="would speak for the student"):
        Renderer.load(folder)
