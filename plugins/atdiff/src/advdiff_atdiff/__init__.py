"""Distributionally robust and free adversarial training (AT_Diff), for advdiff."""
