"""Values that cross seams: pure, frozen, standard library only.

Read identity, topology, policy, placement, experiment.
"""
