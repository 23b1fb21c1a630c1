"""The filter of system calls, run by an interpreter of the kernel's BPF machine."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsrelay.confinement import seccomp
from wsrelay.confinement.seccomp import MACHINES, Machine
from wsrelay.confinement.syscalls import FILES, FIRST_UNKNOWN, OTHERS, SOCKETS, SyscallRule

ALLOWED = 0x7FFF0000
FAILS = 0x00050000
X32 = 0x40000000
NEWUSER = 0x10000000
THREAD = 0x3D0F00  # what pthread_create passes to clone
FORK = 0x1200011  # and what fork does

EVERYTHING = (*OTHERS, *FILES, *SOCKETS)
HEADERS = {
    True: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    False: Path("/usr/include/asm-generic/unistd.h"),
}

machines = pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))


def run(program: bytes, audit: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel does with a call: 0 if it passes, else the error's number."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, *[w % 2**64 for w in words])
    lines = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, operand = lines[at]
        at += 1
        if code == 0x20:
            assert operand % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            at += if_true if accumulator == operand else if_false
        elif code == 0x35:
            at += if_true if accumulator >= operand else if_false
        else:
            assert code == 0x06
            assert operand == ALLOWED or operand & 0xFFFF0000 == FAILS
            return 0 if operand == ALLOWED else operand & 0xFFFF


def number_of(call: SyscallRule, machine: Machine) -> int | None:
    return call.x86_64 if machine.is_x86_64 else call.generic


def decisions(calls: tuple[SyscallRule, ...], machine: Machine, *arguments: int) -> dict[str, int]:
    """What each call comes to with these arguments."""
    program = seccomp.assemble(calls, machine)
    numbers = {call.name: number_of(call, machine) for call in EVERYTHING}
    return {
        name: run(program, machine.audit, number, arguments)
        for name, number in numbers.items()
        if number is not None
    }


@machines
def test_every_call_that_is_not_listed_passes_whatever_its_arguments(machine: Machine) -> None:
    program = seccomp.assemble(EVERYTHING, machine)
    listed = {number_of(call, machine) for call in EVERYTHING}
    for number in set(range(FIRST_UNKNOWN)) - listed:
        for filling in (0, 1, 2**32 - 1, 2**64 - 1):
            assert run(program, machine.audit, number, (filling,) * 6) == 0, number


@machines
def test_what_is_newer_than_the_table_and_what_x32_calls_is_not_there(machine: Machine) -> None:
    program = seccomp.assemble(EVERYTHING, machine)
    newer = range(FIRST_UNKNOWN, FIRST_UNKNOWN + 1000)
    for number in (*newer, *(X32 + n for n in range(600)), 2**31, 2**32 - 1, -1):
        assert run(program, machine.audit, number) == errno.ENOSYS, number


@machines
def test_calls_of_another_architecture_are_not_there(machine: Machine) -> None:
    program = seccomp.assemble(EVERYTHING, machine)
    i386, arm, big_endian = 0x40000003, 0x40000028, machine.audit & ~0x40000000
    others = {other.audit for other in MACHINES.values()} - {machine.audit}
    for audit in (i386, arm, big_endian, *others):
        for number in range(FIRST_UNKNOWN + 50):
            assert run(program, audit, number) == errno.ENOSYS, (audit, number)


@machines
def test_a_call_without_conditions_fails_whatever_its_arguments(machine: Machine) -> None:
    program = seccomp.assemble(EVERYTHING, machine)
    for call in EVERYTHING:
        number = number_of(call, machine)
        if number is not None and not call.unless:
            for filling in (0, 1, 2**32 - 1, 2**64 - 1):
                got = run(program, machine.audit, number, (filling,) * 6)
                assert got == call.error, call.name


def spelled_out() -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Calls that depend on their arguments, and what they come to."""
    own_thread = ["prlimit64", "migrate_pages", "move_pages", "sched_setaffinity"]
    for name in (*own_thread, "sched_setparam", "sched_setscheduler", "sched_setattr"):
        yield name, (0, 7), 0
        yield name, (2**32, 7), 0  # the kernel takes an int
        for pid in (1, 4711, 2**31, -1):
            yield name, (pid, 7), errno.EPERM
    yield from (("setpriority", (which, 0, 5), 0 if which == 0 else 1) for which in range(3))
    yield from (("ioprio_set", (which, 0), 0 if which == 1 else 1) for which in range(1, 4))
    yield "setpriority", (0, 4711, 5), errno.EPERM
    yield "ioprio_set", (1, 4711), errno.EPERM
    for flags in (THREAD, FORK, 17, 0x4111):  # the last one is vfork's
        yield "clone", (flags,), 0
    for bit in (17, *range(25, 31)):  # CLONE_NEWNS; -CGROUP, -UTS, -IPC, -USER, -PID, -NET
        yield "clone", (1 << bit | FORK,), errno.EPERM
        yield "clone", (1 << bit,), errno.EPERM
        yield "unshare", (1 << bit,), errno.EPERM
    yield "unshare", (0x80,), errno.EPERM  # CLONE_NEWTIME
    yield "unshare", (0x600,), 0  # CLONE_FS | CLONE_FILES
    for request in (0x5412, 0x541C):
        yield "ioctl", (1, request), errno.EPERM
        yield "ioctl", (1, request | 2**32), errno.EPERM
    for request in (0x5401, 0x5413, 0x541B, 0x5421):  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO
        yield "ioctl", (1, request), 0
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
    for family, kind, flags in itertools.product((0, 1, 2, 10, 16), kinds, (0, 0x800, 0x80800)):
        passes = family == socket.AF_UNIX and kind == socket.SOCK_STREAM
        yield "socketpair", (family, kind | flags), 0 if passes else errno.EACCES


