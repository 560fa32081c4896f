"""Small versions of the benchmarks, so that the commands that print the published figures cannot rot."""

import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.bench import beside, choose, cycles, cycles_data, gate, intervals, kills, online, record, study, teach, train
from tests.bench.study_trial import Trial
from tests.distill.tiny_student import tiny_student, write_dataset


@pytest.mark.slow
def test_the_record_is_measured_and_nothing_is_lost_under_eight_writers() -> None:
    found = record.figures([2000], times=2, paged=200, each=50)
    ours = found["transactions"]["record"]
    assert (ours["errors"], ours["lost"]) == (0, 0)
    assert found["migrations at once"] == {"processes": 8, "errors": 0}
    figures = found["2000 turns"]["record"]
    assert figures["conversations paged"] == 200
    assert {"search p95, ms", "import, turns a second", "export, peak MB", "verify, s"} <= set(figures)
    record.show(found)


@pytest.mark.slow
def test_online_figures_are_measured_and_a_bad_canary_goes_sooner_than_a_good_one() -> None:
    found = online.figures(2000, canaries=50, answers=100)
    assert found["speed"]["answers since ever"] == 1000
    rules = found["rules"]
    assert rules["1% of answers fail"]["taken back"] < rules["10% of answers fail"]["taken back"] <= 1
    assert rules["50% of answers fail"] == {"taken back": 1, "after answers, median": 20}


@pytest.mark.slow
def test_nothing_that_was_committed_is_missing_after_kills_at_random_moments() -> None:
    found = kills.figures(5, seed=int.from_bytes(os.urandom(4), "big"))
    assert found["problems"] == [], found
    assert (found["kills"], found["missing"], found["unclean"]) == (5, 0, 0)
    assert found["told_committed"] > 100


@pytest.mark.slow
def test_the_figures_are_one_json_object_on_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.record", "--turns", "1000", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert "search p95, ms" in done.stderr


def test_redaction_prints_its_figures_as_json_also_of_real_conversations(tmp_path: Path) -> None:
    line = {"messages": [{"role": "user", "content": "write to jo@example.com or call +44 20 7946 0123"}]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "tests.bench.redaction",
        "--of-each-kind",
        "20",
        "--ordinary",
        "50",
        "--data",
        str(tmp_path),
    ]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["files"]["talks.jsonl"]["by_kind"] == {"EMAIL": 1, "PHONE": 1}
    assert all(kind["recall"] >= 0.98 for kind in found["kinds"].values())


@pytest.mark.slow
def test_choosing_and_assembling_are_measured_part_by_part() -> None:
    found = choose.figures([40])
    figures = found["40 conversations"]
    assert figures["chosen"] == figures["assembled"] > 50
    assert figures["candidates"] == figures["chosen"] + sum(n for name, n in figures.items() if name.startswith("left out"))
    parts = ("read", "cluster", "embed", "select", "redact", "write")
    assert {f"choose: {part}, s" for part in parts} | {"choose, peak MB", "assemble, peak MB"} <= set(figures)
    choose.show(found)


@pytest.mark.slow
def test_teaching_is_measured_beside_the_plain_client() -> None:
    found = teach.figures(200, rounds=1)
    assert {"teach", "gather, openai client"} <= found["ways"].keys()
    teach.show(found)


@pytest.mark.slow
def test_cycles_are_measured_by_how_each_goes_on_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    base = tiny_student(tmp_path / "student")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    # A byte tokenizer makes rows longer than so small a student has positions.
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}), encoding="utf-8")
    data = cycles_data.prepare(tmp_path / "data", base, share=0.1)
    bench = cycles.Bench(data, base, "cpu", batch_size=8, epochs=0.1, most_questions=2)
    found = cycles.figures(bench)
    lines = found["cycles"]
    assert [line["started_from"] for line in lines.values()] == ["base"] * 3 + ["base", "cycle-1", "cycle-2"] * 2
    base_rows, kept, replayed = ([lines[f"{way}: cycle {cycle}"] for cycle in (1, 2, 3)] for way in cycles.USUAL)
    assert base_rows[2]["rows"] == sum(line["rows"] for line in kept) == kept[2]["rows"] + replayed[2]["of"]
    assert kept[2]["replayed"] == 0 < replayed[2]["replayed"] < replayed[2]["of"]
    assert all(line["old topics"]["n"] and line["new topics"]["n"] for line in (base_rows[2], kept[2], replayed[2]))
    cycles.show(found)
    together = cycles.over_seeds([bench], cycles.USUAL)
    of_replay = together["learn on, replay 0.2: cycle 3"]
    assert of_replay["old topics"] == lines["learn on, replay 0.2: cycle 3"]["old topics"]
    assert of_replay["old topics, change"] and together["base, everything again: cycle 3"]["old topics, change"] is None
    cycles.show({"cycles": together})
    done = {path: path.stat().st_mtime_ns for path in data.rglob("result.json")}
    assert len(done) == 7 and cycles.figures(bench)["cycles"] == lines
    assert {path: path.stat().st_mtime_ns for path in data.rglob("result.json")} == done


