"""The workshop's verbs, one file each, as typer functions that `edgeasd` mounts."""
