"""The settings file: one TOML file, one table per stage or room, read strictly.

In: a path. Out: frozen pydantic models. Unknown, missing and mistyped keys are errors that name the table and the nearest
key. Relative paths are resolved against the settings file. Secrets come from the environment only. This module owns the
tables that both rooms need and the reading itself; each room declares its own tables.
"""

import difflib
import hashlib
import json
import os
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

import phonenumbers
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from conversations.errors import OperatorError
from conversations.redaction import KIND, RedactionRules

# Every table of the file, so that a misspelt one is noticed by each command, whichever tables it reads itself.
TABLES = (
    "record", "student", "prompt", "redaction", "serve", "runs", "handbook", "teachers", "judge", "datasets", "choose",
    "teach", "verify", "assemble", "train", "tune", "evaluate", "promote", "canary", "schedule",
)  # fmt: skip
SETTINGS_VARIABLE = "SUPPORT_BOT_SETTINGS"
DEFAULT_SETTINGS = Path("settings.toml")


# The folder of the file that is being read; pydantic-settings passes no context to validators.
_folder: ContextVar[Path | None] = ContextVar("settings_folder", default=None)


def _beside_settings(path: Path) -> Path:
    folder = _folder.get()
    return path if path.is_absolute() or folder is None else Path(os.path.normpath(folder / path))


SettingsPath = Annotated[Path, AfterValidator(_beside_settings)]


class Table(BaseModel):
    """One table of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecordTable(Table):
    """Where the record is."""

    path: SettingsPath


class StudentTable(Table):
    """Which small model answers customers and is taught, and how vLLM serves it."""

    base: SettingsPath = Field(description="a Hugging Face checkpoint folder")
    profile: Literal["cpu", "gpu"]
    host: str = "127.0.0.1"
    announce_host: str = Field(
        default="", description="under which name other machines or pods reach the servers, where that is not `host`"
    )
    port: int = Field(default=8100, ge=1, le=65535)
    servers: tuple[str, ...] = ()
    max_model_len: int = Field(default=2048, ge=256)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_lora_rank: int = 16
    max_loras: int = 2
    kv_cache_gib: int = 1
    gpu_memory_share: float = Field(default=0.45, gt=0, le=1)
    keep_hours: float = Field(
        default=24, gt=0, description="how long after a conversation's last word its release stays in the servers' memory"
    )
    max_whole_servers: int = Field(
        default=3,
        ge=0,
        description="how many merged or fully tuned releases are served at once, each by a vLLM of its own: the one in service, the "
        "one before it, and a candidate",
    )
    whole_port: int | None = Field(
        default=None, ge=1, le=65535, description="the first port of those servers; without it, ten above `port`"
    )
    whole_gpu_memory_share: float | None = Field(
        default=None, gt=0, le=1, description="what each of those takes of a GPU; without it, as much as `gpu_memory_share`"
    )
    start_timeout_seconds: float = 600
    extra_arguments: tuple[str, ...] = ()

    @field_validator("servers")
    @classmethod
    def _are_addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for address in servers:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
                raise ValueError(
                    f"{address!r} is not the address of a server; expected one such as 'http://127.0.0.1:8100', without /v1"
                )
        return servers


class PromptTable(Table):
    """What a student is told and how long its prompt and its answer may be."""

    system: str
    max_prompt_tokens: int = Field(default=1536, ge=64)
    max_answer_tokens: int = Field(default=256, ge=8)
    temperature: float = Field(default=0.0, ge=0, le=2)


class RedactionTable(Table):
    """What counts as personal beyond the built-in kinds.

    The chat and `distill` both read the first three; what only the second pass finds, the chat leaves as it is.
    """

    regions: tuple[str, ...] = Field(default=(), description="countries whose own telephone numbers customers write")
    patterns: dict[str, str] = Field(
        default_factory=dict, description="a regular expression by kind, for order and account numbers: ORDER = '...'"
    )
    names_file: SettingsPath | None = Field(
        default=None, description="people's names, one a line, in UTF-8; read once, when a command starts"
    )
    second_pass: bool = Field(default=True, description="whether Presidio looks too, in `distill` alone")
    spacy_model: str = Field(
        default="",
        description="an installed spaCy model that finds people's names in the second pass; empty: none are looked for",
    )

    @field_validator("regions")
    @classmethod
    def _are_countries(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        for region in regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ValueError(f"{region!r} is no country code of ISO 3166 such as 'GB'")
        return regions

    @field_validator("patterns")
    @classmethod
    def _can_be_searched(cls, patterns: dict[str, str]) -> dict[str, str]:
        for kind, pattern in patterns.items():
            if not KIND.fullmatch(kind):
                raise ValueError(f"the kind {kind!r} must be a capital letter and up to 19 capital letters or digits")
            try:
                finds_nothing = re.search(pattern, "")
            except re.error as error:
                raise ValueError(f"{kind}: {error}") from None
            if finds_nothing:
                raise ValueError(f"{kind}: the pattern matches where there is nothing")
        return patterns

    @field_validator("names_file")
    @classmethod
    def _can_be_read(cls, names_file: Path | None) -> Path | None:
        if names_file is not None:
            _names_in(names_file)
        return names_file

    @field_validator("spacy_model")
    @classmethod
    def _is_beside_settings(cls, spacy_model: str) -> str:
        return str(_beside_settings(Path(spacy_model))) if "/" in spacy_model else spacy_model

    @cached_property
    def rules(self) -> RedactionRules:
        """The rules as the redactor takes them."""
        return RedactionRules(self.regions, dict(self.patterns), _names_in(self.names_file) if self.names_file else ())


def _names_in(names_file: Path) -> tuple[str, ...]:
    """Return the names of a file, one a line; empty lines and those that begin with # are none.

    Raises ValueError when the file cannot be read.
    """
    try:
        lines = names_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{names_file} cannot be read: {error}") from None
    return tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


class _RoomSettings(BaseSettings):
    """The tables one room reads; other tables of the file are another room's."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)
    settings_file: Path

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but what `read_settings` passes in: the environment holds secrets, never settings."""
        return (init_settings,)


RoomSettings = _RoomSettings


class RecordSettings(RoomSettings):
    """What the `conversations` commands read."""

    record: RecordTable
    redaction: RedactionTable = RedactionTable()


Settings = TypeVar("Settings", bound=_RoomSettings)


def settings_path(settings_file: Path | None) -> Path:
    """Return the settings file that is read: the given one, the one that SUPPORT_BOT_SETTINGS names, or ./settings.toml."""
    return (settings_file or Path(os.environ.get(SETTINGS_VARIABLE, DEFAULT_SETTINGS))).absolute()


def read_settings(model: type[Settings], settings_file: Path | None) -> Settings:
    """Read the tables of `model` from a settings file.

    Without a file, takes the one named by SUPPORT_BOT_SETTINGS, or settings.toml in the present folder.
    Raises OperatorError for a file that is missing, is no TOML, or has an unknown, missing or mistyped key.
    """
    path = settings_path(settings_file)
    if not path.is_file():
        raise OperatorError(
            f"{path}: no such settings file; name one with --settings FILE, or start from deploy/demo/settings.toml"
        )
    try:
        tables = TomlConfigSettingsSource(model, path)()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: not valid TOML: {error}; mend that line") from None
    for name in tables:
        if name not in TABLES:
            raise OperatorError(f"{path}: unknown table [{name}]{_did_you_mean(name, TABLES, '[{}]')}")
    wanted = {name: value for name, value in tables.items() if name in model.model_fields}
    token = _folder.set(path.parent)
    try:
        return model(**{**wanted, "settings_file": path})
    except ValidationError as error:
        raise OperatorError("; ".join(_explain(model, path, problem) for problem in error.errors())) from None
    finally:
        _folder.reset(token)


def secret(variable: str, purpose: str) -> str:
    """Return a secret from the environment.

    Raises OperatorError, which names the variable and never a value, when it is not set.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise OperatorError(f"the environment variable {variable} is not set; {purpose}; export it and run again")
    return value


