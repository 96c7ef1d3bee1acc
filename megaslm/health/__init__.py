"""Whether ranks and hosts fit together before the first step, and whether all are alive and quick after it."""
