"""The method: pure torch, tensors in, tensors out. Collectives reach it as callables."""
