"""From an assembled dataset to student weights.

In: a checkpoint folder of the student and the files `train.jsonl` and `validation.jsonl` of a run. Out: a LoRA
adapter that vLLM loads as it is, or a full checkpoint, with metrics and a model card. Never talks to a teacher, never
reads the record, never looks at a test set.

In reading order: `decisions` (rows as token ids, made once), `batches` (rows of a conversation as one tree), `losses`
(cross-entropy on the answers alone), `weights` (adapters, the embedded student, the card), `student` (the model that learns),
`planning` and `rates` (every step before the first), `processes` (several that train as one), `passes` (gradients, by
micro-batches), `checkpoint` and `fingerprint` (killed and continued, bit for bit), `fitting` (the loop), `result`, `train` (the
stage).
"""
