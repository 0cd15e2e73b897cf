"""What may be asked of a running node by command: thresholds, sources on and off, feedback; kept over restarts."""
