"""Sections of the report, one file each: facts in, markup out; "" where nothing was measured."""
