"""Measurements of this repository itself, which fill docs/ and README.md with figures; not in the wheel."""
