"""Our CPU engines beside the tools a user would pick instead, each turning one checkpoint into something that runs.

`tools` quantizes with the others, `build` builds and loads everything, `race` checks accuracy and memory and times all
of it in one interleaved run, `table` shows the report.
"""
