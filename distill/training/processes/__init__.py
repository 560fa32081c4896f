"""Several processes that train one student: who computes what, how their sums come together, and how they begin and end."""
