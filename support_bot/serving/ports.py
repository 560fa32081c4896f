"""Whether a server of ours could listen at an address.

In: an address. Out: nothing where it could, else why not. Leaves nothing open.
"""

import errno
import socket

from conversations.errors import OperatorError
from conversations.settings import StudentTable


def check_port(student: StudentTable) -> None:
    """Raise OperatorError when the student's server could not listen at its address."""
    error = why_not_listening(student.host, student.port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise OperatorError(
            f"port {student.port} on {student.host} is in use ([student] port); end the process that listens there, "
            "set another port, or attach to a running vLLM with [student] servers"
        )
    raise OperatorError(
        f"cannot listen on {student.host}:{student.port} ([student] host and port): {error.strerror or error}; "
        "give an address of this machine and a port that is free"
    )


def why_not_listening(host: str, port: int) -> OSError | None:
    """Return why nothing could listen at an address now, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
