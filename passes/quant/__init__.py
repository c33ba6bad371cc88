"""How nodes are quantised: what a target's table says of it, and the nodes that do it."""
