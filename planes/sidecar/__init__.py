"""The sidecar: an L7 proxy per workload, in its network namespace. Outbound it routes, inbound it enforces policy."""
