"""The table that the compression documents print: FP32, INT8, pruned and both, for three tasks in two languages."""
