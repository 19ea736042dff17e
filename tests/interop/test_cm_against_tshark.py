"""REQ and REP as tshark reads them: each field in its place, with a value that stands nowhere else."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from emul.wire import mad
from emul.wire.address import address_bytes, gid_bytes
from emul.wire.frame import Flow
from emul.wire.headers import BTH, DETH, P_KEY_FULL, Opcode

pytestmark = [pytest.mark.needs_tshark]
A, B = "10.77.0.1", "10.77.0.2"
TRANSACTION = 0xA1A2A3A4A5A6A7A8


def dissected(directory: Path, message: mad.Message) -> dict[str, str]:
    """All fields that tshark finds in the message, by name."""
    flow = Flow(
        source_mac=b"\x02\0\0\0\0\x01", target_mac=b"\x02\0\0\0\0\x02", source=address_bytes(A),
        target=address_bytes(B), source_port=0xC001,
    )  # fmt: skip
    bth = BTH.pack(Opcode.UD_SEND_ONLY, 0, P_KEY_FULL, 1, 5)
    frame = flow.frame(bth, DETH.pack(mad.CM_Q_KEY, 1) + message.emit(TRANSACTION))
    file = directory / "cm.pcap"
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    file.write_bytes(header + struct.pack("<IIII", 1, 0, len(frame), len(frame)) + frame)
    done = subprocess.run(["tshark", "-r", str(file), "-T", "json"], capture_output=True, text=True, check=True)
    found: dict[str, str] = {}

    def collect(node: object) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                if isinstance(value, str):
                    found[name] = value
                else:
                    collect(value)

    collect(json.loads(done.stdout)[0]["_source"]["layers"])
    assert not any("malformed" in name for name in found)
    return found


def numbers(found: dict[str, str], prefix: str, names: list[str]) -> dict[str, int]:
    return {name: int(found[f"{prefix}.{name}"], 0) for name in names}


@pytest.mark.parametrize("addresses", [(A, B), ("fd00:77::1", "fd00:77::2")], ids=["IPv4", "IPv6"])
def test_a_req_and_its_header_of_rdma_cm(tmp_path: Path, addresses: tuple[str, str]) -> None:
    source, target = (address_bytes(each) for each in addresses)
    req = mad.Req(
        local_comm_id=0x01020304, service_id=0x0106_1D2F, local_qpn=0x212223, starting_psn=0x313233,
        local_gid=gid_bytes(source), remote_gid=gid_bytes(target), path_mtu=4, responder_resources=0x61,
        initiator_depth=0x62, remote_response_timeout=0x13, local_response_timeout=0x12, retry_count=5,
        rnr_retry_count=6, max_cm_retries=0xE, local_ack_timeout=0x11, p_key=0x7172, ca_guid=0x8182838485868788,
        private_data=mad.RdmaCmHeader(0xC0DE, source, target).emit() + b"hello", flow_control=1, srq=1,
        flow_label=0xABCDE, traffic_class=0x91, hop_limit=0x92,
    )  # fmt: skip
    found = dissected(tmp_path, req)
    expected = {
        "localqpn": 0x212223, "responderres": 0x61, "initdepth": 0x62, "remoteresptout": 0x13, "transpsvctype": 0,
        "e2eflowctrl": 1, "startpsn": 0x313233, "localresptout": 0x12, "retrcount": 5, "pkey": 0x7172, "pppmtu": 4,
        "rdcexist": 0, "rnrretrcount": 6, "maxcmretr": 0xE, "srq": 1, "ext_transport": 0,
        "prim_tfcclass": 0x91, "prim_hoplim": 0x92, "prim_sl": 0, "prim_subnetlocal": 0, "prim_localacktout": 0x11,
    }  # fmt: skip
    assert numbers(found, "infiniband.cm.req", list(expected)) == expected
    # tshark 4.0 shows 12 of its 20 bits; Linux (include/rdma/ibta_vol1_c12.h) has it in the upper 20 of 32.
    assert int(found["infiniband.cm.req.prim_flowlabel"], 0) in (0xABC, 0xABCDE)
    assert int(found["infiniband.cm.req.localcaguid"].replace(":", ""), 16) == 0x8182838485868788
    assert int(found["infiniband.cm.req.serviceid.dport"], 0) == 0x1D2F
    header = {name: value for name, value in found.items() if name.startswith("infiniband.cm.req.ip_cm.")}
    version = 4 if len(source) == 4 else 6
    assert int(header["infiniband.cm.req.ip_cm.ipv"], 0) == version
    assert int(header["infiniband.cm.req.ip_cm.sport"], 0) == 0xC0DE
    assert header[f"infiniband.cm.req.ip_cm.sip{version}"] == addresses[0]
    assert header[f"infiniband.cm.req.ip_cm.dip{version}"] == addresses[1]
    assert header["infiniband.cm.req.ip_cm.private"].replace(":", "").startswith(b"hello".hex())
    assert int(found["infiniband.mad.transactionid"], 0) == TRANSACTION


def test_a_rep(tmp_path: Path) -> None:
    rep = mad.Rep(
        0x01020304, 0x11121314, 0x212223, 0x313233, 0x41, 0x42, 0x15, 6, 0x5152535455565758, b"welcome", 1, 1
    )  # fmt: skip
    found = dissected(tmp_path, rep)
    expected = {
        "remotecommid": 0x11121314, "localqpn": 0x212223, "startpsn": 0x313233, "respres": 0x41, "initdepth": 0x42,
        "tgtackdelay": 0x15, "failoveracc": 0, "e2eflowctrl": 1, "rnrretrcount": 6, "srq": 1,
    }  # fmt: skip
    assert numbers(found, "infiniband.cm.rep", list(expected)) == expected


@pytest.mark.parametrize(
    ("message", "attribute"),
    [
        (mad.Mra(7, 8, 1, 20), 0x11), (mad.Rej(7, 8, 1, 28, b"no", b"why"), 0x12), (mad.Rtu(7, 8, b"x"), 0x14),
        (mad.Dreq(7, 8, 9), 0x15), (mad.Drep(7, 8), 0x16),
    ],
)  # fmt: skip
def test_the_other_messages_are_whole(tmp_path: Path, message: mad.Message, attribute: int) -> None:
    found = dissected(tmp_path, message)
    assert int(found["infiniband.mad.attributeid"], 0) == attribute
    assert int(found["infiniband.mad.transactionid"], 0) == TRANSACTION
    if attribute != 0x11:  # of an MRA tshark 4.0 shows the header alone
        assert any(name.startswith("infiniband.cm.") for name in found)
