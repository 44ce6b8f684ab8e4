"""TODO: which file answers which question."""
