"""The tables that the teaching room reads, one a stage, each with proven defaults.

In: the settings file. Out: frozen models. Teacher, student, paths and gates have no hidden defaults.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ConfigDict, Field, model_validator

from conversations.artefacts import TOKEN_CACHE_FOLDER
from conversations.settings import (
    PromptTable,
    RecordTable,
    RedactionTable,
    RoomSettings,
    SettingsPath,
    StudentTable,
    Table,
)

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger


class RunsTable(Table):
    """Where the folders of runs are kept."""

    folder: SettingsPath


class HandbookTable(Table):
    """What the company has written down: a folder of Markdown, or a JSON Lines file with `id, title, text`."""

    path: SettingsPath


class TeacherTable(Table):
    """One teacher: an OpenAI-compatible endpoint, or the people in the record; its price, its pace and its licence."""

    kind: Literal["model", "handbook", "logged"] = "model"
    base_url: str = ""
    model: str = ""
    family: str = Field(default="", description="whose model it is, such as 'gpt' or 'llama'; empty: told by its name")
    api_key_variable: str = Field(default="", description="the environment variable with the key; empty: none needed")
    licence_allows_training: Literal["yes", "no", "unknown"]
    prompt_usd_per_million: float = Field(default=0.0, ge=0)
    cached_prompt_usd_per_million: float | None = Field(
        default=None, ge=0, description="for prompt tokens that the provider had in its cache; empty: as others"
    )
    completion_usd_per_million: float = Field(default=0.0, ge=0)
    batch_price_share: float = Field(default=0.5, gt=0, le=1, description="what a request costs in a batch, of its price")
    max_answer_tokens: int = Field(default=400, ge=16)
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float = Field(default=0.0, ge=0, le=2)
    omit_temperature: bool = Field(default=False, description="for models that take no temperature")
    seed: int | None = None
    top_logprobs: int = Field(default=0, ge=0, le=20, description="log-probabilities asked for with each token")
    concurrency: int = Field(default=8, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    timeout_seconds: float = Field(default=120, gt=0)
    handbook_passages: int = Field(default=0, ge=0, description="passages put before the teacher, never the student")
    logged_authors: tuple[Literal["operator", "imported"], ...] = Field(
        default=("operator",),
        description="whose logged replies a teacher of the kind `logged` gives; imported may be a bot's",
    )

    @model_validator(mode="after")
    def _has_an_address(self) -> "TeacherTable":
        if self.kind != "logged" and not (self.base_url and self.model):
            raise ValueError("base_url and model are missing; only a teacher of kind 'logged' needs neither")
        address = urlsplit(self.base_url)
        if self.kind != "logged" and not (address.scheme in ("http", "https") and address.hostname):
            raise ValueError(f"base_url is {self.base_url!r}; expected http:// or https:// and a host; mend it")
        return self


class JudgeTable(Table):
    """Who compares and grades answers, and what counts as good."""

    teacher: str = Field(description="a name of the table [teachers]; best not of the family of the teacher it judges")
    rubric: str = "Is the answer right, complete, and of use to this customer? Does it stay with what is known?"
    min_grade: int = Field(
        default=6,
        ge=1,
        le=10,
        description="the floor: of the answers of [teach] best_of none below it is taken; one teacher alone is not graded",
    )
    reject_worse_than_logged: bool = True
    concurrency: int = Field(default=8, ge=1)


class DatasetsTable(Table):
    """Training data out of files instead of the record's conversations."""

    task: Literal["conversation", "qa", "summarization", "nli", "math"]
    train: SettingsPath
    validation: SettingsPath | None = None
    test: SettingsPath | None = Field(default=None, description="empty: the validation file's rows are held out as the test")


class ChooseTable(Table):
    """Which turns are worth teaching, and how they are split."""

    validation_share: float = Field(default=0.06, ge=0, lt=1)
    test_share: float = Field(default=0.22, ge=0, lt=1)
    learn_from_unknown_consent: bool = False
    min_question_words: int = Field(default=3, ge=1)
    max_history_messages: int = Field(default=200, ge=1, description="before an answer; no teacher reads more with profit")
    split_salt: str = Field(
        default="", description="empty: the record's own, drawn at random; given: splits can be made again"
    )
    near_duplicate_jaccard: float = Field(default=0.5, gt=0, le=1)
    near_duplicate_cosine: float = Field(
        default=0.92, gt=0, le=1, description="questions that mean the same so nearly are twins; 1: by wording alone"
    )
    largest_cluster_share: float = Field(
        default=0.2, gt=0, le=1, description="a cluster that holds more of the record is for training"
    )
    max_twins: int = Field(default=8, ge=1, description="how many near-duplicates of one question are taught")
    max_decisions: int = Field(default=50_000, ge=1)
    max_topic_share: float = Field(default=0.25, gt=0, le=1, description="of what is chosen, once the limit binds")
    ordinary_share: float = Field(default=0.3, ge=0, le=1, description="for plain coverage, once the limit binds")
    low_confidence_logprob: float = Field(default=-1.2, lt=0, description="mean log-probability of a token of a reply")
    taught_before: Literal["again", "leave_out"] = Field(
        default="again", description="what becomes of training decisions that an earlier, complete run taught"
    )
    person_weight: float = Field(default=3.0, gt=0, description="of what a person answered, in training")


