"""QDQ compiler for transformer encoders: checkpoint in, measured INT8 engine and Triton repository out."""

__version__ = "0.1.0"
