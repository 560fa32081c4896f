"""From an assembled dataset to student weights.

In: a checkpoint folder of the student and the files `train.jsonl` and `validation.jsonl` of a run. Out: a LoRA adapter
that vLLM loads as it is, or a full checkpoint, with metrics and a model card. Never talks to a teacher, never reads the
record, never looks at a test set.

Modules: `embedded` (the small student that the demo needs), `options` (settings), `batches` (decisions to token trees),
`losses` (cross-entropy on the answers alone), `checkpoint` (killed and continued, bit for bit), `train` (the loop).
"""