def settings_digest(settings: BaseModel, *, left_out: frozenset[str] = frozenset()) -> str:
    """Return a digest of settings, the file's own place and the tables in `left_out` left out."""
    text = json.dumps(settings.model_dump(mode="json", exclude={"settings_file", *left_out}), sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _did_you_mean(name: str, known: Sequence[str], form: str = "{!r}") -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {form.format(near[0])}?"
    return f"; expected one of {', '.join(sorted(known))}"


def _explain(model: type[BaseModel], path: Path, problem: Mapping[str, typing.Any]) -> str:
    """Turn one of pydantic's problems into a sentence with the table, the key and what to do."""
    where = [str(part) for part in problem["loc"]]
    table, key = where[0], ".".join(where[1:])
    if problem["type"] == "missing" and not key:
        return f"{path}: the table [{table}] is missing; add it (deploy/demo/settings.toml shows every table)"
    if problem["type"] == "missing":
        return f"{path} [{table}]: the key {key!r} is missing; it has no default: add it"
    if problem["type"] == "extra_forbidden":
        return f"{path} [{table}]: unknown key {key!r}{_did_you_mean(where[-1], _keys_near(model, where))}"
    value, words = problem.get("input"), str(problem["msg"])
    # Our own sentences come whole; pydantic's begin as sentences do.
    told = words.removeprefix("Value error, ") if problem["type"] == "value_error" else words[:1].lower() + words[1:]
    # A whole table says nothing that its file does not.
    shown = key if isinstance(value, Mapping) else f"{key or table} = {value!r}"
    named = f"{shown}: " if shown else ""
    return f"{path} [{table}]: {named}{told}; mend the value"


def _keys_near(model: type[BaseModel], where: Sequence[str]) -> list[str]:
    """Return the keys that the table of an unknown key knows."""
    for part in where[:-1]:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        candidates = [annotation, *typing.get_args(annotation)]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if nested:
            model = nested[0]
    return list(model.model_fields)
