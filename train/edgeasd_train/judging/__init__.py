"""Judging bundles: labelled clips by the rules of the DCASE challenge, long recordings by their annotated events."""
