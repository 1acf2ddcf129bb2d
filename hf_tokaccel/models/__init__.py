"""One module per family, which registers itself when it is imported; `discovery` says how a family is found."""
