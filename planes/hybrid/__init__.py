"""The hybrid plane: workloads with a sidecar, in the ambient mesh, or in none, in one topology."""
