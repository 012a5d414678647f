"""Data planes: `mesh` is what proxies are made of, `ztunnel` one and where it goes, `catalog` the planes by name."""
