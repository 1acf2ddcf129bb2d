"""Changes of the method that were tried and mostly not kept; `python -m benchmarks.ideas`, docs/method_search.md."""
