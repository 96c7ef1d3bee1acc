"""Texts from language models: by a model in this process, or through a server; log-likelihoods of given texts."""
