"""The data of three cycles with new topics arriving in each, made by the real stages on a machine that can embed texts.

In: the demo. Out: a folder of small files that `tests.bench.cycles` trains on anywhere: for each way of going on and each cycle the
training, validation and replay rows of a real run. The topics are dealt to three groups; a conversation comes in with the newest
topic that it speaks of. Two records live through the cycles: in one every run starts from the base and teaches everything again,
in the other each run learns on from the release before it and leaves out what that knows. The handbook is not studied beside the
conversations: what is kept of an old topic is kept by its conversations alone. Killed, it goes on with the run that is missing.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from conversations import releases, runs
from conversations.exchange import imports
from conversations.messages import utc_now
from conversations.releases import Release, ReleaseKind, ReleaseState
from conversations.settings import read_settings
from conversations.store import Record
from distill.cycle import perform_stage
from distill.dataset.handbook.articles import Handbook
from distill.run import Run, Stage, new_run, read_json, write_whole
from distill.settings import DistillSettings
from tests.bench.study_data import DEMO, demo_settings, port_in, serving, show_progress, yardstick_of

CYCLES = 3
# How the settings of each record differ from the demo's.
RECORDS = {
    "again": {},
    "chain": {
        "[choose]\n": '[choose]\ntaught_before = "leave_out"\n',
        "[train]\n": '[train]\nstart_from = "release"\n',
    },
}
_NO_STUDY = {"[evaluate]\n": "[assemble]\nstudy_handbook = false\n\n[evaluate]\n"}
_KEPT = ("train.jsonl", "validation.jsonl", "test.jsonl", "replay.jsonl")


def prepare(out: Path, base: Path, *, share: float) -> Path:
    """Make the folder and return it. `share` of each group's conversations is taken, the first of them in the demo's file."""
    made = out / "cycles.json"
    if made.is_file() and read_json(made)["share"] != share:
        raise SystemExit(
            f"{out}: was made of a share of {read_json(made)['share']} of the demo, and {share} is asked for; remove it"
        )
    arrivals = _arrivals(out, share)
    for name, changes in RECORDS.items():
        world = out.absolute() / "work" / name
        settings_file = demo_settings(world, base.absolute(), {**_NO_STUDY, **changes})
        command = ["-c", "from distill.cli import main; main()", "teacher", "--settings", str(settings_file)]
        if all((out / name / f"cycle-{cycle}" / "rows.json").is_file() for cycle in range(1, CYCLES + 1)):
            continue
        with Record(world / "record.db") as record, serving(command, port_in(settings_file), world / "teacher.log"):
            for cycle in range(1, CYCLES + 1):
                if not (out / name / f"cycle-{cycle}" / "rows.json").is_file():
                    _one_run(record, settings_file, arrivals[:cycle], out / name / f"cycle-{cycle}")
    settings = read_settings(DistillSettings, out.absolute() / "work" / "again" / "settings.toml")
    told = {
        "settings": settings.train.model_dump(mode="json"),
        "max_prompt_tokens": settings.prompt.max_prompt_tokens,
        "max_answer_tokens": settings.evaluate.max_answer_tokens,
        "share": share,
        "group_of": _group_of_articles(),
        "yardstick": yardstick_of(settings),
    }
    write_whole(made, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    return out


def _one_run(record: Record, settings_file: Path, arrived: Sequence[Path], out: Path) -> None:
    """Import what has arrived, do a run up to its data set, and put its release into service, as a promotion would."""
    imports.import_files(record, list(arrived))
    settings = read_settings(DistillSettings, settings_file)
    with new_run(record, settings, show_progress) as run:
        for stage in (Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE):
            perform_stage(run, stage)
    starts_from = run.manifest(Stage.CHOOSE).details["starts_from"]
    release_id = f"cycle-{out.name[-1]}"
    release = Release(
        release_id, run.run_id, settings.student.base.name, ReleaseKind.LORA, str(run.folder / "train" / "adapter"), "", {},
        utc_now(), ReleaseState.CANDIDATE, str(starts_from) if starts_from else None,
    )  # fmt: skip
    releases.register(record, release, actor="cycles", reason="made for the benchmark; trained by its second part")
    (run.folder / "train" / "adapter").mkdir(parents=True, exist_ok=True)
    releases.promote(record, release_id, actor="cycles", reason="made for the benchmark")
    runs.finish_run(record, run.run_id, state=runs.RunState.COMPLETE, outcome="promote")
    out.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        write_whole(out / name, (run.folder / Stage.ASSEMBLE / name).read_text(encoding="utf-8"))
    write_whole(out / "rows.json", json.dumps(_told(run), indent=1) + "\n")


def _told(run: Run) -> dict[str, object]:
    """Return what the manifests say of a run, and from which release it starts."""
    chosen, assembled = run.manifest(Stage.CHOOSE), run.manifest(Stage.ASSEMBLE)
    return {
        "starts_from": chosen.details["starts_from"] or releases.STARTED_FROM_BASE,
        "taught_before": chosen.counts.rejected_by_reason.get("taught_before", 0),
        "rows": assembled.details["rows"],
        "replay": assembled.details["replay"],
        "test_edition": assembled.details["test_edition"],
        "seconds": sum(run.manifest(stage).seconds for stage in (Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE)),
    }


def _group_of_articles() -> dict[str, int]:
    """Deal the handbook's topics, the largest first, to the groups, so that each holds as many articles as another."""
    articles: dict[str, list[str]] = {}
    for article in Handbook.load(DEMO / "handbook").articles:
        articles.setdefault(article.topic, []).append(article.article_id)
    groups: list[list[str]] = [[] for _ in range(CYCLES)]
    for topic in sorted(articles, key=lambda name: (-len(articles[name]), name)):
        min(groups, key=len).extend(articles[topic])
    return {article: number for number, group in enumerate(groups, start=1) for article in group}


def _arrivals(out: Path, share: float) -> list[Path]:
    """Write the conversations of each cycle into a file of their own and return the files."""
    group_of = _group_of_articles()
    lines: list[list[str]] = [[] for _ in range(CYCLES)]
    for line in (DEMO / "conversations.jsonl").read_text(encoding="utf-8").splitlines():
        noted = json.loads(line)["labels"]["turns"]
        spoken_of = [group_of[article] for turn in noted for article in turn["articles"] if article in group_of]
        lines[max(spoken_of, default=1) - 1].append(line)
    files = []
    for number, of_group in enumerate(lines, start=1):
        kept = of_group[: max(1, round(share * len(of_group)))]
        files.append(write_whole(out / "arrivals" / f"group-{number}.jsonl", "".join(line + "\n" for line in kept)))
    return files
