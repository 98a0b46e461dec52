"""Stage 10, report: the JSON files of a work directory as one page, two compiles side by side, and a model card."""
