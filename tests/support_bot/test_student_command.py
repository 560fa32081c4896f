"""Promises of `support-bot student` before a server starts, of its command line, and of choosing a server."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_vllm import ScriptedVllm
from tokenizers import Tokenizer
from tokenizers.models import BPE

from conversations import releases
from conversations.errors import OperatorError, OutsideError
from conversations.messages import utc_now
from conversations.prompt import Renderer
from conversations.releases import Load, Release, ReleaseKind, ReleaseState, ServerState
from conversations.serving import RopeFactors, Served, Serving, digest_of_tokenizer, write_serving
from conversations.settings import StudentTable
from conversations.store import Record
from support_bot.checkpoint import weights_digest
from support_bot.routing import any_server_ready, choose_server
from support_bot.serving.whole_release import whole_room, whole_student, why_whole_unfit
from support_bot.vllm import check_serving, server_command, server_environment, server_url

COMMAND = [sys.executable, "-c", "from support_bot.cli import main; main()", "student"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    tokenizer = Tokenizer(BPE())
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def settings_file(tmp_path: Path, student_lines: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[record]\npath = "record.db"\n\n[student]\nbase = "tiny"\nprofile = "cpu"\n{student_lines}\n\n'
        '[prompt]\nsystem = "You help."\n',
        encoding="utf-8",
    )
    return path


def run_student(settings: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--settings", str(settings)], capture_output=True, text=True, timeout=60, check=False, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "400", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_base_without_its_files_is_one_clear_error_and_leaves_no_record(
    tmp_path: Path, checkpoint: Path, missing: str
) -> None:
    (checkpoint / missing).unlink()
    ended = run_student(settings_file(tmp_path, ""))
    assert ended.returncode == 2
    assert ended.stderr.startswith("error:") and str(checkpoint / missing) in ended.stderr and "make env" in ended.stderr
    assert not (tmp_path / "record.db").exists()


def test_a_used_port_is_one_clear_error_and_leaves_no_record(tmp_path: Path, checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_student(settings_file(tmp_path, f"port = {port}"))
    assert ended.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use ([student] port)" in ended.stderr
    assert not (tmp_path / "record.db").exists()


def test_a_server_address_with_a_path_is_refused_with_an_example(tmp_path: Path, checkpoint: Path) -> None:
    ended = run_student(settings_file(tmp_path, 'servers = ["http://127.0.0.1:1/v1"]'))
    assert ended.returncode == 2
    assert "without /v1" in ended.stderr


def test_a_prompt_and_an_answer_that_exceed_the_context_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    ended = run_student(settings_file(tmp_path, "max_model_len = 512"))
    assert ended.returncode == 2
    assert "1792 tokens" in ended.stderr and "allows 512" in ended.stderr


def test_a_release_that_would_be_dropped_before_its_conversations_have_rested_is_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    ended = run_student(settings_file(tmp_path, "keep_hours = 6"))
    assert ended.returncode == 2
    assert "keep_hours = 6" in ended.stderr and "rest_hours = 12" in ended.stderr


def serve_only_short(folder: Path, **changes: object) -> None:
    """Make the checkpoint a merged student with LongRoPE that was trained with the short factors."""
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps({"rope_parameters": rope}), encoding="utf-8")
    serving = Serving(
        kind="merged",
        base="tiny",
        base_digest="sha256:1",
        tokenizer_digest=digest_of_tokenizer(folder),
        prompt_digest=Renderer.load(folder).digest,
        max_model_len=4096,
        rope_factors=RopeFactors.SHORT,
        rank=None,
        dtype="bfloat16",
    )
    write_serving(folder, serving.model_copy(update=changes))


def test_a_context_that_would_switch_the_factors_of_a_trained_student_is_refused(checkpoint: Path) -> None:
    serve_only_short(checkpoint)
    check_serving(StudentTable(base=checkpoint, profile="cpu", max_model_len=4096))
    with pytest.raises(OperatorError, match=r"max_model_len = 4097.*long LongRoPE factors.*max_model_len = 4096"):
        check_serving(StudentTable(base=checkpoint, profile="cpu", max_model_len=4097))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer_digest": "sha256:other"}, "not the tokenizer"),
        ({"prompt_digest": "other"}, "prompts with the digest other.* with the digest [0-9a-f]{64};"),
        ({"kind": "lora"}, "an adapter and no whole student"),
    ],
)
def test_a_trained_student_with_another_tokenizer_other_prompts_or_an_adapter_alone_is_no_base(
    checkpoint: Path, changes: dict[str, str], says: str
) -> None:
    serve_only_short(checkpoint, **changes)
    with pytest.raises(OperatorError, match=says):
        check_serving(StudentTable(base=checkpoint, profile="cpu"))


def test_a_trained_student_that_does_not_say_its_prompts_is_served(checkpoint: Path) -> None:
    serve_only_short(checkpoint)
    path = checkpoint / "serving.json"
    old = json.loads(path.read_text(encoding="utf-8"))
    del old["prompt_digest"]
    path.write_text(json.dumps(old), encoding="utf-8")
    check_serving(StudentTable(base=checkpoint, profile="cpu", max_model_len=4096))


@pytest.mark.parametrize(
    "argument",
    [
        "--hf-overrides.rope_theta=1", "--hf_overrides.rope+", "--hf-overrides-extra", "--max-model", "--max_model=9", "--mod",
        "--config", "--config=x.yaml", "--hf-config-path", "--served-model-name", "--no-enable-lora", "--enable_lora", "--quant",
        "--quantization=fp8", "-q", "-qfp8", "--revision", "--max-model-len=8192", "--dtype",
    ],
)  # fmt: skip
def test_whatever_vllm_can_read_as_an_argument_of_ours_is_refused(checkpoint: Path, argument: str) -> None:
    with pytest.raises(OperatorError, match="extra_arguments has"):
        check_serving(StudentTable(base=checkpoint, profile="cpu", extra_arguments=("--max-num-seqs", "8", argument)))


def test_arguments_of_which_the_settings_know_nothing_are_passed_on(checkpoint: Path) -> None:
    arguments = ("--max-num-seqs=8", "--enforce-eager", "--compilation-config.level", "0", "--tokenizer-mode", "auto", "-O1")
    check_serving(StudentTable(base=checkpoint, profile="cpu", extra_arguments=arguments))


@pytest.mark.parametrize("argument", ["--max_model_len", "--hf-overrides"])
def test_an_argument_that_would_overrule_the_settings_is_refused_before_a_record_is_made(
    tmp_path: Path, checkpoint: Path, argument: str
) -> None:
    ended = run_student(settings_file(tmp_path, f'extra_arguments = ["{argument}"]'))
    assert ended.returncode == 2
    assert argument in ended.stderr and "extra_arguments" in ended.stderr
    assert not (tmp_path / "record.db").exists()


@pytest.mark.parametrize("end", ["signal", "parent"])
def test_the_command_ends_on_a_signal_or_with_its_parent_and_leaves_attached_servers_alone(
    tmp_path: Path, checkpoint: Path, end: str
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    digest = weights_digest(checkpoint, tmp_path / "cache.json").removeprefix("sha256:")
    try:
        with ScriptedVllm(f"base-{digest[:10]}") as vllm:
            settings = settings_file(tmp_path, f'servers = ["{vllm.base_url}"]')
            arguments = ["--settings", str(settings), "--json", "--parent-pid", str(parent.pid)]
            with subprocess.Popen(
                [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
            ) as command:
                assert command.stderr is not None and command.stdout is not None
                lines = iter(command.stderr.readline, "")
                ready = next(line for line in lines if "is ready with base-" in line)
                assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC student: ", ready)
                if end == "signal":
                    command.send_signal(signal.SIGTERM)
                else:
                    parent.kill()
                    parent.wait()
                assert command.wait(timeout=20) == 0
                answer = json.loads(command.stdout.read())
            assert answer["base_release_id"] == f"base-{digest[:10]}"
            assert answer["servers"] == [{"base_url": vllm.base_url, "starts": 1}]
    finally:
        parent.kill()
        parent.wait()
    with Record(tmp_path / "record.db") as record:
        assert [server.state for server in releases.servers(record)] == [ServerState.DOWN]
        assert releases.in_service(record) == answer["base_release_id"]


def test_the_digest_follows_the_weights_and_is_kept_between_starts(tmp_path: Path, checkpoint: Path) -> None:
    cache = tmp_path / "cache.json"
    first = weights_digest(checkpoint, cache)
    kept = json.loads(cache.read_text(encoding="utf-8"))
    cache.write_text(json.dumps({**kept, "digest": "sha256:from-the-cache"}), encoding="utf-8")
    assert weights_digest(checkpoint, cache) == "sha256:from-the-cache"
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    changed = weights_digest(checkpoint, cache)
    assert changed not in (first, "sha256:from-the-cache")
    cache.write_text("{ not json", encoding="utf-8")
    assert weights_digest(checkpoint, cache) == changed


def test_the_cpu_server_is_told_its_cache_and_shares_its_cores_with_training(checkpoint: Path) -> None:
    student = StudentTable(base=checkpoint, profile="cpu", kv_cache_gib=3, extra_arguments=("--max-num-seqs", "8"))
    command = server_command(student, "base-1")
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert "--gpu-memory-utilization" not in command
    assert command[-2:] == ["--max-num-seqs", "8"]
    variables = server_environment(student)
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_whole_release_is_served_without_adapters_with_its_own_port_and_share(checkpoint: Path, tmp_path: Path) -> None:
    student = StudentTable(base=checkpoint, profile="gpu", port=8100, gpu_memory_share=0.4, whole_gpu_memory_share=0.25)
    state = ReleaseState.CANDIDATE
    release = Release("merged-1", None, "tiny", ReleaseKind.MERGED, str(tmp_path / "w"), "", {}, utc_now(), state)
    command = server_command(whole_student(release, student, 8110), "merged-1", has_adapters=False)
    told = dict(itertools.pairwise(command))
    assert not [argument for argument in command if "lora" in argument]
    assert (told["--model"], told["--port"]) == (str(tmp_path / "w"), "8110")
    assert (told["--served-model-name"], told["--gpu-memory-utilization"]) == ("merged-1", "0.25")


def test_a_gpu_has_room_for_as_many_whole_releases_as_fit_beside_the_base(checkpoint: Path) -> None:
    def room(**settings: object) -> int:
        return whole_room(StudentTable(base=checkpoint, profile="gpu", **settings)).servers

    assert room(gpu_memory_share=0.45) == 1
    assert room(gpu_memory_share=0.4, whole_gpu_memory_share=0.2) == 3
    assert room(gpu_memory_share=0.4, whole_gpu_memory_share=0.2, max_whole_servers=2) == 2
    assert room(gpu_memory_share=0.9) == 0
    assert whole_room(StudentTable(base=checkpoint, profile="cpu")).servers == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("weights", "no weights in it"),
        ("tokenizer", "its tokenizer is"),
        ("base", "made for the base 'another'"),
        ("factors", "LongRoPE factors"),
        ("nothing", ""),
    ],
)
def test_a_whole_release_that_would_be_served_otherwise_than_trained_is_told_apart(
    checkpoint: Path, tmp_path: Path, change: str, says: str
) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(checkpoint, folder)
    student = StudentTable(base=checkpoint, profile="cpu")
    served = Served(
        base_digest="sha256:1",
        tokenizer_digest=digest_of_tokenizer(checkpoint),
        prompt_digest=Renderer.load(checkpoint).digest,
        max_model_len=2048,
        rope_factors=RopeFactors.NONE,
        max_lora_rank=16,
    )
    if change == "weights":
        (folder / "model.safetensors").unlink()
    elif change == "tokenizer":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    elif change == "factors":
        serve_only_short(folder)
        student = StudentTable(base=checkpoint, profile="cpu", max_model_len=8192)
    base = "another" if change == "base" else "tiny"
    state = ReleaseState.CANDIDATE
    release = Release("merged-1", None, base, ReleaseKind.MERGED, str(folder), "", {}, utc_now(), state)
    why = why_whole_unfit(release, student, served, "base-1")
    assert says in why and bool(why) == bool(says)


def test_the_gpu_server_shares_its_memory_with_training_and_gets_no_variable_for_cpus(checkpoint: Path) -> None:
    student = StudentTable(base=checkpoint, profile="gpu", gpu_memory_share=0.4)
    command = server_command(student, "base-1")
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.4"
    assert command[command.index("--dtype") + 1] == "bfloat16"
    assert not [name for name in server_environment(student) if name.startswith("VLLM_CPU") and name not in os.environ]


def test_a_server_that_listens_everywhere_is_reached_on_loopback(checkpoint: Path) -> None:
    assert server_url(StudentTable(base=checkpoint, profile="cpu", host="0.0.0.0", port=8100)) == "http://127.0.0.1:8100"
    assert server_url(StudentTable(base=checkpoint, profile="cpu", host="::1", port=8100)) == "http://[::1]:8100"


def test_a_server_that_others_reach_under_a_name_announces_that_name(checkpoint: Path) -> None:
    student = StudentTable(base=checkpoint, profile="cpu", host="0.0.0.0", announce_host="student", port=8100)
    assert server_url(student) == "http://student:8100"
    command = server_command(student, "base-1")
    assert command[command.index("--host") + 1] == "0.0.0.0"


def announce(record: Record, address: str, release_id: str | None, state: ServerState = ServerState.READY) -> None:
    releases.announce_server(record, server_id=address, base_url=address, base="tiny", state=state, detail="as told")
    if release_id is not None:
        releases.note_load(record, Load(address, release_id, True, ""))


@pytest.fixture
def release_id(tmp_path: Path) -> str:
    with Record(tmp_path / "record.db") as record:
        state = ReleaseState.CANDIDATE
        release = Release("release-1", None, "tiny", ReleaseKind.LORA, "/weights", "sha256:1", {}, utc_now(), state)
        releases.register(record, release, actor="test", reason="test")
    return "release-1"


def test_servers_that_have_the_release_take_turns(tmp_path: Path, release_id: str) -> None:
    with Record(tmp_path / "record.db") as record:
        announce(record, "http://a", release_id)
        announce(record, "http://b", release_id)
        announce(record, "http://c", None)
        chosen = [choose_server(record, release_id).base_url for _ in range(4)]
    assert sorted(chosen) == ["http://a", "http://a", "http://b", "http://b"]
    assert chosen[0] != chosen[1]


def test_a_server_that_did_not_answer_is_avoided_where_another_has_the_release(tmp_path: Path, release_id: str) -> None:
    with Record(tmp_path / "record.db") as record:
        announce(record, "http://a", release_id)
        announce(record, "http://b", release_id)
        assert {choose_server(record, release_id, {"http://a"}).base_url for _ in range(4)} == {"http://b"}
        with pytest.raises(OutsideError, match="no other student server than http://a, http://b has 'release-1' loaded"):
            choose_server(record, release_id, {"http://a", "http://b"})


def test_a_release_that_no_server_has_is_refused_with_what_the_servers_are_doing(tmp_path: Path, release_id: str) -> None:
    with Record(tmp_path / "record.db") as record:
        with pytest.raises(OutsideError, match="start `support-bot student`"):
            choose_server(record, release_id)
        announce(record, "http://a", None, ServerState.STARTING)
        assert not any_server_ready(record)
        with pytest.raises(
            OutsideError, match=r"no student server has 'release-1' loaded; http://a is starting \(as told\)"
        ):
            choose_server(record, release_id)


def test_a_server_whose_supervisor_fell_silent_is_not_chosen(tmp_path: Path, release_id: str) -> None:
    with Record(tmp_path / "record.db") as record:
        announce(record, "http://a", release_id)
        assert choose_server(record, release_id).base_url == "http://a"
        with record.write() as transaction:
            transaction.execute("UPDATE student_servers SET heartbeat_at_utc = '2020-01-01T00:00:00.000Z'")
        with pytest.raises(OutsideError):
            choose_server(record, release_id)
