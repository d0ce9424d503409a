"""`python -m tests.shard.paused SHARDS build …`: the command of `shard`, standing still after some shards.

Until a signal comes: a small build would now and then be over before it.
"""

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from shard.__main__ import main
from shard.execute import Workers

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    shards, real = int(sys.argv[1]), Workers.unordered

    def unordered(*arguments: Any) -> Iterator[tuple[Any, Any]]:
        for finished, found in enumerate(real(*arguments), 1):
            if finished == shards:  # workers end what they have been given, a few shards more
                for _ in range(1200):  # not signal.pause(): it sleeps through a signal that came just before
                    time.sleep(0.05)
                sys.exit("no signal came")
            yield found

    with mock.patch.object(Workers, "unordered", unordered):
        sys.exit(main(sys.argv[2:]))
