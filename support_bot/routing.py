"""Which server answers: one that is ready and has the conversation's release in memory.

In: the record and a release. Out: a server, or one sentence about why there is none. Never talks to a server.
"""

import itertools
from collections.abc import Collection

from conversations import releases
from conversations.errors import OutsideError
from conversations.releases import ServerState, StudentServer
from conversations.store import Record

_turns = itertools.count()


def choose_server(record: Record, release_id: str, *, avoiding: Collection[str] = ()) -> StudentServer:
    """Return a server for the next answer; where several have the release they take turns.

    `avoiding` names servers, by their server_id, that just could not be reached.
    Raises OutsideError, which says what the servers are doing, when none has it.
    """
    servers = [each for each in releases.servers_with(record, release_id) if each.server_id not in avoiding]
    if not servers:
        raise OutsideError(f"no student server has {release_id!r} loaded; {_why(record, release_id)}")
    return servers[next(_turns) % len(servers)]


def any_server_ready(record: Record) -> bool:
    """Tell whether at least one student server can answer now, with whichever release."""
    return any(server.state is ServerState.READY and server.is_fresh for server in releases.servers(record))


def _why(record: Record, release_id: str) -> str:
    """Return what the servers say of themselves and of the release, and what to do."""
    known = releases.servers(record)
    if not any(server.is_fresh for server in known):
        return "no student server is being looked after; start `support-bot student`"
    failed = {
        load.server_id: load.detail for load in releases.loads(record) if load.release_id == release_id and not load.loaded
    }
    states = []
    for server in known:
        if server.is_fresh:
            detail = failed.get(server.server_id) or server.detail
            states.append(f"{server.base_url} is {server.state}" + (f" ({detail})" if detail else ""))
    return f"{'; '.join(states)}; try again when it is ready"
