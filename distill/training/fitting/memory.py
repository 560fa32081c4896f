"""How to tell that memory ran out: on a GPU, in torch's CPU allocator, and in Python."""

import torch

# torch's CPU allocator raises a plain RuntimeError with one of these.
_SAID_BY_ALLOCATORS = ("not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID_BY_ALLOCATORS)
