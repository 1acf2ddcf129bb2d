"""Acceleration settings: frozen, flat, validated dataclasses, stored as the plain dict `accel` in config.json."""
