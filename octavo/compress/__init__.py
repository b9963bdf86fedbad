"""Stage one: what changes the weights. Solvers read float rows and write exact codes and scales."""
