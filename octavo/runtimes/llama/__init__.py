"""llama.cpp: GGUF written here, read back with gguf-py, computed by llama.cpp itself in a worker process."""
