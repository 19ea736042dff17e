#!/usr/bin/python3
"""Runs in the guest: carries out requests of the tests with the guest's own verbs (pyverbs over rdma_rxe).

Requests and answers are lines of JSON on a serial port: {"do": name, ...} -> {"result": ...} or {"error": text}.
Objects are known by numbers. Only Python's standard library and pyverbs are here.
"""

import base64
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tty
from pathlib import Path

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR, MW, MWBindInfo
from pyverbs.pd import PD
from pyverbs.qp import QPAttr, QPCap, QPEx, QPInitAttrEx
from pyverbs.wr import SGE, RecvWR, SendWR

PORTS = "vport*"
PORT_TIMEOUT_S = 30
SAY_TIMEOUT_S = 10
SLOTS = 64
POLL_INTERVAL_S = 0.001
REGION_ACCESS = ("LOCAL_WRITE", "REMOTE_WRITE", "REMOTE_READ", "REMOTE_ATOMIC", "MW_BIND")
SEND_OPS = (
    e.IBV_QP_EX_WITH_RDMA_WRITE | e.IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | e.IBV_QP_EX_WITH_SEND
    | e.IBV_QP_EX_WITH_SEND_WITH_IMM | e.IBV_QP_EX_WITH_RDMA_READ | e.IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP
    | e.IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD | e.IBV_QP_EX_WITH_BIND_MW | e.IBV_QP_EX_WITH_SEND_WITH_INV
)  # fmt: skip
"""FLUSH and ATOMIC WRITE are asked for apart: a kernel that lacks them may refuse the queue pair."""
PLACEMENT_OPS = 1 << 11 | 1 << 12  # IBV_QP_EX_WITH_FLUSH, IBV_QP_EX_WITH_ATOMIC_WRITE
FLUSH_GLOBAL_ACCESS, FLUSH_PERSISTENT_ACCESS = 1 << 8, 1 << 9
STATES = {getattr(e, f"IBV_QPS_{name}"): name for name in ("RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR")}
STATUSES = {getattr(e, name): name.removeprefix("IBV_WC_") for name in dir(e) if name.startswith("IBV_WC_") and (
    name.endswith("_ERR") or name == "IBV_WC_SUCCESS")}  # fmt: skip


class End:
    """A queue pair with a region of its own."""

    def __init__(self, context, length, access, placement, sge_max):
        self.context = context
        self.pd = PD(context)
        flags = FLUSH_GLOBAL_ACCESS if placement else 0
        for name in access:
            flags |= getattr(e, f"IBV_ACCESS_{name}")
        self.mr = MR(self.pd, length, flags)
        self.cq = CQ(context, 4 * SLOTS)
        cap = QPCap(max_send_wr=SLOTS, max_recv_wr=SLOTS, max_send_sge=sge_max, max_recv_sge=sge_max)
        asked = QPInitAttrEx(
            qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, pd=self.pd, sq_sig_all=1,
            comp_mask=e.IBV_QP_INIT_ATTR_PD | e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
            send_ops_flags=SEND_OPS | (PLACEMENT_OPS if placement else 0),
        )  # fmt: skip
        self.qp = QPEx(context, asked)
        self.windows = []


