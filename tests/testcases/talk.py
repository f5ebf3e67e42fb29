"""Python with nothing but its own library: files over the channel, json, either dialect. Answers {"add":[a,b]} with the sum."""

import json
import os
import sys

deka = "DEKA_IPC_FD" in os.environ
channel = int(os.environ["DEKA_IPC_FD"] if deka else os.environ["NODE_CHANNEL_FD"])
lines_in = open(os.dup(channel), encoding="utf-8", newline="\n")
lines_out = open(channel, "w", encoding="utf-8", newline="\n")


def send(value):
    print(json.dumps({"cmd": "NODE_HANDLE", "msg": value} if deka else value), file=lines_out, flush=True)


send({"ready": True})
for line in lines_in:
    message = json.loads(line)
    if deka:
        message = message["msg"]
    if message == "end":
        break
    print("adding", message["add"], flush=True)
    send({"sum": sum(message["add"])})
print("done", file=sys.stderr)
