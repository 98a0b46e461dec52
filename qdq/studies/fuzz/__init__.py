"""Damaged checkpoints by the thousand: each is refused with a reason, or is the model its own library makes of it."""