class Agent:
    """All that the tests ask for."""

    def __init__(self):
        self.ends = {}
        self.programs = {}
        self.contexts = {}
        self.connections = {}

    def do_run(self, command, timeout=60):
        """A command to its end."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        return {"status": done.returncode, "out": done.stdout, "err": done.stderr}

    def do_start(self, name, command):
        """A program in the background."""
        with Path(f"/tmp/{name}.out").open("wb") as out:
            self.programs[name] = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def do_finish(self, name, timeout):
        """Waits for a program; kills it after `timeout` s. Its status is null then."""
        program = self.programs.pop(name)
        try:
            status = program.wait(timeout)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
            status = None
        return {"status": status, "out": Path(f"/tmp/{name}.out").read_text(errors="replace")}

    def do_say(self, port, text, answer_bytes):
        """Says something to a program that listens on a TCP port of this machine, and gives its answer. The first call
        connects.
        """
        connection = self.connections.get(port)
        if connection is None:
            connection = self.connections[port] = socket.create_connection(("127.0.0.1", port), SAY_TIMEOUT_S)
        connection.sendall(text.encode("latin-1"))
        answer = b""
        while len(answer) < answer_bytes:
            more = connection.recv(answer_bytes - len(answer))
            if not more:
                raise OSError(f"port {port}: closed after {answer!r}")
            answer += more
        if not answer_bytes:
            self.connections.pop(port).close()
        return answer.decode("latin-1")

    def do_open(self, end, device, length, access=REGION_ACCESS, placement=False, sge_max=4):
        context = self.contexts.get(device)
        if context is None:
            context = self.contexts[device] = Context(name=device)
        made = self.ends[end] = End(context, length, access, placement, sge_max)
        return {"qpn": made.qp.qp_num, "addr": made.mr.buf, "rkey": made.mr.rkey, "lkey": made.mr.lkey}

    def do_close(self, end):
        made = self.ends.pop(end)
        made.qp.close()
        for window in made.windows:
            window.close()
        made.mr.close()
        made.cq.close()
        made.pd.close()

    def do_connect(self, end, peer_qpn, peer_gid, gid_index, sq_psn, rq_psn, path_mtu, access=REGION_ACCESS,
                   placement=False, timeout=14, retry_cnt=7, rnr_retry=7, min_rnr_timer=12, rd_atomic=16):  # fmt: skip
        """RESET -> RTS; numbers are those of the verbs."""
        attr = QPAttr(port_num=1)
        attr.qp_access_flags = sum(getattr(e, f"IBV_ACCESS_{name}") for name in access if name != "MW_BIND")
        if "MW_BIND" in access:
            attr.qp_access_flags |= e.IBV_ACCESS_MW_BIND
        if placement:
            attr.qp_access_flags |= FLUSH_GLOBAL_ACCESS
        attr.path_mtu, attr.dest_qp_num = path_mtu, peer_qpn
        attr.rq_psn, attr.sq_psn = rq_psn, sq_psn
        attr.max_rd_atomic = attr.max_dest_rd_atomic = rd_atomic
        attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry = min_rnr_timer, timeout, retry_cnt, rnr_retry
        route = GlobalRoute(dgid=GID(peer_gid), sgid_index=gid_index)
        attr.ah_attr = AHAttr(gr=route, is_global=1, port_num=1)
        self.ends[end].qp.to_rts(attr)

    def do_fill(self, end, data, offset=0):
        raw = base64.b64decode(data)
        ctypes.memmove(self.ends[end].mr.buf + offset, raw, len(raw))

    def do_bytes(self, end, offset, length):
        return base64.b64encode(ctypes.string_at(self.ends[end].mr.buf + offset, length)).decode()

    def do_recv(self, end, wr_id, pieces):
        made = self.ends[end]
        sg = [SGE(made.mr.buf + offset, length, made.mr.lkey) for offset, length in pieces]
        made.qp.post_recv(RecvWR(wr_id=wr_id, num_sge=len(sg), sg=sg))

    def do_send(self, end, wr_id, opcode, pieces=(), rkey=0, addr=0, imm=0, compare=0, swap=0, length=0, data="",
                placement=1, level=0, flags=2):  # fmt: skip
        """One request: `pieces` are (offset, length) in the end's region."""
        made = self.ends[end]
        qp = made.qp
        if len(pieces) > 1:
            sg = [SGE(made.mr.buf + offset, piece, made.mr.lkey) for offset, piece in pieces]
            wr = SendWR(wr_id=wr_id, opcode=getattr(e, f"IBV_WR_{opcode}"), num_sge=len(sg), sg=sg, send_flags=flags)
            wr.set_wr_rdma(rkey, addr)
            qp.post_send(wr)
            return
        qp.wr_start()
        qp.wr_id, qp.wr_flags = wr_id, flags
        if opcode == "SEND":
            qp.wr_send()
        elif opcode == "SEND_WITH_IMM":
            qp.wr_send_imm(imm)
        elif opcode == "SEND_WITH_INV":
            qp.wr_send_inv(imm)
        elif opcode == "RDMA_WRITE":
            qp.wr_rdma_write(rkey, addr)
        elif opcode == "RDMA_WRITE_WITH_IMM":
            qp.wr_rdma_write_imm(rkey, addr, imm)
        elif opcode == "RDMA_READ":
            qp.wr_rdma_read(rkey, addr)
        elif opcode == "ATOMIC_CMP_AND_SWP":
            qp.wr_atomic_cmp_swp(rkey, addr, compare, swap)
        elif opcode == "ATOMIC_FETCH_AND_ADD":
            qp.wr_atomic_fetch_add(rkey, addr, compare)
        elif opcode == "FLUSH":
            qp.wr_flush(rkey, addr, length, placement, level)
        elif opcode == "ATOMIC_WRITE":
            qp.wr_atomic_write(rkey, addr, base64.b64decode(data))
        else:
            raise ValueError(f"no such opcode: {opcode}")
        if opcode not in ("FLUSH", "ATOMIC_WRITE"):
            [(offset, piece)] = pieces
            qp.wr_set_sge(SGE(made.mr.buf + offset, piece, made.mr.lkey))
        qp.wr_complete()

    def do_window(self, end, offset, length):
        """A memory window (type 2) over part of the region, bound through the queue pair; gives its key."""
        made = self.ends[end]
        window = MW(made.pd, e.IBV_MW_TYPE_2)
        made.windows.append(window)
        access = e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        key = (window.rkey & 0xFFFFFF00) | ((window.rkey + 1) & 0xFF)
        made.qp.wr_start()
        made.qp.wr_id, made.qp.wr_flags = 0, 2
        made.qp.wr_bind_mw(window, key, MWBindInfo(made.mr, made.mr.buf + offset, length, access))
        made.qp.wr_complete()
        return key

    def do_poll(self, end, count, timeout):
        """Waits until `count` completions are there or `timeout` s are over; gives what there is."""
        made, found, until = self.ends[end], [], time.monotonic() + timeout
        while len(found) < count:
            number, completions = made.cq.poll(count - len(found))
            for wc in completions[:number]:
                found.append({
                    "wr_id": wc.wr_id, "status": STATUSES.get(wc.status, str(wc.status)), "opcode": int(wc.opcode),
                    "byte_len": wc.byte_len, "imm": socket.ntohl(wc.imm_data & 0xFFFFFFFF), "flags": int(wc.wc_flags),
                })  # fmt: skip
            if not number:
                if time.monotonic() > until:
                    break
                time.sleep(POLL_INTERVAL_S)
        return found

    def do_state(self, end):
        attr, _ = self.ends[end].qp.query(e.IBV_QP_STATE)
        return STATES[attr.qp_state]

    def do_psns(self, end):
        attr, _ = self.ends[end].qp.query(e.IBV_QP_STATE | e.IBV_QP_SQ_PSN | e.IBV_QP_RQ_PSN)
        return {"sq_psn": attr.sq_psn, "rq_psn": attr.rq_psn}


def find_port():
    """The serial port, which the kernel may still be making. Its number is the kernel's choice."""
    until = time.monotonic() + PORT_TIMEOUT_S
    while not (found := list(Path("/dev").glob(PORTS))):
        if time.monotonic() > until:
            raise OSError(f"no /dev/{PORTS}")
        time.sleep(0.05)
    return found[0]


def main():
    """Answers until the machine is switched off."""
    port = os.open(find_port(), os.O_RDWR)
    if os.isatty(port):
        tty.setraw(port)
    stream_in, stream_out = os.fdopen(port, "rb", buffering=0), os.fdopen(os.dup(port), "wb", buffering=0)
    agent, pending = Agent(), b""
    stream_out.write(json.dumps({"result": os.uname().release}).encode() + b"\n")
    while True:
        chunk = stream_in.read(65536)
        if not chunk:
            time.sleep(0.1)  # nobody at the other end
            continue
        pending += chunk
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            request = json.loads(line)
            try:
                answer = {"result": getattr(agent, "do_" + request.pop("do"))(**request)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            data = memoryview(json.dumps(answer).encode() + b"\n")
            while data:
                data = data[stream_out.write(data):]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        main()
    except BaseException as error:
        sys.stderr.write(f"agent: {error}\n")
        raise
