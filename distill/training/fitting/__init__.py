"""The loop: what each step computes, how fast it learns, and how a training is killed, stopped, starved and continued."""
