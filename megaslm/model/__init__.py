"""Hugging Face models, loaded and exported; and a model whose forward returns losses."""
