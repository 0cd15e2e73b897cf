"""Which model a node runs: chosen, installed, tried in the shadow, swapped, and rolled back."""
