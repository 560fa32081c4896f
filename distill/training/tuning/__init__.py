"""Which settings teach this student best: trainings tried one by one, each in a process of its own, and what they showed."""
