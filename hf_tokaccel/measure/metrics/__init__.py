"""Metrics of the tasks as pure functions: additive sums of an image, and what follows from the sums of all."""
