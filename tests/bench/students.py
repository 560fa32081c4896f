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
from collections.abc import Callable, Iterator, Sequence
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
    """A random adapter of rank 16 on all linear layers, strong enough to change every answer."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
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
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in shapes.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{place}.lora_A.weight"] = (0.05 * noise.standard_normal((16, inputs))).astype(np.float32)
            tensors[f"{place}.lora_B.weight"] = (0.05 * noise.standard_normal((outputs, 16))).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted(name.split(".")[1] for name in shapes)
    adapter = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none", "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "task_type": "CAUSAL_LM"}), encoding="utf-8")
    return folder


def write_whole(folder: Path, base: Path, seed: int) -> Path:
    """The base's checkpoint with noise in its weights, strong enough to change every answer, as a merged student would be."""
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_tensors

    shutil.copytree(base, folder)
    noise = torch.Generator().manual_seed(seed)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if ".layers." in name and tensor.ndim == 2:
                spread = 0.3 * tensor.float().std()
                tensors[name] = (tensor.float() + spread * torch.randn(tensor.shape, generator=noise)).to(tensor.dtype)
        save_tensors(tensors, path, metadata={"format": "pt"})
    return folder
