"""Inputs of a run: the model as a configuration names it, and the data to train on and to decide by."""
