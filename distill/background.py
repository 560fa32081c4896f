"""The environments of processes that run this product's own code: apart from this one, and some of them in the background.

In: this process's environment. Out: theirs. Loads no library that computes.
"""

import os
from pathlib import Path

from conversations.cores import BACKGROUND_SPINS, spinning_briefly

_ROOT = Path(__file__).parents[1]
# oneDNN keeps a program, of several megabytes, for every size that it multiplied: by default 1,024 of them. Rows of a training have
# many sizes.
_PROGRAMS_KEPT = 128


def background_environment() -> dict[str, str]:
    """Return the environment of a process that computes for long beside the student's server; what is chosen there stands."""
    return {
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_PROGRAMS_KEPT),
        **spinning_briefly(own_environment(), BACKGROUND_SPINS),
    }


def own_environment() -> dict[str, str]:
    """Return the environment of a process that runs the code of this one, whatever lies in the folder where the command was given."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if "site-packages" not in _ROOT.parts:
        # A checkout, of which the environment may know another one.
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment
