"""How a whole release is served beside the base student: with which settings, where, and whether it can be.

In: the release and the settings of the student. Out: settings of its server, the room for such servers, and sentences. Starts
nothing.
"""

from pathlib import Path

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from conversations.releases import Release
from conversations.serving import Served, digest_of_tokenizer
from conversations.settings import StudentTable
from support_bot.checkpoint import check_checkpoint
from support_bot.serving.whole_servers import Room
from support_bot.vllm import check_serving

_PORTS_ABOVE = 10


def whole_student(release: Release, student: StudentTable, port: int) -> StudentTable:
    """Return the settings of a whole release's own server: the student's, with its weights, port and share of a GPU."""
    share = student.whole_gpu_memory_share or student.gpu_memory_share
    return student.model_copy(update={"base": Path(release.weights_path), "port": port, "gpu_memory_share": share})


def whole_room(student: StudentTable) -> Room:
    """Return how many servers of whole releases may run at once, and where; on a GPU, as many as fit beside the base's."""
    first = student.whole_port or student.port + _PORTS_ABOVE
    servers, remedy = student.max_whole_servers, "raise [student] max_whole_servers"
    if student.profile == "gpu":
        share = student.whole_gpu_memory_share or student.gpu_memory_share
        fitting = int((1 - student.gpu_memory_share) / share + 1e-9)
        if fitting < servers:
            servers, remedy = (
                fitting,
                "lower [student] whole_gpu_memory_share or gpu_memory_share, so that more fit on the GPU",
            )
    # A server that leaves, or a stranger, may hold a port for a while.
    return Room(servers, range(first, first + 2 * student.max_whole_servers), remedy)


def why_whole_unfit(release: Release, student: StudentTable, served: Served, base_release_id: str) -> str:
    """Return why a whole release cannot be served here as it was trained, or an empty string.

    The chat writes every prompt with the base's tokenizer and template, so a whole release must have the same.
    """
    folder = Path(release.weights_path)
    if release.base not in (student.base.name, base_release_id):
        return f"it was made for the base {release.base!r}; [student] base is {student.base.name!r}"
    try:
        check_checkpoint(folder)
        check_serving(student.model_copy(update={"base": folder}))
        renderer = Renderer.load(folder)
    except OperatorError as error:
        return str(error)
    if digest_of_tokenizer(folder) != served.tokenizer_digest:
        return f"its tokenizer is {digest_of_tokenizer(folder)}; that of [student] base is {served.tokenizer_digest}"
    if renderer.digest != served.prompt_digest:
        return f"its prompts have the digest {renderer.digest}; those of [student] base have {served.prompt_digest}"
    return ""
