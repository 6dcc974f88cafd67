"""The units of a network: what they may be exchanged for, and what undoes it."""
