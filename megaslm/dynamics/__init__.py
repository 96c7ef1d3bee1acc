"""The `dynamics` verb: how the loss of single tokens changes over a run (Rho-1, section 2.1 and appendix D.1)."""
