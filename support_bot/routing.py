"""Which server answers: one that is ready and has the conversation's release in memory.

In: the record and a release. Out: a server, or one sentence about why there is none. Never talks to a server.
"""

import itertools
from collections.abc import Collection

from conversations import releases
from conversations.errors import OutsideError
from conversations.releases import ReleaseKind, ServerState, StudentServer
from conversations.store import Record

_turns = itertools.count()


def choose_server(record: Record, release_id: str, avoiding: Collection[str] = ()) -> StudentServer:
    """Return a server for the next answer; where several have the release they take turns.

    avoiding: addresses that did not answer this question. Raises OutsideError, which says what the servers are doing, when no other
    has the release.
    """
    servers = [server for server in releases.servers_with(record, release_id) if server.base_url not in avoiding]
    if not servers:
        what = f"no other student server than {', '.join(sorted(avoiding))}" if avoiding else "no student server"
        raise OutsideError(f"{what} has {release_id!r} loaded; {_why(record, release_id)}")
    return servers[next(_turns) % len(servers)]


def is_loading(record: Record, release_id: str) -> bool:
    """Tell whether a ready server is about to have a release: it is wanted, and the server has not yet said how its load ended.

    A whole release is loaded by no server but its own, whose start takes longer than anybody waits.
    """
    wanted = next((each for each in releases.wanted(record) if each.release_id == release_id), None)
    if wanted is None or wanted.kind in (ReleaseKind.MERGED, ReleaseKind.FULL):
        return False
    told = {load.server_id for load in releases.loads(record) if load.release_id == release_id}
    return any(
        server.state is ServerState.READY and server.is_fresh and server.release_id is None and server.server_id not in told
        for server in releases.servers(record)
    )


def is_starting(record: Record, release_id: str | None) -> bool:
    """Tell whether a server is starting that serves a release: one of its own, or that of the base."""
    return any(
        server.state is ServerState.STARTING and server.is_fresh and server.release_id in (None, release_id)
        for server in releases.servers(record)
    )


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
