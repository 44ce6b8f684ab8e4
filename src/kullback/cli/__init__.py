"""Floor 6, cli: one file a command; nothing but parsing and printing."""

__all__: list[str] = []
