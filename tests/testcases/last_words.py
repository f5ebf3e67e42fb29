"""Writes argv[1] numbered messages in as few writes as the socket takes, and is gone: argv[2] is 'exit' (_exit(7)) or 'kill' (SIGKILL)."""

import os
import signal
import sys

channel = int(os.environ.get("DEKA_IPC_FD") or os.environ["NODE_CHANNEL_FD"])
line = '{"cmd":"NODE_HANDLE","msg":%d}\n' if "DEKA_IPC_FD" in os.environ else "%d\n"
data = memoryview("".join(line % number for number in range(int(sys.argv[1]))).encode())
while data:
    data = data[os.write(channel, data) :]
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(7)