class TeachTable(Table):
    """How the teacher is asked, and what may be spent in one run, the judge included."""

    teacher: str = Field(description="a name of the table [teachers]")
    fallback: tuple[str, ...] = Field(
        default=(), description="who is asked, in order, for what the one before did not answer"
    )
    best_of: tuple[str, ...] = Field(default=(), description="who answers every decision too; the judge picks the best")
    people_first: bool = Field(default=True, description="take what a person has answered, and ask no teacher")
    transport: Literal["chat", "batch"] = "chat"
    batch_poll_seconds: float = Field(default=30.0, gt=0)
    max_batch_requests: int = Field(default=5000, ge=1, le=50_000)
    max_cost_usd: float = Field(ge=0, allow_inf_nan=False)
    max_calls: int = Field(ge=1)
    max_tokens: int | None = Field(default=None, ge=1, description="prompt and completion tokens together; empty: no cap")
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
    policy_topics: tuple[str, ...] = Field(default=(), description="topics or words where a refusal is wanted")
    refusal_phrases: tuple[str, ...] = Field(default=(), description="beyond the built-in ones")
    same_language: bool = Field(default=True, description="whether an answer must be in the question's language")
    grounding: Literal["numbers", "sentences"] = Field(
        default="numbers", description="what the handbook must hold: numbers and codes, or what every sentence says"
    )
    near_copy_jaccard: float = Field(
        default=0.8, gt=0, le=1, description="an answer so like those of another topic is a copy of them"
    )


class AssembleTable(Table):
    """How accepted answers become sets."""

    max_rows_per_answer: int = Field(default=200, ge=1, description="how often one answer text may stand in training")
    max_topic_share: float = Field(
        default=0.5, gt=0, le=1, description="of the training rows; more are left out and counted"
    )
    max_depth_share: float = Field(
        default=0.9, gt=0, le=1, description="of the training rows, for first turns and for later ones"
    )
    unknown_answer: str = Field(
        default="I don't know that, so I'm passing this to a colleague.",
        description="taught where the handbook does not answer; empty: such questions are left out",
    )
    study_handbook: bool = Field(
        default=True, description="whether the student learns the handbook's articles themselves too"
    )


class LocalTeacherTable(Table):
    """A teacher whose weights are on this machine: the student learns all of its belief, and how it looks, not its words alone."""

    path: SettingsPath = Field(description="a Hugging Face checkpoint folder with the student's own tokenizer")
    logits_weight: float = Field(default=0.5, ge=0, le=1, description="of its whole belief about each word, in the loss")
    relations_weight: float = Field(
        default=0.0, ge=0, description="of how one upper layer relates tokens (MiniLM), beside the loss"
    )
    relation_heads: int = Field(default=8, ge=1)
    teacher_layer: int | None = Field(default=None, ge=1, description="counted from 1; empty: the last but one")
    student_layer: int | None = Field(default=None, ge=1, description="counted from 1; empty: the last")


class TrainTable(Table):
    """How the student is fine-tuned."""

    kind: Literal["lora", "full"] = "lora"
    start_from: Literal["base", "release"] = Field(
        default="base", description="the base student, or the release in service, whose adapter learns on"
    )
    replay_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="of the training rows: accepted answers of earlier runs that this one does not teach",
    )
    soft_weight: float = Field(
        default=0.5, ge=0, le=1, description="of a teacher's log-probabilities in the loss, where it gave them"
    )
    temperature: float = Field(
        default=1.0, ge=0.1, le=20, allow_inf_nan=False, description="of the soft labels; 1: as the teacher said them"
    )
    local_teacher: LocalTeacherTable | None = None
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    rank_stabilised: bool = Field(
        default=False, description="divide alpha by the root of the rank (rsLoRA), not by the rank"
    )
    merged: bool = Field(default=False, description="whether the adapter is also written merged into the base")
    gradient_checkpointing: bool | None = Field(
        default=None, description="compute activations twice instead of keeping them; empty: where they would not fit"
    )
    processes: int | None = Field(default=None, ge=1, le=64, description="empty: one for each GPU, and one on a CPU")
    learning_rate: float | None = Field(
        default=None, gt=0, le=10, allow_inf_nan=False, description="empty: proven for the student's size"
    )
    schedule: Literal["linear", "cosine"] = "linear"
    epochs: float = Field(default=2.0, gt=0, le=1000, allow_inf_nan=False)
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
    token_budget_per_batch: int | None = Field(
        default=None, ge=64, description="tokens computed together, padding included; empty: 1024 on a CPU, 8192 on a GPU"
    )
    max_tokens: int = Field(default=2048, ge=64)
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    clip_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    validate_every_tokens: int = Field(default=20_000, ge=1)
    patience: int = Field(default=4, ge=1)
    checkpoint_every_steps: int = Field(default=10, ge=1)
    threads: int | None = Field(default=None, ge=1, le=1024, description="empty: every core that it may use")
    nice: int = Field(
        default=15,
        ge=0,
        le=19,
        description="how far a training gives way to the student's server and everybody else; 0: not at all",
    )


