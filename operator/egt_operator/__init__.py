"""Types, planner and shells: what should exist for an EGTRun, and who makes it so."""
