"""Writes the numbers from 0 up to argv[1] as fast as they are taken, 100 lines a write; ends with code 0."""

import os
import sys

channel = int(os.environ.get("DEKA_IPC_FD") or os.environ["NODE_CHANNEL_FD"])
line = '{"cmd":"NODE_HANDLE","msg":%d}\n' if "DEKA_IPC_FD" in os.environ else "%d\n"
count = int(sys.argv[1])
for first in range(0, count, 100):
    lines = "".join(line % number for number in range(first, min(first + 100, count))).encode()
    while lines:
        lines = lines[os.write(channel, lines) :]
