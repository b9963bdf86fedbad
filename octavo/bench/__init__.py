"""Measuring: latency, tokens per second, load time and peak memory of a fresh process."""
