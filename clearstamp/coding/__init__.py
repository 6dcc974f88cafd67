"""Bytes as pictures, and back in spite of errors."""
