"""Real Envoy as the other side of HBONE: what no test of ours against ourselves can show."""
