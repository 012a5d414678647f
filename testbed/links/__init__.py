"""Links between nodes: what was asked of a wire, made real, and measured.

Read `delayline` (pure: when is a frame due), `wireproc` (the process that forwards by it), `wire` (the maker that
owns such processes), `netem` (the kernel's own way, as messages), `probe` (which of the two this machine has),
`gauge` (what a link really does), `calibrate` (the wire's constant error). `ends` and `devices` make the veth pairs;
`scratch` is a lab to try links in.
"""
