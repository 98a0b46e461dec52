"""Tasks: labelled data as model inputs, and the scores of the answers.

`evaluation` loads labelled data and scores a runner on it; `metrics`, `tagging` and `answers` compute what the
published scorers compute. `qdq.loading.kinds` names the tasks.
"""
