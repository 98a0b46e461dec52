"""Graphs written and changed: `encoder` writes a `form` of the classifier, `editor` and `edits` change it by names."""
