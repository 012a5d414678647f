"""The testbed: knows topologies, labs, trials and tables, and nothing about any particular data plane.

Five ideas, in reading order:

* `model`      frozen values that cross seams: topology, identity, policy, placement, experiment
* `seams`      the small protocols everything plugs into; `registry` maps names to implementations
* `lab`        a topology brought up under a runtime with links; `deploy` puts a plane's placement on it
* `trial`      one measured repetition; `sweep` makes rounds of them; `store` keeps the rows
* `observe`, `verify`   packets and processes to evidence, evidence to findings, independent of the planes
"""
