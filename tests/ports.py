"""Ports for servers that tests start."""

import random
import socket


def free_port() -> int:
    """A port of this machine that is free, and that the system gives nobody who asks for any.

    A server takes seconds to come to its port; one out of the system's own range (from 32768 on) could be gone by then.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
