"""Ready model cards of flagship checkpoints; `python -m model_cards.build` writes them."""
