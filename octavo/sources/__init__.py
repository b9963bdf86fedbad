"""What a model is when it arrives: one file per format."""
