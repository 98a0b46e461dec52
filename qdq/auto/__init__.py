"""Automatic compression: one YAML file trains, distils, prunes and quantizes, and what it leaves open is chosen here.

`AutoCompression` (`qdq.auto.compression`) is its form in Python, `qdq auto` that on the command line. A configuration
is read and checked by `qdq.auto.config`; its steps are run by `qdq.auto.strategy` with the methods of `qdq.compress`.
Section and key names, defaults and rules are those of PaddleSlim's automatic compression.
"""
