"""From windows to opinions, scores and events."""
