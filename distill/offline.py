"""Libraries that would call home are told not to, before any of them is loaded.

In and out: the environment of this process and of those it starts. Students, teachers and embeddings are folders of this machine,
so that no model hub is ever asked.
"""

import os


def keep_libraries_offline() -> None:
    """Switch off the hub and the telemetry of the model libraries."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"})
