"""The method on tensors. `reference` is the paper in fifty plain lines, to be read first; `functional` is what runs."""
