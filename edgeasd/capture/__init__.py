"""From sound cards and recordings to windows of contiguous sound."""
