"""One end of a test: an adapter, a queue pair that is connected to the other end's, and buffers."""

from __future__ import annotations

import secrets
from errno import EIO, EPROTO, ETIMEDOUT
from types import TracebackType
from typing import Self

from emul.cm import CMID, RAI_PASSIVE, AddrInfo, ConnParam
from emul.enums import IBV_QP_CAP
from emul.errors import RDMAError
from emul.opening import OwnedDevice, open_adapter
from emul.perftest.exchange import Exchange
from emul.perftest.options import Options
from emul.verbs import CQ, GID, MR, PD, QP, SGE, WC, AHAttr, CompChannel, GlobalRoute, QPAttr, QPCap, QPInitAttr
from emul.vocabulary import MTU, AccessFlags, RecvWR, WCStatus
from emul.wire.address import address_bytes, address_text

ACCESS = AccessFlags.LOCAL_WRITE | AccessFlags.REMOTE_WRITE | AccessFlags.REMOTE_READ | AccessFlags.REMOTE_ATOMIC
BUFFER_BYTES_MIN = 4096
POLLS_BEFORE_SLEEP = 200
"""Without -e: how often a queue is polled before the end sleeps. Two ends and two adapters share few cores here, and
who polls for ever keeps its own adapter from running."""
POLL_MAX = 64
SERVICE_PORT = 18_515
"""Where a server is called with -R: a port of its adapter, which nobody else has."""


