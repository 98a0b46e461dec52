"""Graphs that the linter and NVIDIA's compiler both judge, and where the two differ (`make prove`).

`graphs/` writes and edits them, `named` and `cases` name every one, `verdicts` compares, `expected` holds the reasons
of what differs, `report` writes down what was found.
"""
