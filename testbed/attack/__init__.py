"""What an attacker's code can do from inside each component of a plane: tried in a lab, counted, held against a model.

Read `model` first (pure: which attempt must come to what), then `attempts` (pure: what a component tries), `insider`
(the program that tries it, from inside, with its `ear`), `enter` (how it gets there), `onpath` (who lies on the wire),
`tried` (the shell that does it all and makes findings), `matrix` (pure: findings to a table and a plot). Nothing here
attacks anything but a lab that its own caller has just made, and nothing it reads leaves the process that judges it.
"""
