"""The data of the study that chooses the training's defaults, made by the real stages on a machine with vLLM.

In: the demo, the embedded student and, where there is one already, a fully tuned SmolLM2. Out: a folder of small files that
`tests.bench.study` trains on anywhere. The teacher is that fully tuned student behind the real vLLM, because the handbook
teacher has no log-probabilities; where it is missing, the handbook teacher's run makes it. Killed, it goes on: replies are in
the record, and a training has its checkpoint.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conversations.exchange import imports
from conversations.settings import read_settings
from conversations.store import Record
from distill.cycle import perform_stage
from distill.rows import SOFT_LABELS_FILE, DatasetRow, SoftLabelRow, read_rows, rows_text
from distill.run import Stage, new_run, open_run, write_whole
from distill.settings import DistillSettings

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "demo"
HANDBOOK_PORT = "8101"
SERVER_SECONDS = 600
_TEACHING = (Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE)
_TUNED_TEACHER = """[teachers.tuned]
base_url = "http://127.0.0.1:{port}/v1"
model = "tuned"
licence_allows_training = "yes"
top_logprobs = 20
max_answer_tokens = 160
concurrency = 32
"""
_SERVER_SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "passive",
}


def prepare(out: Path, base: Path, teacher: Path | None, *, share: float) -> Path:
    """Make the study's folder and return it.

    `share` of the training conversations is kept, whole ones, drawn by their hash; held-out ones are all kept.
    """
    work = (out / "work").absolute()
    work.mkdir(parents=True, exist_ok=True)
    tuned = teacher or _tuned_student(work / "handbook", base.absolute())
    taught = _taught_by(work / "model", base.absolute(), tuned.absolute())
    write_study(taught, out, share=share)
    return out


def write_study(run_folder: Path, out: Path, *, share: float) -> None:
    """Write what trainings and marks need of a run that is assembled."""
    settings = read_settings(DistillSettings, run_folder.parents[1] / "settings.toml")
    assembled = run_folder / Stage.ASSEMBLE
    kept = [row for row in read_rows(assembled / "train.jsonl", DatasetRow) if _is_drawn(row.conversation_id, share)]
    write_whole(out / "train.jsonl", rows_text(kept))
    for name in ("validation", "test"):
        write_whole(out / f"{name}.jsonl", (assembled / f"{name}.jsonl").read_text(encoding="utf-8"))
    beliefs = assembled / SOFT_LABELS_FILE
    if beliefs.is_file():
        names = {row.decision_id for row in kept}
        soft = [row for row in read_rows(beliefs, SoftLabelRow) if row.decision_id in names]
        write_whole(out / SOFT_LABELS_FILE, rows_text(soft))
    study = {
        "settings": settings.train.model_dump(mode="json"),
        "max_prompt_tokens": settings.prompt.max_prompt_tokens,
        "max_answer_tokens": settings.evaluate.max_answer_tokens,
        "train_rows_share": share,
        **yardstick_of(settings),
    }
    write_whole(out / "study.json", json.dumps(study, ensure_ascii=False, indent=1) + "\n")


def yardstick_of(settings: DistillSettings) -> dict[str, object]:
    """Return what answers are held against as plain values, so that marking needs no handbook."""
    from distill.dataset.handbook.articles import Handbook

    assert settings.handbook is not None
    handbook = Handbook.load(settings.handbook.path)
    texts = {
        article.article_id: "\n".join([article.title, *(section.text for section in article.sections)])
        for article in handbook.articles
    }
    return {
        "facts": {name: fact.model_dump() for name, fact in handbook.facts.items()},
        "article_texts": texts,
        "declining_phrases": settings.verify.declining_phrases,
    }


def _is_drawn(conversation_id: str, share: float) -> bool:
    return int(hashlib.sha256(conversation_id.encode()).hexdigest()[:8], 16) < share * 2**32


def _tuned_student(world: Path, base: Path) -> Path:
    """Return the checkpoint of a student trained in all its weights on what the handbook teacher says."""
    settings_file = demo_settings(
        world, base, {"[train]\n": '[train]\nkind = "full"\n', "learning_rate = 2e-3": "learning_rate = 2e-4"}
    )
    with Record(world / "record.db") as record:
        found = _complete(world, Stage.TRAIN)
        if found is None:
            with serving(
                ["-c", "from distill.cli import main; main()", "teacher", "--settings", str(settings_file)],
                port_in(settings_file),
                world / "teacher.log",
            ):
                _perform(record, settings_file, (*_TEACHING, Stage.TRAIN))
            found = _complete(world, Stage.TRAIN)
    assert found is not None
    return found / Stage.TRAIN / "checkpoint"


def _taught_by(world: Path, base: Path, teacher: Path) -> Path:
    """Return the run in which the tuned student, behind vLLM, taught the demo's decisions."""
    settings_file = demo_settings(world, base, {'teacher = "handbook"': 'teacher = "tuned"'})
    if (found := _complete(world, Stage.ASSEMBLE)) is not None:
        return found
    port = port_in(settings_file)
    server = [
        "-m", "vllm.entrypoints.openai.api_server", "--model", str(teacher), "--served-model-name", "tuned",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048", "--dtype", "float32",
    ]  # fmt: skip
    with Record(world / "record.db") as record, serving(server, port, world / "vllm.log"):
        _perform(record, settings_file, _TEACHING)
    found = _complete(world, Stage.ASSEMBLE)
    assert found is not None
    return found


