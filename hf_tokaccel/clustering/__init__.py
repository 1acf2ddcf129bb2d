"""The method on tensors: `reference` is the paper in fifty plain lines, to read first; `functional` is what runs."""
