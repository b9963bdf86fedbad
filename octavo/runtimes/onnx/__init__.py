"""The pieces of the ONNX Runtime target: layout, graph, bind, write, read, session."""
