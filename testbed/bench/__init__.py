"""The project measuring itself, with a peer beside it in the same run: `bringup`, `links`, `proxy`."""
