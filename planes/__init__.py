"""Data planes: `mesh` is what proxies are made of, `ztunnel` a proxy and where it goes, `catalog` the planes by name."""
