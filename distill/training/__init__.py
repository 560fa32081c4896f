"""From an assembled dataset to student weights.

In: a checkpoint folder of the student, and of a run the files `train.jsonl`, `validation.jsonl`, `soft_labels.jsonl` and
`replay.jsonl`. Out: a LoRA adapter that vLLM loads as it is, the same merged, or a full checkpoint, with metrics and a model
card. Never asks a teacher over the network and never looks at a test set.

In reading order: `request` (what is asked), `starting` and `replaying` (where it begins, and what is learnt again), `decisions`
(rows as token ids, made once), `batches` (rows of a conversation as one tree), `losses` (words, soft labels, a local teacher),
`weights` (adapters, merging, cards, the embedded student), `student` (the model that learns), `processes` (several that train as
one), `fitting` (the loop, killed and continued bit for bit), `fingerprint` and `result`, `train` and `merge` (the stage and what
comes after it), `tuning` (`distill tune`).
"""
