"""Stage 1: a checkpoint by hub id or folder, as a model in memory."""
