"""Masks for prompts."""
