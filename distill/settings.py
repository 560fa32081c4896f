"""The tables that the teaching room reads, one a stage, each with proven defaults.

In: the settings file. Out: frozen models. Teacher, student, paths and gates have no hidden defaults.
"""

from typing import Literal

from pydantic import Field

from conversations.settings import (
    PromptTable,
    RecordTable,
    RedactionTable,
    RoomSettings,
    SettingsPath,
    StudentTable,
    Table,
)


class RunsTable(Table):
    """Where the folders of runs are kept."""

    folder: SettingsPath


class HandbookTable(Table):
    """What the company has written down: a folder of Markdown, or a JSON Lines file with `id, title, text`."""

    path: SettingsPath


class TeacherTable(Table):
    """One teacher: an OpenAI-compatible endpoint, its price and its licence."""

    base_url: str
    model: str
    api_key_variable: str = Field(default="", description="the environment variable with the key; empty: none needed")
    kind: Literal["model", "handbook"] = "model"
    licence_allows_training: Literal["yes", "no", "unknown"]
    prompt_usd_per_million: float = Field(default=0.0, ge=0)
    completion_usd_per_million: float = Field(default=0.0, ge=0)
    max_answer_tokens: int = Field(default=400, ge=16)
    temperature: float = Field(default=0.0, ge=0, le=2)
    concurrency: int = Field(default=8, ge=1)
    timeout_seconds: float = Field(default=120, gt=0)
    handbook_passages: int = Field(default=0, ge=0, description="passages put before the teacher, never the student")


class ChooseTable(Table):
    """Which turns are worth teaching, and how they are split."""

    validation_share: float = Field(default=0.06, ge=0, lt=1)
    test_share: float = Field(default=0.22, ge=0, lt=1)
    learn_from_unknown_consent: bool = False
    min_question_words: int = Field(default=3, ge=1)
    split_salt: str = Field(
        default="", description="empty: the record's own, drawn at random; given: splits can be made again"
    )
    near_duplicate_jaccard: float = Field(default=0.5, gt=0, le=1)
    max_decisions: int = Field(default=50_000, ge=1)


class TeachTable(Table):
    """How the teacher is asked, and what may be spent in one run."""

    teacher: str = Field(description="a name of the table [teachers]")
    max_cost_usd: float = Field(ge=0)
    max_calls: int = Field(ge=1)
    allow_unknown_licence: bool = False
    smoke_decisions: int = Field(default=16, ge=1)
    max_smoke_failures: int = Field(default=1, ge=0)
    instruction: str = ""


class VerifyTable(Table):
    """What an answer must be to be learnt."""

    max_answer_words: int = Field(default=160, ge=1)
    min_answer_words: int = Field(default=2, ge=1)
    declining_phrases: tuple[str, ...] = ("I don't know", "I do not know", "not in my handbook")
    max_declined_share: float = Field(default=0.5, ge=0, le=1)


class AssembleTable(Table):
    """How accepted answers become sets."""

    max_rows_per_answer: int = Field(default=200, ge=1, description="how often one answer text may stand in training")
    study_handbook: bool = Field(
        default=True, description="whether the student learns the handbook's articles themselves too"
    )


class TrainTable(Table):
    """How the student is fine-tuned."""

    kind: Literal["lora", "full"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    learning_rate: float | None = Field(default=None, gt=0, description="empty: proven for the student's size")
    schedule: Literal["linear", "cosine"] = "linear"
    epochs: float = Field(default=2.0, gt=0)
    last_layers: int | None = Field(
        default=None, ge=1, description="how many of the student's layers learn, from the last one; empty: all"
    )
    max_whole_per_answer: int | None = Field(
        default=None,
        ge=1,
        description="rows an epoch that spell the same answer out; the others teach its opening; empty: all",
    )
    opening_tokens: int = Field(default=8, ge=1, description="what the opening of an answer is")
    rows_per_step: int = Field(default=16, ge=1)
    token_budget_per_batch: int = Field(default=2048, ge=64)
    max_tokens: int = Field(default=2048, ge=64)
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    validate_every_tokens: int = Field(default=20_000, ge=1)
    patience: int = Field(default=4, ge=1)
    checkpoint_every_steps: int = Field(default=10, ge=1)
    threads: int | None = Field(default=None, ge=1, description="empty: every core")


class EvaluateTable(Table):
    """How candidate, released student, base and teacher are measured."""

    quality_metric: str = "fact_accuracy"
    concurrency: int = Field(default=16, ge=1)
    timed_decisions: int = Field(default=8, ge=1, description="asked one at a time, for latency")
    max_answer_tokens: int = Field(default=96, ge=8)
    bootstrap_samples: int = Field(default=2000, ge=100)
    load_timeout_seconds: float = Field(default=180, gt=0)
    server_usd_per_hour: float = Field(ge=0, description="what an hour of the student's machine costs")


class PromoteTable(Table):
    """The gate. A release goes into service only when every bound holds."""

    min_retained: float = Field(ge=0, description="lower bound of the share of the teacher's quality that is kept")
    max_wrong_fact_rate: float = Field(ge=0, le=1)
    max_loss_to_released: float = Field(
        ge=0, description="how much worse than the release in service it may be, lower bound"
    )
    min_decisions: int = Field(default=50, ge=1)
    max_latency_p95_ms: float | None = Field(default=None, gt=0)


class ScheduleTable(Table):
    """When a cycle is due by itself."""

    every_hours: float = Field(default=24.0, gt=0)
    min_new_conversations: int = Field(default=50, ge=1)
    poll_seconds: float = Field(default=2.0, gt=0)


class DistillSettings(RoomSettings):
    """Everything that the `distill` commands read."""

    record: RecordTable
    student: StudentTable
    prompt: PromptTable
    redaction: RedactionTable = RedactionTable()
    runs: RunsTable
    handbook: HandbookTable | None = None
    teachers: dict[str, TeacherTable]
    choose: ChooseTable = ChooseTable()
    teach: TeachTable
    verify: VerifyTable = VerifyTable()
    assemble: AssembleTable = AssembleTable()
    train: TrainTable = TrainTable()
    evaluate: EvaluateTable
    promote: PromoteTable
    schedule: ScheduleTable = ScheduleTable()
