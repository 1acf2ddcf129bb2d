"""What clusters and their rivals lose on a real published checkpoint, at equal GFLOPs and at equal time.

`subject`: checkpoint and photographs. `methods`, `schedules`: what is compared. `measure`: errors, FLOPs, the clock.
`fronts`: errors between measured rows. `page`: tables and plot. `python -m benchmarks.pretrained --help` says more.
"""
