"""How the node fares: the ledger of frames, the state of the inputs, and whom to tell."""
