"""Training on the main task and the stamp: losses, schedules, and the loops that take the steps."""
