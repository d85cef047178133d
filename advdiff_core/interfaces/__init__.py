"""The contracts plugins implement, one file each."""
