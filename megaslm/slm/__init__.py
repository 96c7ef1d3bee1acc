"""The method: tensors in, tensors out, torch alone but for one kernel. Collectives reach it as callables."""
