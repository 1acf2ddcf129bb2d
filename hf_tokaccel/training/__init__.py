"""Training of the reference models and of image classifiers."""
