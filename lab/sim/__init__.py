"""The simulator: the same manager, adapter and injector in virtual time, one thread, one seed.

Replayable to the bit: a run is a function of topology, scenario and seed. `lab.sim.world.SimWorld` is the world that
the runner drives; `scheduler` orders what happens, `streams` draws every random number, `cable`, `adapter` and `node`
hold the rest.
"""

from emul.compiled import use as _use

_use(__name__, __path__)
