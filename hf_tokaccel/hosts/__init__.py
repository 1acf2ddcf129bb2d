"""The one place that enters a host model."""
