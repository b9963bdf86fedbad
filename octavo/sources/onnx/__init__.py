"""ONNX → torch: one small function per operator, and the walk over the graph that calls them."""
