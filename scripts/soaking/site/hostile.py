"""A hostile handler in a walled-in host: it does what its client says."""

import contextlib
import logging
import os
import stat

from rooms import clients, say

from wsrelay import WsrelayError, process

log = logging.getLogger("soak")


def hostile():
    for message in clients():
        if message.topic == "ws.message":
            ATTACKS[message.payload["data"]](message.sender)
            say(message.sender, "done")


def must_be_refused(what, call, *args):
    try:
        call(*args)
    except (WsrelayError, LookupError):
        return
    log.error("room: it could %s", what)


def flood_output(_):
    for _ in range(100):
        os.write(2, b"\x1b[2J" + b"x" * 65_000 + b"\n")


def flood_log(_):
    for number in range(20_000):
        log.warning("\x1b]0;title\x07 \u202e %s", number)


def many_receivers(_):
    process.send([process.pid()[:-1] + "zzzz}"] * 1_000_000, "nothing")


def many_frames(_):
    nobody = process.pid()[:-1] + "zzzz}"
    for _ in range(100_000):
        process.send(nobody, "nothing")


def many_names(_):
    with_prefix = process.pid().host + "/"
    must_be_refused(
        "have all names",
        lambda: [process.registry.register(f"{with_prefix}{i}") for i in range(20_000)],
    )


def many_groups(_):
    must_be_refused("join all groups", lambda: [process.groups.join(f"{i}") for i in range(20_000)])


def spawn_elsewhere(_):
    must_be_refused("spawn in another host", process.exec, "soak:echo", "soak:processes")


def cancel_others(_):
    with contextlib.suppress(LookupError):
        process.cancel(process.registry.lookup("echo 0"))  # its clients would report it


def flood_control(client):
    for _ in range(50):
        process.send(client, "ws.control", {"metadata": {"x": "y" * 1_000_000}})


def long_reason(_):
    process.cancel(process.spawn(idle), "x" * 20_000_000)


def many_elements(_):
    process.send(process.pid(), "elements", [[]] * 5_000_000)


def write_garbage(_):
    for number in range(3, 64):
        try:
            if stat.S_ISFIFO(os.fstat(number).st_mode):
                os.write(number, os.urandom(4096))
        except OSError:
            continue


def many_drains(client):
    for _ in range(1000):
        with contextlib.suppress(TimeoutError):
            process.drain(client, timeout=0)


def idle():
    for _ in process.inbox():
        pass


ATTACKS = {
    "print": flood_output,
    "log": flood_log,
    "receivers": many_receivers,
    "frames": many_frames,
    "names": many_names,
    "groups": many_groups,
    "spawn": spawn_elsewhere,
    "cancel": cancel_others,
    "control": flood_control,
    "reason": long_reason,
    "elements": many_elements,
    "garbage": write_garbage,
    "drain": many_drains,
}
