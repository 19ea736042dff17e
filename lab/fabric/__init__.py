"""The fabric: namespaces, cables, switches and processes of a lab in the real worlds.

    client (any process) --SOCK_SEQPACKET--> server (pid 1 of the lab's namespaces) --> spawner --> adapters, hosts

`client` is what the rest of the lab uses. `server` owns everything that the kernel holds for a lab; when it ends, by
whatever way, the kernel takes back processes, namespaces and interfaces, since nothing of them has a name outside.
pyroute2 is imported by `netlink` alone, after the spawner was forked, so that node processes stay small.
"""
