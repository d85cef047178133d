"""Pickles and files of `torch.save`, read as data by a machine that can run nothing."""
