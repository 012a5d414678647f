"""A small guest with a stock kernel that has netem, for tests that this machine's kernel cannot serve."""
