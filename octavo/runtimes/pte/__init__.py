"""The pieces of ExecuTorch's .pte files; executorch.py says what each is for."""