class End:
    """The adapter and all that is opened on it. `source` and `target` are offsets of the two halves of its region."""

    def __init__(self, options: Options, exchange: Exchange) -> None:
        self.options = options
        self.exchange = exchange
        self.context = open_adapter(options.interface, options.local, options.wire)
        try:
            self._open(options)
        except BaseException:
            self.context.close()
            raise

    def _open(self, options: Options) -> None:
        self.half = max(BUFFER_BYTES_MIN, options.sizes[-1])
        self.pd = PD(self.context)
        self.mr = MR(self.pd, 2 * self.half, ACCESS)
        self.source, self.target = 0, self.half
        self.channel = CompChannel(self.context)
        depth = options.tx_depth + options.rx_depth
        self.cq = CQ(self.context, 2 * depth, None, self.channel, 0)
        cap = QPCap(options.tx_depth + 1, options.rx_depth, 1, 1, options.inline)
        self.qp = QP(self.pd, QPInitAttr(cap=cap, scq=self.cq, rcq=self.cq, sq_sig_all=0))
        self.inline = self.qp.query(IBV_QP_CAP)[1].cap
        port = self.context.query_port(1)
        self.mtu = options.mtu if options.mtu is not None else port.active_mtu
        self.psn = secrets.randbelow(1 << 24)
        self.remote: dict[str, object] = {}
        self.connection: CMID | None = None
        """With -R: what connection management knows of it."""

    @property
    def wire(self) -> str:
        """How the adapter moves frames."""
        device = self.context.device
        return device.wire if isinstance(device, OwnedDevice) else "?"

    def facts(self) -> dict[str, object]:
        """What the other end must know."""
        options = self.options
        return {
            "test": options.test, "sizes": list(options.sizes), "iters": options.iters, "qpn": self.qp.qp_num,
            "psn": self.psn, "rkey": self.mr.rkey, "vaddr": self.mr.buf + self.target, "outs": options.outstanding,
            "gid": self.context.query_gid(1, options.gid_index).gid, "mtu": int(self.mtu),
            "bidirectional": options.bidirectional, "duration": options.duration_s, "managed": options.managed,
        }  # fmt: skip

    def connect(self) -> dict[str, object]:
        """Swaps facts with the other end and connects the queue pairs; gives our own."""
        mine = self.facts()
        listener = self._listen() if self.options.managed and self.options.server is None else None
        theirs = self.exchange.swap(mine)
        for name in ("test", "sizes", "iters", "bidirectional", "duration", "managed"):
            if theirs.get(name) != mine[name]:
                raise RDMAError(EPROTO, f"the ends differ in {name}: here {mine[name]}, there {theirs.get(name)}")
        if self.options.managed:
            self.join_managed(theirs, listener)
            mine["psn"] = self.qp.query().sq_psn
        else:
            self.join(theirs)
        return mine

    def join_managed(self, theirs: dict[str, object], listener: CMID | None) -> None:
        """Connects the queue pair through connection management: calls the other end, or takes the call that comes to
        `listener`. Raises RDMAError.
        """
        self.remote = theirs
        self.mtu = MTU(min(int(self.mtu), self.number("mtu")))
        param = ConnParam(resources=self.options.outstanding, depth=self.number("outs"), retry=7, rnr_retry=7)
        if listener is not None:
            called = self.connection = listener.get_request()
            called.qp = self.qp
            called.accept(param)
            listener.close()
        else:
            address = address_text(address_bytes(str(theirs["gid"])))
            to = AddrInfo(dst=address, service=SERVICE_PORT)
            calling = self.connection = CMID(to, None, self.pd, timeout_ms=self._patience_ms)
            calling.ack_timeout = self.options.timeout
            calling.qp = self.qp
            calling.connect(param)
        theirs["psn"] = self.qp.query().rq_psn

    def _listen(self) -> CMID:
        listener = CMID(
            AddrInfo(service=SERVICE_PORT, flags=RAI_PASSIVE), None, self.pd, timeout_ms=self._patience_ms
        )
        listener.listen()
        return listener

    @property
    def _patience_ms(self) -> int:
        return int(1000 * self.options.max_seconds)

    def join(self, theirs: dict[str, object]) -> None:
        """Connects the queue pair to the other end's: `theirs` are its qpn, psn, gid, mtu and outs."""
        self.remote = theirs
        self.mtu = MTU(min(int(self.mtu), self.number("mtu")))
        attr = QPAttr(
            path_mtu=self.mtu, dest_qp_num=self.number("qpn"), rq_psn=self.number("psn"), sq_psn=self.psn,
            qp_access_flags=ACCESS, ah_attr=AHAttr(gr=GlobalRoute(GID(str(theirs["gid"]))), is_global=1),
            max_rd_atomic=self.number("outs"), max_dest_rd_atomic=self.options.outstanding,
            timeout=self.options.timeout,
        )  # fmt: skip
        self.qp.to_rts(attr)

    def number(self, name: str) -> int:
        """One of the other end's facts. Raises RDMAError (EPROTO)."""
        value = self.remote.get(name)
        if not isinstance(value, int):
            raise RDMAError(EPROTO, f"the other end told {value!r} for {name}")
        return value

    def barrier(self) -> None:
        """Both ends have come here."""
        self.exchange.swap({})

    def source_piece(self, size: int) -> SGE:
        """What is sent."""
        return SGE(self.mr.buf + self.source, size, self.mr.lkey)

    def target_piece(self, size: int) -> SGE:
        """Where what is received goes."""
        return SGE(self.mr.buf + self.target, size, self.mr.lkey)

    def post_receives(self, count: int, size: int) -> None:
        """Posts buffers for `count` messages."""
        for number in range(count):
            self.qp.post_recv(RecvWR(number, 1, [self.target_piece(size)]))

    def completions(self) -> list[WC]:
        """At least one completion, all of them good. Raises RDMAError: EIO for one with an error, ETIMEDOUT."""
        polls = 1 if self.options.events else POLLS_BEFORE_SLEEP
        while True:
            for _ in range(polls):
                count, done = self.cq.poll(POLL_MAX)
                if count:
                    return _good(done)
            self.cq.req_notify()
            count, done = self.cq.poll(POLL_MAX)
            if count:
                return _good(done)
            try:
                self.channel.get_cq_event(self.cq, int(1000 * self.options.max_seconds))
            except BlockingIOError:
                raise RDMAError(ETIMEDOUT, "nothing completes") from None
            self.cq.ack_events(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.context.close()
        self.exchange.close()


def _good(done: list[WC]) -> list[WC]:
    for completion in done:
        if completion.status is not WCStatus.SUCCESS:
            raise RDMAError(
                EIO,
                f"completion with error: {completion.status.name} ({int(completion.status)}), wr_id {completion.wr_id}",
            )
    return done
