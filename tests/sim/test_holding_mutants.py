"""Real code that is broken by hand in what nodes hold: a run fails, by the check that looks into the hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ccm.actions import NoteRefused
from ccm.driver.notes import Notes
from ccm.exchange import Manifest
from ccm.history import Kind
from ccm.lanes import Lanes
from ccm.pathset import PathSet
from ccm.peerinfo import Agreement
from ccm.reasons import Reason
from ccm.session import SessionCore
from ccm.sessions import SessionSet
from ccm.stream import Stream
from emul.clock import Instant
from emul.regions import RegionTable
from emul.wire.frame import Accepted, Envelopes, internet_checksum
from lab.api import run
from lab.injector.strangers import MARK
from lab.scenario import Scenario
from lab.topology import Topology
from lab.verdict import Result

pytestmark = pytest.mark.needs_plain
SEEDS_TRIED_MAX = 4
TWO_PATHS = """
name: two-paths
nodes:
  a: {{adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}}
  b: {{adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}}
cables:
  ic0: {{ends: [a.ic0, b.ic0], delay: {delay}}}
  ic1: {{ends: [a.ic1, b.ic1], delay: {delay}}}
"""
SCENARIO = """
scenario: holdings
topology: two-paths
workload:
  nvram-mirror: {{record: 2KiB, depth: 8}}
  echo: {{record: 512B, depth: 4}}
steps: [{steps}]
expect: {{alerts.exactly_once: {{}}}}
"""
CUT = "{at: 300ms, fault: cable.cut, target: ic1, for: 200ms}"
CRASH = "{at: 300ms, fault: host.crash, target: b, for: 100ms}"
BOTH_CUT = (
    "{at: 300ms, fault: cable.cut, target: ic0, for: 100ms}, {at: 310ms, fault: cable.cut, target: ic1, for: 100ms}"
)


def play(steps: str, seed: int = 0, *, delay: str = "1ms") -> Result:
    topology = Topology.parse(TWO_PATHS.format(delay=delay))
    scenario = Scenario.parse(SCENARIO.format(steps=steps), topology)
    return run(scenario, topology=topology, world="sim", seed=seed)


def found(result: Result) -> dict[str, str]:
    return {check.name: check.detail for check in result.checks if check.ok is False}


def finding(check: str, steps: str, *, delay: str = "1ms") -> str:
    """What `check` says of the first run in which it finds something."""
    for seed in range(SEEDS_TRIED_MAX):
        problems = found(play(steps, seed, delay=delay))
        if check in problems:
            return problems[check]
    pytest.fail(f"{check} found nothing with {SEEDS_TRIED_MAX} seeds, the others {sorted(problems)}")


@pytest.mark.parametrize("steps", [CUT, CRASH, BOTH_CUT])
def test_the_code_as_it_is_passes(steps: str) -> None:
    result = play(steps)
    assert not found(result)
    looked = {check.name: check.exercised for check in result.checks}
    assert all(looked[name] for name in ("manifests.agreed", "versions.first", "close.leaves_nothing", "streams.whole"))


def test_a_side_that_believes_another_manifest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It forgets the partner's last client, and does not compare what both sides hold."""
    believe, agree = SessionSet.on_partner_manifest, SessionSet._agree

    def forgetful(self: SessionSet, manifest: Manifest) -> None:
        believe(self, Manifest(manifest.entries[1:]) if self._publisher.node == 1 else manifest)

    def careless(self: SessionSet, session: object) -> bool:
        self._partner_digest = self.digest()
        return agree(self, session)  # type: ignore[arg-type]

    monkeypatch.setattr(SessionSet, "on_partner_manifest", forgetful)
    monkeypatch.setattr(SessionSet, "_agree", careless)
    assert "the sides hold" in finding("manifests.agreed", CUT)


def without(name: str) -> Callable[[Lanes], Iterator[None]]:
    """`Lanes.close` that leaves one thing as it is."""
    close = Lanes.close

    def leaky(self: Lanes) -> Iterator[None]:
        if name == "exposed_mr":
            self.exposed_mr = None
        else:
            self.failed = True
            for vi in self.vis:
                self.port.handlers.pop(vi.qp.qp_num, None)
            self.vis.clear()
        return close(self)

    return leaky


def test_a_key_that_outlives_its_epoch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lanes, "close", without("exposed_mr"))
    assert "the key of epoch" in finding("old_keys.dead", BOTH_CUT)
    assert "key of client 1" in finding("close.leaves_nothing", BOTH_CUT)


def test_a_virtual_interface_that_outlives_its_epoch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lanes, "close", without("vis"))
    assert "virtual interface" in finding("close.leaves_nothing", BOTH_CUT)


