"""Checkpoints of other libraries as transformers checkpoints: ``python -m qdq.loading.convert FOLDER --out NEW``."""