@pytest.mark.slow
def test_training_is_measured_beside_trl_on_the_same_rows() -> None:
    names = ["ours, tree", "TRL, tuned"]
    options = train.options_of(["--model", "tiny", "--conversations", "2", "1", "--rounds", "1", "--cases", *names])
    found = train.figures(options)
    for turns in ("5", "10"):
        assert list(found["by turns"][turns]) == names, found["runs"]
        assert found["by turns"][turns]["ours, tree"]["times TRL, tuned"] > 0
        ours, trl = ({line["row_tokens"] for line in found["runs"][name] if line["turns"] == int(turns)} for name in names)
        assert ours == trl
    train.show(found)


@pytest.mark.slow
def test_customers_and_a_training_are_measured_beside_each_other() -> None:
    class Student(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(0.1)
            body = json.dumps({"choices": [{"token_ids": [1] * asked["max_tokens"]}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    options = Namespace(model="tiny", seconds=2.0, at_once=2, trainings=["ours"])
    with ThreadingHTTPServer(("127.0.0.1", 0), Student) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = beside.served_figures(f"http://127.0.0.1:{server.server_port}", options)
        server.shutdown()
    assert list(found) == ["alone", "beside a training ours"]
    meanwhile = found["beside a training ours"]
    assert meanwhile["one who thinks, p50 s"] > 0 and meanwhile["2 at once, trained tokens/s"] > 0
    trained = beside.training_figures(options)
    assert all(speed > 0 for speed in trained["ours"].values())
    beside.show({"rounds": [{"trainings": trained, "servers": {"scripted": found}}]})


@pytest.mark.slow
def test_study_of_the_defaults_trains_answers_and_compares_and_repeats_nothing(tmp_path: Path) -> None:
    base = tiny_student(tmp_path / "student")
    for name, conversations in (("train", 6), ("validation", 2), ("test", 3)):
        write_dataset(tmp_path / f"{name}.jsonl", conversations)
    asked = (tmp_path / "test.jsonl").read_text(encoding="utf-8")
    fact = {"fact_id": "box.shelf", "says": "on a shelf", "match": ["shelf"]}
    labels = json.dumps({"answerable": True, "articles": ["box"], "facts": [fact]})
    (tmp_path / "test.jsonl").write_text(asked.replace('"labels": {}', f'"labels": {labels}'), encoding="utf-8")
    shared = {
        "settings": {"rows_per_step": 4, "max_tokens": 256, "threads": 1}, "max_prompt_tokens": 200, "max_answer_tokens": 8,
        "train_rows_share": 1.0, "facts": {}, "article_texts": {}, "declining_phrases": [],
    }  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps(shared), encoding="utf-8")
    trials = [
        Trial(tmp_path, base, variant, 0, {**study.BASELINE_SETTINGS, **study.VARIANTS[variant]}, "cpu", 4)
        for variant in ("baseline", "epochs 1.0")
    ]
    assert study.run(trials, parallel=1) == []
    results = [(trial.folder / "result.json").stat().st_mtime_ns for trial in trials]
    assert study.run(trials, parallel=1) == []
    assert results == [(trial.folder / "result.json").stat().st_mtime_ns for trial in trials]
    found = study.figures(trials)["variants"]
    # Of the teacher's six answers three tell of a shelf; what a student of random weights says tells nothing.
    change = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 6, "conversations": 3}
    assert found["epochs 1.0"]["its change"] == change
    assert found["epochs 1.0"]["kept of teacher"]["value"] == 0.0
    assert found["epochs 1.0"]["tokens"] * 2 == found["baseline"]["tokens"]
    assert found["epochs 1.0"]["validation loss"] != found["baseline"]["validation loss"]
    study.show(study.figures(trials))


def test_the_intervals_of_reports_hold_the_truth_where_plain_percentiles_do_not() -> None:
    found = intervals.figures([8], editions=60)["8 conversations"]
    assert found["share kept"] >= 90 > found["share kept, plain percentiles"]


@pytest.mark.slow
def test_the_gate_lets_hardly_any_worse_candidate_through_and_nothing_unmeasured() -> None:
    found = gate.figures(gate.made_up_conversations(), 100, sizes=(120,), margins=(0.05,), floors=(0.85,))
    for worse in (*found["worse"].values(), *found["clearly worse"].values(), *found["floor"].values()):
        assert worse["n=120"]["promoted"] <= 5, worse
    assert found["equal"]["equal, margin 5%"]["n=120"]["promoted"] > 0
    assert found["n=10"] == {"promote": 0, "refuse": 0, "inconclusive": 200}
    assert found["judge down"]["promote"] == 0
    # The simulation sees what it is there to see: the plain bootstrap lets such candidates through.
    alone = found["worse"]["worse by the margin of 5%, losses alone, whole conversations"]["n=120"]
    assert alone["bootstrap would promote"] > 5
    gate.show(found)