class TuneTable(Table):
    """What `distill tune` tries beside the present [train] settings. An empty list leaves its setting as it is."""

    # The check below refuses what is no number in plainer words, and names the whole list.
    model_config = ConfigDict(allow_inf_nan=True)

    trials: int = Field(default=16, ge=1, description="the present settings are the first")
    learning_rate_factors: tuple[float, float] | tuple[()] = Field(
        default=(0.2, 5.0), description="lowest and highest, of the present rate"
    )
    ranks: tuple[int, ...] = Field(
        default=(8, 16, 32, 64), description="of adapters, up to [student] max_lora_rank; alpha grows with the rank"
    )
    epochs: tuple[float, ...] = (1.0, 2.0, 3.0)
    soft_weights: tuple[float, float] | tuple[()] = Field(
        default=(0.0, 0.9), description="lowest and highest; tried where a teacher gave log-probabilities"
    )
    replay_shares: tuple[float, float] | tuple[()] = Field(
        default=(0.0, 0.3), description="lowest and highest; tried where there are earlier answers to replay"
    )
    first_look_share: float = Field(
        default=0.25, gt=0, le=1, description="of the present settings' tokens: after these the worse trials are given up"
    )
    survivors: int = Field(default=3, ge=2, description="one in so many trials goes on after each look")
    repeats: int = Field(default=2, ge=0, description="further seeds for the best and the present settings, to tell chance")

    @model_validator(mode="after")
    def _can_be_tried(self) -> "TuneTable":
        for name, limits, most in (
            ("learning_rate_factors", self.learning_rate_factors, 100.0),
            ("soft_weights", self.soft_weights, 1.0),
            ("replay_shares", self.replay_shares, 0.99),
        ):
            if limits and not 0 <= limits[0] <= limits[1] <= most:
                raise ValueError(f"{name} is {list(limits)}; expected the lowest and the highest, from 0 to {most:g}")
        if (self.learning_rate_factors and self.learning_rate_factors[0] == 0) or min((*self.epochs, *self.ranks, 1)) <= 0:
            raise ValueError("a learning rate, a rank and a number of epochs must be above 0")
        too_many = [each for each in self.epochs if not each <= 100]
        if too_many:
            raise ValueError(f"epochs has {too_many[0]}; expected numbers of epochs up to 100")
        return self


class EvaluateTable(Table):
    """How candidate, released student, base and teacher are measured."""

    quality_metric: str = Field(
        default="fact_accuracy", description="in which the share of the teacher that is kept is told; as the task has it"
    )
    concurrency: int = Field(default=16, ge=1)
    timed_decisions: int = Field(
        default=20, ge=1, description="asked one at a time, for latency; [promote] max_latency_p95_ms needs 20"
    )
    max_answer_tokens: int | None = Field(default=None, ge=8, description="empty: as customers get, [prompt] says it")
    bootstrap_samples: int = Field(default=2000, ge=100, le=20_000)
    load_timeout_seconds: float = Field(
        default=180,
        gt=0,
        description="until a release is loaded; a merged or full one starts a vLLM of its own, which takes longer",
    )
    judged_decisions: int = Field(
        default=200, ge=0, description="at most so many are graded and compared by the judge of [judge]; 0: none"
    )
    load_levels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 4, 16, 64), min_length=1, description="requests at once, for `distill evaluate --load`"
    )
    load_seconds: float = Field(default=60, gt=0, description="at each level, for `distill evaluate --load`")
    server_usd_per_hour: float = Field(ge=0, description="what an hour of the student's machine costs")


