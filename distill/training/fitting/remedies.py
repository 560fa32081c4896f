"""What an operator can do about a training that cannot go on as it is set: a run that has begun keeps its settings."""

IN_A_NEW_RUN = (
    "and begin a new run with `distill cycle`, which pays for no answered question again: "
    "a run that has begun keeps its settings"
)
