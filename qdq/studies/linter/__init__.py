"""Graphs that the linter and NVIDIA's compiler both judge, and where the two differ (`make prove`).

`encoder` writes an encoder in any of the forms that tools write, `editor` and `edits` change a graph by names,
`cases` names every graph, `verdicts` compares, `report` writes down what was found.
"""