class PromoteTable(Table):
    """The gate. A release goes into service only when every bound holds; a floor of 0 and a rate's ceiling of 1 bound nothing."""

    min_retained: float = Field(ge=0, description="lower bound of the share of the teacher's quality that is kept")
    max_wrong_fact_rate: float = Field(ge=0, le=1, description="upper bound")
    max_loss_to_released: float = Field(
        ge=0, description="how much worse than the release in service it may be, lower bound of the difference"
    )
    min_decisions: int = Field(default=50, ge=1)
    max_topic_loss: float = Field(
        default=0.2, ge=0, description="how much worse than the release in service no topic may surely be"
    )
    min_topic_decisions: int = Field(default=5, ge=2, description="a topic with fewer is not looked at alone")
    max_leak_rate: float = Field(default=0.0, ge=0, le=1, description="upper bound; 0: none may be seen")
    max_format_fault_rate: float = Field(default=0.1, ge=0, le=1, description="upper bound")
    max_declined_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="upper bound, of questions that the handbook answers; empty: 0.25 where there is a handbook",
    )
    max_failed_rate: float = Field(default=0.02, ge=0, le=1, description="of decisions that it gave no answer to")
    max_latency_p95_ms: float | None = Field(default=None, gt=0)
    max_memory_gb: float | None = Field(default=None, gt=0, description="of the process that serves it, 1 GB = 10^9 bytes")
    canary_share: float = Field(
        default=0.0, ge=0, le=1, description="of new conversations, before a release that passed gets all; 0: all at once"
    )


class CanaryTable(Table):
    """When a canary is taken back by itself, and when it has passed."""

    max_error_rate: float = Field(default=0.05, ge=0, le=1)
    max_thumbs_down_rate: float = Field(default=0.5, ge=0, le=1)
    min_turns: int = Field(default=20, ge=1)
    hours: float = Field(default=24.0, gt=0)


class ScheduleTable(Table):
    """When a cycle is due by itself."""

    every_hours: float = Field(default=24.0, gt=0)
    min_new_conversations: int = Field(default=50, ge=1)
    poll_seconds: float = Field(default=2.0, gt=0)
    cron: str = Field(
        default="", description="when a cycle that is due may start, such as '0 3 * * mon-fri'; empty: at any time"
    )
    timezone: str = Field(default="UTC", description="whose clock `cron` goes by, such as 'Europe/Berlin'")
    cron_minutes: float = Field(default=60.0, gt=0, description="how long after such a time it may still start")

    @model_validator(mode="after")
    def _is_a_time(self) -> "ScheduleTable":
        if self.cron and self.trigger().get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError(f"cron is {self.cron!r}, a time that never comes; expected a day that its month has")
        return self

    def trigger(self) -> "CronTrigger":
        """Return the times at which a cycle that is due may start.

        Raises ValueError for an expression, or a time zone, that is none.
        """
        from apscheduler.triggers.cron import CronTrigger

        try:
            zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"timezone is {self.timezone!r}; expected a name such as 'Europe/Berlin'") from None
        try:
            trigger = CronTrigger.from_crontab(self.cron, timezone=zone)
        except ValueError as error:
            raise ValueError(
                f"cron is {self.cron!r}: {error}; expected minute, hour, day, month and weekday, such as '0 3 * * mon-fri'"
            ) from None
        # Cron counts weekdays from Sunday, and APScheduler from Monday.
        if re.search(r"(?<![/\d])\d", self.cron.split()[4]):
            raise ValueError(f"cron is {self.cron!r}: a weekday is a name here, such as sun or mon-fri, never a number")
        return trigger


class DistillSettings(RoomSettings):
    """Everything that the `distill` commands read."""

    record: RecordTable
    student: StudentTable
    prompt: PromptTable
    redaction: RedactionTable = RedactionTable()
    runs: RunsTable
    handbook: HandbookTable | None = None
    teachers: dict[str, TeacherTable]
    judge: JudgeTable | None = None
    datasets: DatasetsTable | None = None
    choose: ChooseTable = ChooseTable()
    teach: TeachTable
    verify: VerifyTable = VerifyTable()
    assemble: AssembleTable = AssembleTable()
    train: TrainTable = TrainTable()
    tune: TuneTable = TuneTable()
    evaluate: EvaluateTable
    promote: PromoteTable
    canary: CanaryTable = CanaryTable()
    schedule: ScheduleTable = ScheduleTable()


def handbook_vectors(settings: DistillSettings) -> Path:
    """Return the folder that keeps the embeddings of the handbook, beside the runs; it can be made again at any time."""
    return settings.runs.folder / "handbook_vectors"


def token_cache(settings: DistillSettings) -> Path:
    """Return the folder that keeps rows as token ids, beside the runs; it can be made again at any time, and an erasure knows it."""
    return settings.runs.folder / TOKEN_CACHE_FOLDER
