"""perftest's tests on emulated adapters: `python -m emul.perftest {send,write,read,atomic}_{lat,bw}`.

Options and columns are those of linux-rdma's perftest (ib_send_lat and its family). The adapter owns its interface, so
what perftest exchanges over TCP between the hosts goes another way: over another interface, or a Unix socket.
"""
