"""Tokenizers and chat templates made for the tests: the control tokens, their flags and the templates' logic as published.

The words behind them are trained on a few lines. A real tokenizer differs in its vocabulary alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_LINES = [
    "My box blinks violet and nothing works. Wait a moment, please hold the pin for ten seconds.",
    "system user assistant\n\nWhat costs 12 €? And now?\tYes. No idea, sorry.",
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
]
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Made:
    """A chat format's tokenizer: its template, and what the template writes behind a conversation that ends with an answer."""

    name: str
    template: str
    control: tuple[AddedToken, ...]
    bos: str
    eos: str
    tail: str
    is_sentencepiece: bool = False

    def write(self, folder: Path) -> Path:
        """Write the folder of a student that has only its tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")
        config = {"bos_token": self.bos, "eos_token": self.eos, "tokenizer_class": "TokenizersBackend"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    def tokenizer(self) -> Tokenizer:
        """Train the tokenizer, which takes a few hundredths of a second."""
        if self.is_sentencepiece:
            tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            tokenizer.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
            specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
            trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
            tokenizer.train_from_iterator(_LINES, trainer)
            held = json.loads(tokenizer.to_str())
            held["added_tokens"] = []
            tokenizer = Tokenizer.from_str(json.dumps(held))
        else:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
            tokenizer.train_from_iterator(_LINES, trainer)
        for token in self.control:
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        return tokenizer


def _token(content: str, *, special: bool = True, rstrip: bool = False) -> AddedToken:
    return AddedToken(content, special=special, rstrip=rstrip, normalized=False)


_PHI4_ROLES = tuple(_token(f"<|{name}|>", rstrip=True) for name in ("assistant", "end", "user", "system"))
_PHI4_TOOLS = ("tool", "/tool", "tool_call", "/tool_call", "tool_response")
PHI4_MINI = Made(
    "phi4-mini",
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
    (_token("<|endoftext|>"), *_PHI4_ROLES, *(_token(f"<|{name}|>", special=False) for name in _PHI4_TOOLS)),
    "<|endoftext|>",
    "<|endoftext|>",
    "<|endoftext|>",
)
_PHI3_TURNS = (
    "{% for message in messages %}{% if message['role'] == 'system'SYSTEM_CONDITION %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_PHI3_NAMES = (
    "assistant", "placeholder1", "placeholder2", "placeholder3", "placeholder4", "system", "end", "placeholder5", "placeholder6",
    "user",
)  # fmt: skip
_PHI3_CONTROL = (
    _token("<unk>"),
    _token("<s>"),
    _token("</s>", special=False, rstrip=True),
    _token("<|endoftext|>"),
    *(_token(f"<|{name}|>", rstrip=True) for name in _PHI3_NAMES),
)
PHI3_5_MINI = Made(
    "phi3.5-mini",
    _PHI3_TURNS.replace("SYSTEM_CONDITION", " and message['content']"),
    _PHI3_CONTROL,
    "<s>",
    "<|endoftext|>",
    "<|endoftext|>",
    is_sentencepiece=True,
)
# The 4k and the 128k model have one tokenizer and one template.
PHI3_MINI = Made(
    "phi3-mini",
    _PHI3_TURNS.replace("SYSTEM_CONDITION", ""),
    _PHI3_CONTROL,
    "<s>",
    "<|endoftext|>",
    "<|endoftext|>",
    is_sentencepiece=True,
)
_LLAMA3_NAMES = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "python_tag")
_LLAMA3_1_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n{%- set date_string = '26 Jul 2024' %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n{%- set system_message = messages[0]['content']|trim %}\n"
    "{%- set messages = messages[1:] %}\n{%- else %}\n{%- set system_message = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
    "{{- 'Cutting Knowledge Date: December 2023\\n' }}\n{{- 'Today Date: ' + date_string + '\\n\\n' }}\n"
    "{{- system_message }}\n{{- '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)
LLAMA3_1 = Made(
    "llama3.1",
    _LLAMA3_1_TEMPLATE,
    tuple(_token(f"<|{name}|>") for name in (*_LLAMA3_NAMES, "finetune_right_pad_id", "eom_id", "reserved_special_token_0")),
    "<|begin_of_text|>",
    "<|eot_id|>",
    "",
)
LLAMA3 = Made(
    "llama3",
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    tuple(_token(f"<|{name}|>") for name in (*_LLAMA3_NAMES[:-1], "reserved_special_token_0")),
    "<|begin_of_text|>",
    "<|eot_id|>",
    "",
)
CHATML = Made(
    "chatml",
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    tuple(_token(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "<|im_start|>",
    "<|im_end|>",
    "\n",
)
FORMATS = (PHI4_MINI, PHI3_5_MINI, PHI3_MINI, LLAMA3_1, LLAMA3, CHATML)

# Formats that are known by their templates alone.
GEMMA = Made(
    "gemma-like",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ '<start_of_turn>system\n' + messages[0]['content'] | trim + "
    "'<end_of_turn>\n' }}{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    tuple(_token(name) for name in ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")),
    "<bos>",
    "<eos>",
    "\n",
)
ZEPHYR = Made(
    "zephyr-like",
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    (_token("<unk>"), _token("<s>"), _token("</s>")),
    "<s>",
    "</s>",
    "\n",
    is_sentencepiece=True,
)
