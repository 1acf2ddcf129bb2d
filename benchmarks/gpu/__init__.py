"""One run on one GPU, at most nine minutes: exactness, launches and speed, a line of JSON for each step."""
