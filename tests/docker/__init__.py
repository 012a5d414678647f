"""Tests on a real Docker engine; skipped, with the engine's own reason, where there is none."""
