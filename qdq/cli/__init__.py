"""The command line: grammar, and one file per command that is not a stage."""
