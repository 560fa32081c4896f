"""What the parts of the serving share: the pace of looking, and what a supervisor is told of its server.

Values alone; nothing here acts.
"""

from dataclasses import dataclass

from conversations.serving import Served


@dataclass(frozen=True)
class Pace:
    """How often the supervisor looks, and how long it waits.

    What is needed no more stays in memory for `linger_seconds`, for a turn that chose it a moment before, and until its answers
    under way have ended, at most `most_linger_seconds`. A server that is gone within `blame_seconds` of a failed load was ended by it.
    """

    look_seconds: float = 1.0
    heartbeat_seconds: float = 2.0
    memory_every_beats: int = 10
    settle_seconds: float = 30.0
    health_timeout_seconds: float = 10.0
    health_failures: int = 3
    load_timeout_seconds: float = 120.0
    load_attempts: int = 3
    blame_seconds: float = 5.0
    linger_seconds: float = 10.0
    most_linger_seconds: float = 300.0
    first_backoff_seconds: float = 1.0
    last_backoff_seconds: float = 30.0
    steady_after_seconds: float = 60.0
    first_starts: int = 3
    start_timeout_seconds: float = 600.0

    def longer_backoff(self, seconds: float) -> float:
        """Return the pause that follows one of so many seconds; 0 stands for none yet."""
        return min(max(2 * seconds, self.first_backoff_seconds), self.last_backoff_seconds)


@dataclass(frozen=True)
class ServedStudent:
    """What a server is for: the base student with its adapters, or one whole release.

    `release_id` is the name that it answers to by itself: that of the base, or of the whole release.
    """

    base: str
    release_id: str
    base_url: str
    served: Served
    is_whole: bool = False
    keep_hours: float = 24.0

    @property
    def server_id(self) -> str:
        """The server's name in the record; a port that serves one whole release after another is not one server."""
        return f"{self.base_url}#{self.release_id}" if self.is_whole else self.base_url
