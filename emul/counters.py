"""Counters under the names that engineers know: Linux rxe's and mlx5's hw_counters, and InfiniBand's in sysfs.

Knows where each figure comes from; what is counted, is counted by queue pairs, adapter and port. docs/counters.md tells
what each means. A name that two sources use for one thing appears once for each source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

OCTETS_PER_WORD = 4
"""InfiniBand's data counters count words of four octets."""

# name known from mlx5 (or rxe) -> our own figure
_SAME = {
    "out_of_buffer": "send_rnr_err",
    "out_of_sequence": "out_of_seq_request",
    "rnr_nak_retry_err": "rcvd_rnr_err",
    "packet_seq_err": "rcvd_seq_err",
    "local_ack_timeout_err": "timeouts",
    "implied_nak_seq_err": "completer_retry_err",
    "rx_icrc_encapsulated": "rx_icrc_error",
}
RXE = (
    "sent_pkts", "rcvd_pkts", "duplicate_request", "out_of_seq_request", "rcvd_rnr_err", "send_rnr_err", "rcvd_seq_err",
    "ack_deferred", "retry_exceeded_err", "retry_rnr_exceeded_err", "completer_retry_err", "send_err", "link_downed",
    "rdma_sends", "rdma_recvs",
)  # fmt: skip
"""All that Linux rxe has (drivers/infiniband/sw/rxe/rxe_hw_counters.c); what does not happen here stays 0."""
MLX5 = (
    "rx_write_requests", "rx_read_requests", "rx_atomic_requests", "out_of_buffer", "out_of_sequence",
    "duplicate_request", "rnr_nak_retry_err", "packet_seq_err", "implied_nak_seq_err", "local_ack_timeout_err",
    "resp_local_length_error", "resp_cqe_error", "resp_cqe_flush_error", "resp_remote_access_errors",
    "resp_remote_invalid_request", "req_cqe_error", "req_cqe_flush_error", "req_remote_access_errors",
    "req_remote_invalid_request", "rx_icrc_encapsulated", "np_cnp_sent", "np_ecn_marked_roce_packets",
    "rp_cnp_handled", "rp_cnp_ignored",
)  # fmt: skip
"""Those of mlx5 (drivers/infiniband/hw/mlx5/counters.c) that a RoCE adapter of this kind can tell."""


def with_known_names(counted: Mapping[str, int]) -> dict[str, int]:
    """All that was counted, and each name of RXE and MLX5 beside it."""
    total = Counter(counted)
    for name, source in _SAME.items():
        total[name] = total[source]
    for name in (*RXE, *MLX5):
        total.setdefault(name, 0)
    return dict(total)


def port_counters(counted: Mapping[str, int], *, octets_received: int, octets_sent: int) -> dict[str, int]:
    """The port's counters as /sys/class/infiniband/NAME/ports/1/counters has them."""
    received, sent = counted.get("rcvd_frames", 0), counted.get("sent_frames", 0)
    errors = sum(counted.get(name, 0) for name in _RECEIVE_ERRORS)
    return {
        "port_rcv_packets": received,
        "port_rcv_data": octets_received // OCTETS_PER_WORD,
        "port_xmit_packets": sent,
        "port_xmit_data": octets_sent // OCTETS_PER_WORD,
        "unicast_rcv_packets": received,
        "unicast_xmit_packets": sent,
        "multicast_rcv_packets": 0,
        "multicast_xmit_packets": 0,
        "port_rcv_errors": errors,
        "port_rcv_constraint_errors": counted.get("rx_wrong_source", 0),
        "port_rcv_remote_physical_errors": 0,
        "port_rcv_switch_relay_errors": 0,
        "port_xmit_discards": counted.get("tx_no_route", 0),
        "port_xmit_constraint_errors": 0,
        "port_xmit_wait": 0,
        "link_downed": counted.get("link_downed", 0),
        "link_error_recovery": 0,
        "local_link_integrity_errors": counted.get("rx_icrc_error", 0),
        "excessive_buffer_overrun_errors": 0,
        "symbol_error": 0,
        "VL15_dropped": counted.get("rx_bad_mad", 0),
    }


_RECEIVE_ERRORS = ("rx_icrc_error", "rx_bad_header", "rx_truncated", "rx_not_roce", "rx_no_qp", "rx_unexpected")
