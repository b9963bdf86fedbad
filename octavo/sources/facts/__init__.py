"""What a model is, read for planning: shapes, operators and bytes from headers. One light reader per format."""
