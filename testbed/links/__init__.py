"""Links between nodes: what was asked of a wire, made real, and measured.

Read `delayline` (pure: when is a frame due) and `pacing` (pure: when to wake for it and to let it go), `wireproc` (the
process that forwards by them, with `direction` and `prompt`), `wire` (the maker that owns such processes), `netem`
(the kernel's own way, as messages), `probe` (which of the two this machine has), `gauge` (what a link really does, as
pings see it), `oneway` (as the kernel's stamps do). `ends` and `devices` make the veth pairs; `scratch` is a lab to try
links in.
"""
