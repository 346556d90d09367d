"""What loads a reward model and generates with it: one interface, several implementations."""
