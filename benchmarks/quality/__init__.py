"""Quality at equal speed: token clustering as released and as changed here, against plain ways to save as much.

`methods`: what is compared. `measure`: the sweep, the test, the clock. `claim`: losses at equal speed. `page`: tables
and plots. `python -m benchmarks.quality --help` says how to run it.
"""
