"""Nodes in containers: the real world with hosts that have a file system, a processor share and a memory limit each.

The only part of the lab that knows Docker. `engine` talks to it, `image` says what a container sees of this machine,
`nodes` keeps a node's two containers (hardware and host), `world` runs scenarios on them.
"""
