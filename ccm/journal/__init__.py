"""The journal: all that one manager was told and wanted, call by call, and its replay outside of any lab."""

from emul.compiled import use as _use

_use(__name__, __path__)

from ccm.journal.codec import FORMAT, JournalError  # noqa: E402 (its neighbours may be compiled)
from ccm.journal.recorder import JournalledManager  # noqa: E402
from ccm.journal.replay import Replayed, replay  # noqa: E402

__all__ = ["FORMAT", "JournalError", "JournalledManager", "Replayed", "replay"]
