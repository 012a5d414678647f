"""One L7 proxy per node for all its workloads, with one identity, the node's own: the shape of Linkerd 1.x."""
