"""The journal: all that one manager was told and wanted, call by call, and its replay outside of any lab."""

from ccm.journal.codec import FORMAT, JournalError
from ccm.journal.recorder import JournalledManager
from ccm.journal.replay import Replayed, replay

__all__ = ["FORMAT", "JournalError", "JournalledManager", "Replayed", "replay"]
