"""RoCEv2 as it stands on the cable: PSN arithmetic, headers, ICRC, frame envelope, ARP, connection management MADs.

Values with parse and emit. Knows nothing of queue pairs or memory.
"""

from emul import compiled as _compiled

_compiled.use(__name__, __path__)
