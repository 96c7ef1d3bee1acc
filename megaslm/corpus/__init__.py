"""Reads text: input files, the ranges they are divided into, and their documents."""
