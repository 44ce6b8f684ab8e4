"""Floor 1, exact: numbers with no error bar."""
