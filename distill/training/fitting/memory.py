"""How to tell that memory ran out: on a GPU, in torch's CPU allocator and its oneDNN kernels, and in Python."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from conversations.errors import OutsideError
from distill.training.fitting.remedies import IN_A_NEW_RUN

SMALLER_BATCHES = "lower [train] token_budget_per_batch or max_tokens, or set gradient_checkpointing = true,"
# torch's CPU allocator raises a plain RuntimeError with one of these.
_SAID_BY_ALLOCATORS = ("not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    # oneDNN says no more than this; of what it cannot compute at all it says "could not create a primitive descriptor".
    by_onednn = "could not create a primitive" in said and "primitive descriptor" not in said
    return by_onednn or any(words in said for words in _SAID_BY_ALLOCATORS)


@contextmanager
def telling_of_spent_memory(where: str, *, expected: str, to_lower: str) -> Iterator[None]:
    """Raise OutsideError where memory runs out in work that cannot be done in smaller pieces."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutsideError(
            f"training: out of memory {where}; expected room for {expected}; {what_helps(to_lower)}"
        ) from None


def spent_twice(step: int, budget: int) -> str:
    """Return what to tell where memory runs out at a step with micro-batches of `budget` tokens, which were halved before."""
    return (
        f"training: out of memory at step {step}, with micro-batches of {budget} tokens, which are half as large as asked for; "
        f"expected room for the student and one micro-batch; {what_helps(SMALLER_BATCHES)}"
    )


def what_helps(to_lower: str) -> str:
    """Return what to do about memory that ran out, which `to_lower`, an instruction, makes less of."""
    return (
        "free memory and run the same again, which goes on after its last checkpoint if there is one; "
        f"or {to_lower} {IN_A_NEW_RUN}"
    )
