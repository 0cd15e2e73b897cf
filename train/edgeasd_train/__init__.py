"""The workshop: from recordings to the bundle a node runs."""
