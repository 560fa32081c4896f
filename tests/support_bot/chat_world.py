"""A small world to chat in: a record, a tokenizer of a few words, and settings that lead to a scripted student."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from scripted_student import ScriptedStudent
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from conversations import releases
from conversations.messages import utc_now
from conversations.releases import Load, Release, ReleaseKind, ReleaseState, ServerState
from conversations.store import Record
from support_bot.settings import SupportBotSettings, read_support_bot_settings

PASSWORD = "correct horse battery"
SYSTEM_PROMPT = "You are the assistant of Harbourline."


class ChatWorld:
    """One record with one server that has the base release loaded."""

    def __init__(self, folder: Path, *, serve: str = "") -> None:
        self.folder = folder
        self.settings_file = folder / "settings.toml"
        write_tokenizer(folder / "student")
        self.settings_file.write_text(
            '[record]\npath = "record.db"\n[student]\nbase = "student"\nprofile = "cpu"\n'
            f'[prompt]\nsystem = "{SYSTEM_PROMPT}"\n[serve]\nbrand = "Harbourline"\n{serve}',
            encoding="utf-8",
        )
        self.settings: SupportBotSettings = read_support_bot_settings(self.settings_file)
        self.record = Record(folder / "record.db")
        self.student = ScriptedStudent()
        self.base = releases.register_base(
            self.record, base="tiny", weights_path=str(folder / "student"), weights_digest="sha256:" + "ab" * 32
        )
        self.say_ready(self.base)
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._state = ServerState.READY
        self._heart.start()

    def say_ready(self, *release_ids: str) -> None:
        self._announce(ServerState.READY)
        for release_id in release_ids:
            releases.note_load(self.record, Load("server", release_id, True, ""))

    def say_down(self) -> None:
        self._state = ServerState.DOWN
        self._announce(ServerState.DOWN)

    def say_starting(self) -> None:
        self._state = ServerState.STARTING
        self._announce(ServerState.STARTING)

    def say_up(self) -> None:
        self._state = ServerState.READY
        self.say_ready(self.base)

    def new_release(self, release_id: str, kind: ReleaseKind = ReleaseKind.LORA) -> None:
        release = Release(
            release_id,
            None,
            "tiny",
            kind,
            str(self.folder / "student"),
            "sha256:" + release_id,
            {},
            utc_now(),
            ReleaseState.CANDIDATE,
        )
        releases.register(self.record, release, actor="test", reason="trained")
        self.say_ready(release_id)

    def close(self) -> None:
        self._over.set()
        self._heart.join()
        self.student.close()
        self.record.close()

    def _announce(self, state: ServerState) -> None:
        releases.announce_server(self.record, server_id="server", base_url=self.student.base_url, base="tiny", state=state)

    def _beat(self) -> None:
        while not self._over.wait(3):
            self._announce(self._state)


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the router light"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def start_pages(world: ChatWorld) -> "subprocess.Popen[bytes]":
    """Start `support-bot serve` and wait until both pages answer."""
    command = "from support_bot.cli import main; main()"
    with (world.folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--settings", str(world.settings_file)],
            env=os.environ | {"SUPPORT_BOT_CONSOLE_PASSWORD": PASSWORD},
            stderr=log,
        )
    table = world.settings.serve
    deadline = time.monotonic() + 90
    for port in (table.chat_port, table.console_port):
        while not _answers(port):
            assert process.poll() is None, (world.folder / "serve.log").read_text()
            assert time.monotonic() < deadline, "the pages did not come up"
            time.sleep(0.2)
    return process


def _answers(port: int) -> bool:
    import httpx

    try:
        httpx.get(f"http://127.0.0.1:{port}/login", timeout=2, trust_env=False)
    except httpx.TransportError:
        return False
    return True
