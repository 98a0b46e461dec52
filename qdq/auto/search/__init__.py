"""The automatic strategy: candidates trained, built into real engines and raced inside a time budget.

Read in this order: `settings` (what is asked), `candidates` (what could be tried, and what it promises), `plan` (what
is tried next, and why not the rest), `job` (one candidate, a process of its own: `material`, `training`), `launch` (who
runs jobs), `race` (all engines against each other), `choice` (which one is kept), `report` (what a user reads), and
`command`, which is the loop.

The rows of the development data are dealt out: odd ones choose among candidates and steps, even ones judge, and nothing
is chosen by them.
"""
