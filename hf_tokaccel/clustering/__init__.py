"""The method: clustering and reconstruction of tokens, pure functions on tensors."""
