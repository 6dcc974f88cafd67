"""Evidence: what proves, to somebody else, that a model holds a stamp."""
