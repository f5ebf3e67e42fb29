"""Writes argv[1] numbered messages, a line on stdout and a line on stderr for each hundredth, then half a message, and exits with code 4."""

import os
import sys

channel = int(os.environ.get("DEKA_IPC_FD") or os.environ["NODE_CHANNEL_FD"])
line = '{"cmd":"NODE_HANDLE","msg":%d}\n' if "DEKA_IPC_FD" in os.environ else "%d\n"
count = int(sys.argv[1])
for number in range(count):
    data = (line % number).encode()
    while data:
        data = data[os.write(channel, data) :]
    if number % 100 == 0:
        os.write(1, b"out %d\n" % number)
        os.write(2, b"err %d\n" % number)
os.write(channel, (line % count)[:-2].encode() if "DEKA_IPC_FD" in os.environ else b'{"half":')
os._exit(4)
