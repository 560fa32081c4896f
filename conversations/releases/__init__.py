"""Releases: the immutable versions of the student, which one is in service, and which server has loaded what.

In: what the gate decided, what an operator asked for, what a supervisor saw. Out: one answer to "which student answers this
conversation". A release never changes and its name is never used again; what happens to it is an event behind it (`lifecycle`).
`student_servers` says who can answer, `needs` what the servers are to keep.
"""

from conversations.releases.lifecycle import (
    STARTED_FROM_BASE,
    Release,
    ReleaseEvent,
    ReleaseKind,
    ReleaseState,
    events,
    in_service,
    may_go_on,
    promote,
    promote_in,
    refuse,
    register,
    register_base,
    release,
    releases,
    roll_back,
    set_aside,
    take_back_in,
    want,
    want_in,
    wanted,
)  # fmt: skip
from conversations.releases.student_servers import (
    SERVER_SILENCE,
    Load,
    ServerState,
    StudentServer,
    announce_server,
    forget_load,
    forget_server,
    loads,
    note_load,
    servers,
    servers_with,
)  # fmt: skip

__all__ = [
    "SERVER_SILENCE", "STARTED_FROM_BASE", "Load", "Release", "ReleaseEvent", "ReleaseKind", "ReleaseState", "ServerState",
    "StudentServer", "announce_server", "events", "forget_load", "forget_server", "in_service", "loads", "may_go_on", "note_load",
    "promote", "promote_in", "refuse", "register", "register_base", "release", "releases", "roll_back", "servers", "servers_with",
    "set_aside", "take_back_in", "want", "want_in", "wanted",
]  # fmt: skip