def test_a_stream_that_moves_before_the_former_path_is_drained_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "drained", property(lambda self: self.former is not None))
    assert "requests are under way on path" in finding("streams.whole", CUT, delay="2ms")


def test_streams_that_all_crowd_on_one_path_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = PathSet.choose

    def first(self: PathSet, client: int, epoch: int, turn: int) -> object:
        return choose(self, client, epoch, 0)

    monkeypatch.setattr(PathSet, "choose", first)
    late = "{at: 6s, fault: cable.cut, target: ic1, for: 20ms}"
    assert "packets by path" in finding("load.shared", late)


def test_work_posted_again_before_the_partner_has_parted_with_its_ends_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SessionSet, "_advance_mending", hasty)
    step = "{at: 300ms, fault: adapter.retry_exhausted, target: a.ic0}"
    assert "still takes writes" in finding("streams.whole", step)


def hasty(self: SessionSet, session: SessionCore, *, now: Instant) -> bool:
    """Waits for nobody."""
    index, _ = session.mending.popitem()
    self._reroute_one(session, index, now=now)
    return True


def strange(fault: str) -> str:
    return f"{{on: {{frame: {{opcode: RDMA_WRITE, from: a, nth: 200}}}}, fault: frame.{fault}}}"


OLD_FIRMWARE = (
    "{at: 300ms, fault: adapter.firmware_old, target: b.ic0, for: 4s},"
    " {at: 350ms, fault: cable.cut, target: ic0, for: 100ms}"
)
SKEW = "{at: 300ms, fault: operator.version_skew, target: b, version: 7, for: 3s}"
WRONG_KEY = "{at: 300ms, fault: operator.wrong_key, target: b, for: 1s}"


@pytest.mark.parametrize(
    ("steps", "check"),
    [
        (strange("spoof_source"), "strangers.shut_out"),
        (strange("rkey_guess"), "strangers.shut_out"),
        (strange("psn_jump"), "strangers.shut_out"),
        (WRONG_KEY, "strangers.shut_out"),
        (SKEW, "mismatch.told_to_both"),
        (OLD_FIRMWARE, "mismatch.told_to_both"),
    ],
)  # fmt: skip
def test_strangers_and_other_versions_are_refused(steps: str, check: str) -> None:
    result = play(steps)
    assert not found(result)
    assert {each.name: each.ok for each in result.checks}[check] is True
    reasons = {entry.extra for node in (1, 2) for entry in result.outcome.evidence.of(node, Kind.REFUSED)}
    if steps == WRONG_KEY:
        assert Reason.WRONG_PROOF in reasons
    if check == "mismatch.told_to_both":
        assert Reason.NO_COMMON_VERSION in reasons


def test_a_card_that_asks_no_address_takes_a_stranger_s_write_and_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = Envelopes.accept

    def trusting(self: Envelopes, frame: bytes) -> Accepted | str:
        if MARK in frame:
            friend = bytearray(frame)
            friend[29] = 1  # as if it came from node a
            friend[24:26] = bytes(2)
            friend[24:26] = internet_checksum(bytes(friend[14:34])).to_bytes(2, "big")
            return accept(self, bytes(friend))
        return accept(self, frame)

    monkeypatch.setattr(Envelopes, "accept", trusting)
    monkeypatch.setattr("emul.adapter.icrc_matches", lambda frame, accepted: True)
    assert "a stranger's bytes are in the NVRAM" in finding("strangers.shut_out", strange("spoof_source"))


def test_a_card_that_asks_for_no_key_takes_a_guess_and_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RegionTable.remote

    def any_key(self: RegionTable, rkey: int, addr: int, length: int, pd: int, access: int) -> object:
        fits = (r for r in self._by_key.values() if r.pd == pd and r.addr <= addr < r.addr + r.length)
        return remote(self, rkey, addr, length, pd, access) or next(fits, None)

    monkeypatch.setattr(RegionTable, "remote", any_key)
    assert "a stranger's bytes are in the NVRAM" in finding("strangers.shut_out", strange("rkey_guess"))


def test_a_firmware_that_believes_any_proof_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emul.firmware.any_proof_matches", lambda *proof: True)
    monkeypatch.setattr("ccm.peer_link.any_proof_matches", lambda *proof: True)
    assert "is let in with another key" in finding("strangers.shut_out", WRONG_KEY)


def test_versions_that_nobody_compares_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccm.settling.agree", lambda own, record, partner: Agreement(1, own.capabilities))
    assert "don't meet" in finding("versions.first", SKEW)


def test_a_side_that_is_not_told_of_the_mismatch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Notes.refused

    def silent(self: Notes, action: NoteRefused) -> None:
        if self._wiring.config.node_id == 1:
            refused(self, action)

    monkeypatch.setattr(Notes, "refused", silent)
    assert "its partner refuses it for its version" in finding("mismatch.told_to_both", SKEW)
