"""The node proxy: L4 only, mTLS and HBONE, no HTTP parsing.

Reading order: `settings` (config.json), `decisions` (what view, route and policy say), `certificates` (whose keys it
has), `workload` (one workload's listeners and pool), `outbound`, `inbound`, `passthrough` (its three ways), `own` (the
ztunnel as a workload), `revocation`, `inpod` (who hands it namespaces), `admin`, `program`.
"""
