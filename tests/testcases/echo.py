"""Sends every message back, as it came, until its channel ends. Speaks either dialect: a line is a line."""

import os

channel = int(os.environ.get("DEKA_IPC_FD") or os.environ["NODE_CHANNEL_FD"])
rest = b""
while True:
    data = os.read(channel, 65536)
    if not data:
        break
    whole, line_break, rest = (rest + data).rpartition(b"\n")
    answer = memoryview(whole + line_break)
    while answer:
        answer = answer[os.write(channel, answer) :]
