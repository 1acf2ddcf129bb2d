"""Saved folders of accelerated models and their way to the Hub: shim, card, upload."""
