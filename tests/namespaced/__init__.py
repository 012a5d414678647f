"""The cases of ztunnel's own namespaced suite (facts/hbone 5.7), as tests of ours on real labs."""
