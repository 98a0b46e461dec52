"""Ground that every other folder stands on: files, configuration, screen, interrupts, versions, pictures."""
