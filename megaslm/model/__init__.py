"""Hugging Face models in and out, and the one whose forward ends in losses."""
