"""RoCEv2 as an outsider sees it: scapy layers, a reader of captures, and an analyzer that judges connections by the
specification.

Shares no code with the adapter that it judges: nothing in here imports emul or ccm.
"""
