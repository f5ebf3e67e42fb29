"""Plays each transcript of docs/ipc-protocol.md: the child's bytes and a client's messages in, the agent's bytes and the events out."""

import re

import bridge

DOCUMENT = "docs/ipc-protocol.md"
DIALECTS = {"deka": bridge.DEKA, "node": bridge.NODE}


def transcripts():
    """(line number, dialect, [(line number, text)]) of each block."""
    found = []
    block = None
    with open(DOCUMENT, encoding="utf-8") as file:
        for number, line in enumerate(file.read().split("\n"), 1):
            if block is not None:
                if line == "```":
                    block = None
                else:
                    block.append((number, line))
                continue
            opening = re.fullmatch(r"```transcript (\w+)", line)
            if opening:
                block = []
                found.append((number, opening[1], block))
    return found


class TranscriptTest(bridge.TestCase):
    def play(self, dialect, steps):
        agent = self.start_agent()
        puppet = bridge.Puppet(self, agent, dialect=DIALECTS[dialect])
        observer = puppet.child.observe()
        seen = 1  # `started` is before every transcript.
        for number, step in steps:
            word, _, rest = step.partition(" ")
            with self.subTest(line=number, step=step):
                if word == "child>":
                    puppet.write(rest.encode() + b"\n")
                elif word == "child|":
                    puppet.write(rest.encode())
                elif word == "closes":
                    puppet.close_channel()
                elif word == "send>":
                    puppet.child.send(rest.lstrip(" "))
                elif word == "agent>":
                    self.assertEqual(puppet.read_line().decode(), rest + "\n")
                elif word == "event>":
                    observer.wait_for(lambda: len(observer.events) > seen, step)
                    event = observer.events[seen]
                    seen += 1
                    shown = [bridge.kind_of(event)]
                    if event.WhichOneof("kind") == "error":
                        shown.append(event.error.reason)
                    payload = event.raw.decode() or event.json
                    if payload:
                        shown.append(payload)
                    expected = rest
                    if event.WhichOneof("kind") == "error" and event.error.size_bytes > len(event.raw):
                        # The document shows the whole line, the event its beginning.
                        expected = " ".join(rest.split(" ")[:2]) + " " + rest.split(" ", 2)[2][: len(event.raw)]
                    self.assertEqual(" ".join(shown), expected)
                else:
                    self.fail(f"{DOCUMENT}:{number}: unknown step: {step}")
        self.assertEqual(len(observer.events), seen, "nothing else happened")

    def test_transcripts(self):
        blocks = transcripts()
        self.assertGreaterEqual(len(blocks), 7)
        for number, dialect, steps in blocks:
            with self.subTest(block=f"{DOCUMENT}:{number}"):
                # A folder for each agent.
                self.setUp()
                self.play(dialect, steps)
                self.doCleanups()


if __name__ == "__main__":
    bridge.main()
