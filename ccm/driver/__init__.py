"""The driver: all of the manager's I/O. `Driver` takes turns; its parts carry out some of the actions each."""

from ccm.driver.driver import Driver
from ccm.driver.wiring import DriverConfig, Log, PathConfig

__all__ = ["Driver", "DriverConfig", "Log", "PathConfig"]
