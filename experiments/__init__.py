"""Questions, one a module: each holds a constant `EXPERIMENT`."""
