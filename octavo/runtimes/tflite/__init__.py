"""The pieces of the LiteRT runtime: files in the .tflite format (FlatBuffers, TensorFlow Lite's schema)."""
