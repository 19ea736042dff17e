"""The bpf(2) system call and a small assembler, as far as a port needs them.

Knows how to make an XSK map, load an XDP program and attach it by a link that goes away with its descriptor. Which
frames the program takes is `filters`' business. Numbers are those of linux/bpf.h and linux/bpf_common.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

_libc = ctypes.CDLL(None, use_errno=True)

_SYSTEM_CALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_ATTRIBUTE_BYTES = 128
_VERIFIER_LOG_BYTES = 64 * 1024


_SO_ATTACH_FILTER = 26
_FILTER_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: length, address
_FILTER_STEP_BYTES = 8


def attach_filter(opened: socket.socket, program: bytes) -> None:
    """Lets only frames through that a classic BPF program (an array of struct sock_filter) accepts. Raises OSError.

    It stands here and not beside its caller, as that one may be compiled: compiled code lets go of `text` once its
    address is known, before the kernel has read it.
    """
    text = ctypes.create_string_buffer(program, len(program))
    described = _FILTER_PROGRAM.pack(len(program) // _FILTER_STEP_BYTES, ctypes.addressof(text))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


class _Command(IntEnum):
    MAP_CREATE = 0
    MAP_UPDATE_ELEM = 2
    PROG_LOAD = 5
    LINK_CREATE = 28


_MAP_TYPE_XSKMAP = 17
_PROG_TYPE_XDP = 6
_ATTACH_TYPE_XDP = 37
_XDP_HAS_FRAGS = 1 << 5

_MAP_CREATE = struct.Struct("=IIIII")  # type, key bytes, value bytes, entries, flags
_MAP_UPDATE = struct.Struct("=IxxxxQQQ")  # map, key, value, flags
_PROG_LOAD = struct.Struct("=IIQQIIQII16s")
# type, instructions, their address, licence, log level, log bytes, log, kernel version, flags, name
_LINK_CREATE = struct.Struct("=IIII")  # program, interface index, attach type, flags


class XdpMode(IntEnum):
    """Where the program runs: XDP_FLAGS_* of linux/if_link.h."""

    GENERIC = 1 << 1
    NATIVE = 1 << 2


class XdpAction(IntEnum):
    """What an XDP program returns."""

    DROP = 1
    PASS = 2


class Register(IntEnum):
    """R0 is the result, R1-R5 the arguments, R6-R9 survive calls."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6


class Size(IntEnum):
    """How much a load takes."""

    WORD = 0x00
    HALF = 0x08
    BYTE = 0x10


class Helper(IntEnum):
    """Kernel functions that a program calls."""

    REDIRECT_MAP = 51


# Instruction classes, sources and operations (linux/bpf_common.h, linux/bpf.h).
_LD, _LDX, _JMP, _JMP32, _ALU64 = 0x00, 0x01, 0x05, 0x06, 0x07
_IMMEDIATE, _REGISTER = 0x00, 0x08
_MODE_IMMEDIATE, _MODE_MEMORY = 0x00, 0x60
_DOUBLE_WORD = 0x18
_ADD, _AND, _MOVE = 0x00, 0x50, 0xB0
_ALWAYS, _EQUAL, _GREATER, _NOT_EQUAL, _CALL, _EXIT = 0x00, 0x10, 0x20, 0x50, 0x80, 0x90
_PSEUDO_MAP_FD = 1

_INSTRUCTION = struct.Struct("=BBhi")
INSTRUCTION_BYTES = _INSTRUCTION.size


@dataclass(frozen=True, slots=True)
class _Instruction:
    code: int
    target: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0
    label: str | None = None


