"""Emulated hardware of a storage node: interconnect adapters, NVRAM card, boot stages.

Usable without `ccm` and `lab`; imports neither.
"""
