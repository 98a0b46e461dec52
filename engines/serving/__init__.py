"""Texts in, answers out, inside a server: what a Triton repository carries beside the engine file.

Needs numpy, the tokenizers package and the engine's own runtime, and of this project only what it imports at its top:
`engines.triton.text` copies exactly those modules into the repository, so that a server needs no installation of ours.
"""
