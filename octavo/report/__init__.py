"""Showing: records as tables on the terminal."""
