"""What the backends are built of: register tile, atomics and barrier, activations, teams of threads."""
