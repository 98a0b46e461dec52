"""The flow: options, work directory, and the stages in order."""
