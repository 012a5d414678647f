"""Real Envoy as a peer and as a yardstick: static configurations as pure functions.

The binary is the deployer's to find."""
