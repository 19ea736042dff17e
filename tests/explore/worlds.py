"""The small worlds that are explored: what each stands for, with its bounds.

QUICK ones in CI, NIGHTLY ones with LAB_EXPLORE=deep. All of them end: each state within the bounds is visited. WALKS
are through worlds that have too many states for that.
"""

from __future__ import annotations

from tests.explore.bounds import Bounds

APART = (((1, 1),), ((2, 3),))
"""No version in common, ever."""
RENEWED = (((1, 1), (1, 2)), ((2, 3),))
"""Node 1's next incarnation has one in common with node 2."""
GROWN_APART = (((1, 2), (3, 4)), ((1, 2),))
"""Node 1's next incarnation speaks none of node 2's versions any more."""
STATES_MAX = 3_000_000

QUICK = {
    "both sides start, each late by any time": Bounds(grain=1),
    "a connection breaks at any step": Bounds(break_=1),
    "a timer runs though answers are under way": Bounds(slow=1),
    "a client closes and opens again": Bounds(close=1, ready=True),
    "a virtual interface fails": Bounds(vi=1),
    "a request is executed twice": Bounds(again=1),
    "no version in common": Bounds(versions=APART),
    "no version in common until a reboot": Bounds(crash=1, versions=RENEWED),
    "no version in common after a reboot": Bounds(crash=1, ready=True, versions=GROWN_APART),
    "a host crashes and reboots at any step, and a write of its lands late": Bounds(crash=1, late=1),
    "two paths, a cable is cut": Bounds(paths=2, cut=1, ready=True),
    "two paths, a virtual interface fails": Bounds(paths=2, vi=1, ready=True),
}
NIGHTLY = {
    "two paths, both sides start": Bounds(paths=2),
    "two paths, a connection breaks while a timer is hasty": Bounds(paths=2, break_=1, slow=1, ready=True),
    "two paths, a host crashes": Bounds(paths=2, crash=1, ready=True),
    "two paths, a cable falls silent": Bounds(paths=2, mute=1, ready=True),
    "two paths, two virtual interfaces fail": Bounds(paths=2, vi=2, ready=True),
    "a client closes while both sides start": Bounds(close=1),
    "a cable is cut": Bounds(cut=1),
    "a cable falls silent, in both directions or in one": Bounds(mute=1),
    "a crash, and a write that lands once more": Bounds(crash=1, replay=1),
    "a connection breaks and its writes land late": Bounds(break_=1, late=1),
    "a crash, answers apart": Bounds(crash=1, grain=1),
    "a broken connection, answers apart": Bounds(break_=1, grain=1),
    "a crash while making queue pairs takes time": Bounds(crash=1, chores=True),
    "a close and a crash": Bounds(close=1, crash=1),
    "a crash and a broken connection": Bounds(crash=1, break_=1),
}
WALKS = {
    "crashes, broken connections, late writes": Bounds(paths=2, crash=2, break_=2, late=3, grain=2),
    "cut cables": Bounds(paths=2, crash=1, cut=3, late=2, grain=2),
    "slowness": Bounds(paths=2, break_=1, cut=1, mute=1, slow=3, grain=1, chores=True, moves=True),
    "clients that come and go": Bounds(paths=2, crash=1, break_=1, close=3, vi=1, again=2, grain=2),
    "three paths": Bounds(paths=3, cut=2, mute=1, crash=1, vi=1, replay=2, ready=True),
}
