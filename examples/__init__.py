"""Octavo's worked examples: each is a package with a `demo` that runs on a fresh machine."""
