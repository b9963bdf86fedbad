"""The pieces of the Core ML runtime: what runs in its worker process, and what asks it."""
