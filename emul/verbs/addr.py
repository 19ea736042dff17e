"""Addresses (pyverbs' `addr`)."""

from emul.vocabulary import GID, AHAttr, GlobalRoute

__all__ = ["GID", "AHAttr", "GlobalRoute"]
