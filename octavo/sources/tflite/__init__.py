"""The importer of float .tflite graphs."""
