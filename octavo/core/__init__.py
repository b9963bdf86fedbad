"""What everything else is made of: grids, tensors, schemes, the compressed model. numpy and stdlib only."""
