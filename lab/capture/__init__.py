"""What crosses a cable, in a file that Wireshark opens.

    ring (kernel) --blocks--> process: spool file --at the end--> pcapng, with comments at the packets

A tap at both inner ends of a cable sees each frame as it enters the cable: before redirects, so also what a blackhole
swallows or the injector drops. While it captures, a process only copies whole blocks of the kernel's ring to a file;
what is in them is looked at afterwards. What the injector changes or sends itself is told by a comment at the frame
that it acted on.

Modules: `pcapng` (the file format), `ring` (AF_PACKET's memory-mapped ring), `spool` (blocks in a file, and packets out
of them), `process` (the copying), `session` (captures of a lab: started in its fabric, written with comments).
"""
