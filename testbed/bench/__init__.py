"""The project measuring itself."""
