"""What is measured of a model: speed, memory, GFLOPs, agreement, and the metrics of the tasks."""
