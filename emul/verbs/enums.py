"""Enumerations (pyverbs' `enums`): those of `emul.enums`."""

from emul.enums import *  # noqa: F403
