"""Checkpoints of other libraries as transformers checkpoints: ``python -m qdq.load.convert FOLDER --out NEW``."""
