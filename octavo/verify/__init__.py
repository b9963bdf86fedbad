"""Proving: are the weights exact, how far do the outputs lie from the original's, what does it cost in accuracy."""
