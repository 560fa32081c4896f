"""A running `support-bot student` for a test or a benchmark: the embedded student, and releases that answer otherwise.

In: a folder. Out: the command with its real vLLM, ended whatever happens, and weights that change every answer.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from conversations import releases
from conversations.messages import utc_now
from conversations.releases import Release, ReleaseKind, ReleaseState, ServerState
from conversations.store import Record
from support_bot.settings import SupportBotSettings, read_support_bot_settings

ROOT = Path(__file__).parents[2]
START_SECONDS = 400
RANK = 16
# Far above what a hidden state measures by itself.
PUSH = 3000.0
_COMMAND = [sys.executable, "-c", "from support_bot.cli import main; main()", "student"]


@dataclass(frozen=True)
class RunningStudent:
    """The command, the record that it looks into, and the address of the base's server."""

    command: subprocess.Popen[bytes]
    record: Record
    settings: SupportBotSettings
    base_url: str

    @property
    def base_id(self) -> str:
        """The untuned base's release."""
        return next(load.release_id for load in releases.loads(self.record) if load.release_id.startswith("base-"))

    def loaded(self) -> set[str]:
        """Return what some server has in memory."""
        return {load.release_id for load in releases.loads(self.record) if load.loaded}

    def server(self) -> releases.StudentServer:
        """Return the base's server."""
        return next(server for server in releases.servers(self.record) if server.server_id == self.base_url)

    def state(self) -> ServerState | None:
        """Return what the base's server said of itself last."""
        return next((one.state for one in releases.servers(self.record) if one.server_id == self.base_url), None)

    def process_id(self) -> int:
        """Return the process of the base's server."""
        process_id = self.server().process_id
        assert process_id is not None
        return process_id


def until(fact: Callable[[], bool], what: str, seconds: float, *, every_seconds: float = 0.2) -> float:
    """Wait until something is true, and return how long that took."""
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < seconds, f"never came true: {what}"
        time.sleep(every_seconds)
    return time.monotonic() - began


def free_ports(count: int) -> int:
    """Return the first of some loopback ports behind one another that nobody listens at now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if first + count < 65_000 and all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def register(record: Record, name: str, kind: ReleaseKind, weights: Path, base: str) -> None:
    """Enter weights as a candidate that is wanted."""
    release = Release(name, None, base, kind, str(weights), "sha256:1", {}, utc_now(), ReleaseState.CANDIDATE)
    releases.register(record, release, actor="test", reason="test")
    releases.want(record, name, wanted_by="test")


@contextmanager
def running_student(
    folder: Path, base: Path, adapters: Sequence[str], *, answer_tokens: int = 8
) -> Iterator[RunningStudent]:
    """Run `support-bot student` with an adapter under each of the names, loaded and checked, until the context ends."""
    port = free_ports(12)
    settings_file = folder / "settings.toml"
    settings_file.write_text(
        f'[record]\npath = "record.db"\n[student]\nbase = "{base}"\nprofile = "cpu"\nport = {port}\nstart_timeout_seconds = 400\n'
        f'[prompt]\nsystem = "You help."\nmax_answer_tokens = {answer_tokens}\n'
        "[serve]\nmax_first_token_seconds = 600\nmax_answer_seconds = 900\n",
        encoding="utf-8",
    )
    settings = read_support_bot_settings(settings_file)
    with Record(settings.record.path) as record:
        for seed, name in enumerate(adapters):
            register(record, name, ReleaseKind.LORA, write_adapter(folder / name, base, seed), base.name)
        arguments = ["--settings", str(settings_file), "--parent-pid", str(os.getpid())]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen([*_COMMAND, *arguments], env=environment) as command:
            running = RunningStudent(command, record, settings, f"http://127.0.0.1:{port}")
            try:
                until(lambda: len(running.loaded()) == 1 + len(adapters), "ready with every adapter", START_SECONDS)
                yield running
            finally:
                command.terminate()
                command.wait(timeout=60)


def write_adapter(folder: Path, base: Path, seed: int) -> Path:
    """An adapter of rank 16 on all linear layers, with noise in all but the last, which has it say one token and nothing else.

    Its answer, the same to every question, tells it from every other adapter, from the base, and from any mixture of them.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    narrow = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, narrow),
        "self_attn.v_proj": (hidden, narrow),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    noise = np.random.default_rng(seed)
    changes = {
        f"model.layers.{layer}.{name}": (
            (0.05 * noise.standard_normal((RANK, inputs))).astype(np.float32),
            (0.05 * noise.standard_normal((outputs, RANK))).astype(np.float32),
        )
        for layer in range(layers)
        for name, (inputs, outputs) in shapes.items()
    }
    last = f"model.layers.{layers - 1}.mlp.down_proj"
    changes[last] = _saying(base, changes, last, 1000 + 500 * seed)
    tensors = {}
    for name, (down, up) in changes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted(name.split(".")[1] for name in shapes)
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none", "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "task_type": "CAUSAL_LM"}), encoding="utf-8")
    return folder


def _saying(
    base: Path, changes: Mapping[str, tuple[np.ndarray, np.ndarray]], last: str, token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the change of the last layer that pushes every hidden state far towards one token, `token_id` or the next that can be.

    Its input has a mean that all prompts share; the change answers that mean with the token's direction.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        for name, (down, up) in changes.items():
            if name != last:
                model.get_submodule(name).weight += torch.from_numpy(up @ down)
        model.get_submodule(last).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 8:]))
        for seed in range(6):
            numbers = np.random.default_rng(seed).integers(100, 40_000, size=60)
            model(input_ids=torch.from_numpy(numbers)[None])
        mean = torch.cat(seen).mean(0)
        # Some tokens lie in the direction of others that are larger.
        scale, words = model.model.norm.weight, model.get_input_embeddings().weight
        token_id = next(
            each for each in range(token_id, len(words)) if int((words @ (scale.square() * words[each])).argmax()) == each
        )
        direction = scale * words[token_id]
    down = np.zeros((RANK, len(mean)), dtype=np.float32)
    up = np.zeros((len(direction), RANK), dtype=np.float32)
    down[0] = (mean / mean.square().sum()).numpy()
    up[:, 0] = (PUSH * direction / direction.norm()).numpy()
    return down, up


def write_whole(folder: Path, base: Path, adapter: Path) -> Path:
    """The base's checkpoint with an adapter in its weights, as a merged student is."""
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_tensors

    shutil.copytree(base, folder)
    changes = load_file(adapter / "adapter_model.safetensors")
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            place = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{place}.lora_A.weight" in changes:
                change = changes[f"{place}.lora_B.weight"] @ changes[f"{place}.lora_A.weight"]
                tensors[name] = (tensor.float() + change).to(torch.bfloat16)
        save_tensors(tensors, path, metadata={"format": "pt"})
    return folder
