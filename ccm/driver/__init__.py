"""The driver: all of the manager's I/O. `Driver` takes turns; its parts carry out some of the actions each."""

from emul.compiled import use as _use

_use(__name__, __path__)

from ccm.driver.driver import Driver  # noqa: E402 (it may be compiled)
from ccm.driver.wiring import DriverConfig, Log, PathConfig  # noqa: E402

__all__ = ["Driver", "DriverConfig", "Log", "PathConfig"]
