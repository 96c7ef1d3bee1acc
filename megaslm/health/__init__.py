"""Checks that ranks and hosts fit together before the first step, and stay alive and fast after it."""
