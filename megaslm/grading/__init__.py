"""Graders: is a model's answer the right one? By the rules of published results, or by math-verify."""
