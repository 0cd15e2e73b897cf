"""From samples to log-mel frames."""