def _perform(record: Record, settings_file: Path, stages: tuple[Stage, ...]) -> None:
    """Import the demo and do stages of a run, the one that was begun or a new one; what was answered is not asked again."""
    imports.import_files(record, [DEMO / "conversations.jsonl"])
    settings = read_settings(DistillSettings, settings_file)
    begun = sorted(settings.runs.folder.glob("run_*"))
    going = open_run(record, settings, begun[0].name, show_progress) if begun else new_run(record, settings, show_progress)
    with going as run:
        for stage in stages:
            perform_stage(run, stage)


def _complete(world: Path, stage: Stage) -> Path | None:
    """Return the folder of a run in which a stage is finished."""
    found = sorted((world / "runs").glob(f"run_*/{stage}/manifest.json"))
    return found[0].parents[1] if found else None


def demo_settings(world: Path, base: Path, changes: dict[str, str]) -> Path:
    """Write the demo's settings for a folder of their own, once, and return the file."""
    path = world / "settings.toml"
    if path.is_file():
        return path
    world.mkdir(parents=True, exist_ok=True)
    port = str(_free_port())
    text = (DEMO / "settings.toml").read_text(encoding="utf-8")
    moved = {
        "../../var/demo/record.db": "record.db",
        "../../var/demo/runs": "runs",
        "../../var/students/smollm2-135m-instruct": str(base),
        'path = "handbook"': f'path = "{DEMO / "handbook"}"',
        HANDBOOK_PORT: port,
    }
    for old, new in {**moved, **changes}.items():
        assert old in text, f"the demo's settings no longer hold {old!r}"
        text = text.replace(old, new)
    write_whole(path, text + "\n" + _TUNED_TEACHER.format(port=port))
    return path


def port_in(settings_file: Path) -> int:
    """Return the port of the teachers of settings that `demo_settings` wrote."""
    return int(
        read_settings(DistillSettings, settings_file).teachers["tuned"].base_url.rsplit(":", 1)[1].removesuffix("/v1")
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(arguments: list[str], port: int, log: Path) -> Iterator[None]:
    """Hold a server of this Python open; it is listening when this begins and gone when it ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments, *(["--port", str(port)] if "--port" not in arguments else [])],
            stdout=out,
            stderr=out,
            env={**os.environ, **_SERVER_SWITCHES},
        )
    try:
        deadline = time.monotonic() + SERVER_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server on port {port} did not start; {log} says why")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def show_progress(stage: Stage, share: float, note: str) -> None:
    """Print how far a stage is, every twentieth of it."""
    if share in (0.0, 1.0) or int(share * 1000) % 50 == 0:
        print(f"{stage}: {share:.0%} {note}", file=sys.stderr, flush=True)
