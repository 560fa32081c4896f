"""From an assembled dataset to student weights.

In: a checkpoint folder of the student and the files `train.jsonl` and `validation.jsonl` of a run. Out: a LoRA
adapter that vLLM loads as it is, or a full checkpoint, with metrics and a model card. Never talks to a teacher, never
reads the record, never looks at a test set.

In reading order: `embedded` (the small student that the demo needs), `decisions` (rows as token ids), `batches` (rows
of a conversation as one tree), `losses` (cross-entropy on the answers alone), `student` (the model that learns),
`checkpoint` (killed and continued, bit for bit), `fitting` (the loop), `card` (what the weights say of themselves),
`train` (the stage).
"""