class Assembler:
    """Collects instructions; jumps name labels, which may come later."""

    def __init__(self) -> None:
        self._instructions: list[_Instruction] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Names the place of the next instruction."""
        if name in self._labels:
            raise ValueError(f"label {name!r} is defined twice")
        self._labels[name] = len(self._instructions)

    def load(self, size: Size, target: Register, source: Register, offset: int) -> None:
        """Does target = the `size` at source + offset, as the processor orders bytes, zero-extended."""
        self._emit(_LDX | size | _MODE_MEMORY, target, source, offset)

    def move(self, target: Register, immediate: int) -> None:
        """Does target = immediate."""
        self._emit(_ALU64 | _MOVE | _IMMEDIATE, target, immediate=immediate)

    def copy(self, target: Register, source: Register) -> None:
        """Does target = source."""
        self._emit(_ALU64 | _MOVE | _REGISTER, target, source)

    def add(self, target: Register, immediate: int) -> None:
        """Does target += immediate."""
        self._emit(_ALU64 | _ADD | _IMMEDIATE, target, immediate=immediate)

    def mask(self, target: Register, immediate: int) -> None:
        """Does target &= immediate."""
        self._emit(_ALU64 | _AND | _IMMEDIATE, target, immediate=immediate)

    def jump(self, label: str) -> None:
        """Continues at `label`."""
        self._emit(_JMP | _ALWAYS, label=label)

    def jump_if_greater(self, left: Register, right: Register, label: str) -> None:
        """Continues at `label` where left > right, unsigned, 64 bits."""
        self._emit(_JMP | _GREATER | _REGISTER, left, right, label=label)

    def jump_if_equal(self, left: Register, immediate: int, label: str) -> None:
        """Continues at `label` where the low 32 bits of `left` are `immediate` (0 ... 2^32 - 1)."""
        self._emit(_JMP32 | _EQUAL | _IMMEDIATE, left, immediate=_signed(immediate), label=label)

    def jump_unless_equal(self, left: Register, immediate: int, label: str) -> None:
        """Continues at `label` where the low 32 bits of `left` are not `immediate`."""
        self._emit(_JMP32 | _NOT_EQUAL | _IMMEDIATE, left, immediate=_signed(immediate), label=label)

    def load_map(self, target: Register, map_fd: int) -> None:
        """Does target = the map behind `map_fd` (takes two places)."""
        self._emit(_LD | _DOUBLE_WORD | _MODE_IMMEDIATE, target, _PSEUDO_MAP_FD, immediate=map_fd)
        self._emit(0)

    def call(self, helper: Helper) -> None:
        """R0 = helper(R1, ...); R1-R5 are gone afterwards."""
        self._emit(_JMP | _CALL, immediate=helper)

    def exit(self) -> None:
        """Ends the program with R0."""
        self._emit(_JMP | _EXIT)

    def assemble(self) -> bytes:
        """The program's bytes. Raises ValueError for a jump to a label that nobody defined."""
        return b"".join(self._encode(place, item) for place, item in enumerate(self._instructions))

    def _encode(self, place: int, item: _Instruction) -> bytes:
        offset = item.offset
        if item.label is not None:
            if item.label not in self._labels:
                raise ValueError(f"jump to an unknown label {item.label!r}")
            offset = self._labels[item.label] - place - 1
        return _INSTRUCTION.pack(item.code, item.source << 4 | item.target, offset, item.immediate)

    def _emit(
        self, code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0, label: str | None = None
    ) -> None:
        self._instructions.append(_Instruction(code, target, source, offset, immediate, label))


def _signed(value: int) -> int:
    """The 32 bits of `value` as the immediate field holds them."""
    return value - (1 << 32) if value >= 1 << 31 else value


def create_xsk_map(entries: int) -> int:
    """Makes a map from receive queue to AF_XDP socket; gives its descriptor. Raises OSError (EPERM without CAP_BPF)."""
    return _bpf(_Command.MAP_CREATE, _MAP_CREATE.pack(_MAP_TYPE_XSKMAP, 4, 4, entries, 0))


def update_map(map_fd: int, key: int, value: int) -> None:
    """Sets map[key] = value, both 32 bits. Raises OSError."""
    key_cell, value_cell = ctypes.c_uint32(key), ctypes.c_uint32(value)
    addresses = ctypes.addressof(key_cell), ctypes.addressof(value_cell)
    _bpf(_Command.MAP_UPDATE_ELEM, _MAP_UPDATE.pack(map_fd, *addresses, 0))


def load_program(code: bytes, name: str, *, in_pieces: bool = False) -> int:
    """Loads an XDP program; gives its descriptor.

    `name` is what tools show, at most 15 characters. `in_pieces`: it can do with packets of which only the beginning is
    in its reach (Linux 5.18). Raises OSError; when the verifier refused the program, the message
    ends with the verifier's log.
    """
    try:
        return _load(code, name, in_pieces, None)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
        log = ctypes.create_string_buffer(_VERIFIER_LOG_BYTES)
        try:
            return _load(code, name, in_pieces, log)
        except OSError as again:
            said = log.value.decode("ascii", "replace").strip()
            raise OSError(again.errno, f"{os.strerror(again.errno or 0)}; the verifier says: {said}") from None


def attach(program_fd: int, interface_index: int, mode: XdpMode) -> int:
    """Attaches a loaded program to an interface; gives the link's descriptor, whose last closing detaches it.

    Raises OSError: EBUSY where another program is attached, ERANGE where the MTU is too large for native mode,
    EOPNOTSUPP where the driver has no native mode.
    """
    return _bpf(_Command.LINK_CREATE, _LINK_CREATE.pack(program_fd, interface_index, _ATTACH_TYPE_XDP, mode))


def _load(code: bytes, name: str, in_pieces: bool, log: ctypes.Array[ctypes.c_char] | None) -> int:
    # No kernel function that the program calls is reserved for GPL programs, so it carries the project's own licence.
    licence = ctypes.create_string_buffer(b"MIT")
    text = ctypes.create_string_buffer(code, len(code))
    level, log_bytes, log_address = (1, len(log), ctypes.addressof(log)) if log is not None else (0, 0, 0)
    attribute = _PROG_LOAD.pack(
        _PROG_TYPE_XDP, len(code) // INSTRUCTION_BYTES, ctypes.addressof(text), ctypes.addressof(licence),
        level, log_bytes, log_address, 0, _XDP_HAS_FRAGS if in_pieces else 0, name.encode()[:15],
    )  # fmt: skip
    return _bpf(_Command.PROG_LOAD, attribute)


def _bpf(command: _Command, attribute: bytes) -> int:
    machine = platform.machine()
    number = _SYSTEM_CALL_NUMBERS.get(machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {machine} is not known here")
    buffer = ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES)
    result: int = _libc.syscall(number, int(command), buffer, _ATTRIBUTE_BYTES)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf({command.name}): {os.strerror(code)}")
    return result
