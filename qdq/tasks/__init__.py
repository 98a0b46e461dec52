"""Tasks: which class loads each, how its data become model inputs, how its answers are scored.

`kinds` names the tasks (no heavy imports: the command line reads it); `evaluation` loads labelled data and scores a
runner on it; `metrics`, `entities` and `answers` compute what the published scorers compute.
"""

from __future__ import annotations

from qdq.load.kinds import SENTENCE_EMBEDDING, TASKS, Task, detect_task, task_named

__all__ = ["SENTENCE_EMBEDDING", "TASKS", "Task", "detect_task", "task_named"]
