"""Compilers for NPUs: a runtime's file in, the NPU's program and where each operator runs out. They run in a worker."""
