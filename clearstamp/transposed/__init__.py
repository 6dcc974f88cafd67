"""The transposed model: a network captured, and run backwards from its output to its input."""
