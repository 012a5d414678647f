"""Labs on containers: the engine, and the image that every container of ours is started from.

Reading order: `engine` (connected, or one clear error), `image` (which base, and the image of exactly this code on it),
`inputs` (what goes into it, as deterministic tars), `offlinebase` and `packedbase` (a base where no registry answers),
`workloadimage` (a user's own image as a workload). Nothing is imported here: proxies start without the docker package.
"""
