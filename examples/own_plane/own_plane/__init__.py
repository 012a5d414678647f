"""A plane of one's own: a forwarder beside each workload, mutual TLS between them."""