@machines
def test_calls_that_depend_on_their_arguments(machine: Machine) -> None:
    program = seccomp.assemble((*OTHERS, *SOCKETS), machine)
    numbers = {call.name: number_of(call, machine) for call in EVERYTHING}
    seen = set()
    for name, arguments, result in spelled_out():
        number = numbers[name]
        assert number is not None
        assert run(program, machine.audit, number, arguments) == result, (name, arguments)
        seen.add(name)
    assert seen == {call.name for call in EVERYTHING if call.unless}


@machines
def test_flags_of_files_are_kept_where_files_are(machine: Machine) -> None:
    for request in (0x40086602, 0x40046602, 0x401C5820, 0x40087602, 0x40806685, 0x5000940F):
        assert decisions((*OTHERS, *FILES), machine, 1, request)["ioctl"] == errno.EPERM
        assert decisions(OTHERS, machine, 1, request)["ioctl"] == 0
    assert decisions((*OTHERS, *FILES), machine, 1, 0x5412)["ioctl"] == errno.EPERM


@machines
def test_each_table_refuses_its_own_calls_alone(machine: Machine) -> None:
    only = {call.name for call in SOCKETS}
    assert {name for name, result in decisions(SOCKETS, machine).items() if result} == only
    files = {call.name for call in FILES} - {"ioctl"}
    assert {name for name, result in decisions(FILES, machine).items() if result} == {
        name for name in files if number_of(next(c for c in FILES if c.name == name), machine)
    }


@pytest.mark.parametrize("is_x86_64", HEADERS)
def test_numbers_are_those_of_the_system_s_headers(is_x86_64: bool) -> None:
    if not (header := HEADERS[is_x86_64]).exists():
        pytest.skip(f"there is no {header}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    numbers = {name: int(number) for name, number in found}
    assert numbers["read"] == (0 if is_x86_64 else 63)
    newest = max(numbers.values())
    for call in EVERYTHING:
        number = call.x86_64 if is_x86_64 else call.generic
        if number is None or number <= newest:
            assert numbers.get(call.name) == number, call.name


def test_new_calls_have_one_number_on_all_architectures() -> None:
    for call in EVERYTHING:
        if max(call.x86_64 or 0, call.generic or 0) >= 424:
            assert call.x86_64 == call.generic, call.name
            assert call.x86_64 is not None
            assert call.x86_64 < FIRST_UNKNOWN


def test_a_program_is_as_long_as_the_kernel_takes() -> None:
    for machine in MACHINES.values():
        assert len(seccomp.assemble(EVERYTHING, machine)) // 8 < 4096  # BPF_MAXINSNS


def test_a_machine_whose_calls_are_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        machine = "vax"

    monkeypatch.setattr(os, "uname", Other)
    with pytest.raises(seccomp.SeccompError, match="the system calls of vax are not known"):
        seccomp.forbid(OTHERS)


def test_a_32_bit_python_on_a_64_bit_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        machine: Any = "x86_64"

    monkeypatch.setattr(os, "uname", Kernel)
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    with pytest.raises(seccomp.SeccompError, match="of x86_64 in 32 bits are not known"):
        seccomp.forbid(OTHERS)
