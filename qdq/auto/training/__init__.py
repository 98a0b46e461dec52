"""Training of a run: its optimizer, schedule and end, and the distance from the teachers that it makes smaller."""
