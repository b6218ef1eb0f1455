"""Training: the loop, the step, the task."""
