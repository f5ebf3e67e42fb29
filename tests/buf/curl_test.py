"""`buf curl`, a gRPC client that knows nothing of us, learns the API by reflection and uses it."""

import base64
import json
import os
import subprocess

import bridge


class CurlTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()

    def curl(self, method, request):
        """Calls a method, and gives the answers' JSON objects."""
        program = os.path.abspath(os.path.join(os.environ["NODE_MODULES"], "@bufbuild/buf/bin/buf"))
        if not os.path.exists(program):
            self.fail(f"{program} is missing: run ./bazelw once, or: cd tests/npm && npm ci")
        result = subprocess.run(
            [
                bridge.node(),
                program,
                "curl",
                *("--unix-socket", self.agent.path),
                *("--protocol", "grpc"),
                "--http2-prior-knowledge",
                *("--data", json.dumps(request)),
                f"http://localhost/{method}",
            ],
            # buf keeps a cache in the home directory.
            env={**os.environ, "HOME": self.directory},
            capture_output=True,
            text=True,
            timeout=bridge.DEADLINE_S,
            check=False,
        )
        return result.returncode, self.objects(result.stdout), result.stderr

    def objects(self, text):
        decoder = json.JSONDecoder()
        found = []
        text = text.strip()
        while text:
            value, end = decoder.raw_decode(text)
            found.append(value)
            text = text[end:].strip()
        return found

    def test_a_unary_call(self):
        child = self.agent.fork("echo.py", display_name="echo")
        code, answers, errors = self.curl("deka.bridge.v1.BridgeService/GetChild", {"name": "echo"})
        self.assertEqual(code, 0, errors)
        self.assertEqual(answers[0]["child"]["name"], child.name)
        self.assertEqual(answers[0]["child"]["state"], "STATE_CONNECTED")

        code, answers, errors = self.curl(
            "deka.bridge.v1.BridgeService/SendMessage", {"child": "echo", "json": "1e999"}
        )
        self.assertEqual(code, 0, errors)
        self.assertEqual(answers[0]["outcome"], "SEND_OUTCOME_WRITTEN")

    def test_a_streaming_call(self):
        child = self.agent.fork("echo.py", display_name="echo")
        child.send('{"hello":1}')
        child.disconnect()
        code, answers, errors = self.curl(
            "deka.bridge.v1.BridgeService/Observe",
            {
                "parent": "agents/-",
                "filter": {"children": ["echo"]},
                "observation": {"start": {"earliest": True}, "untilClosed": True},
            },
        )
        self.assertEqual(code, 0, errors)
        self.assertIn("attached", answers[0])
        self.assertEqual(answers[-1]["fin"]["reason"], "REASON_CLOSED")
        events = [event for answer in answers for event in answer.get("batch", {}).get("events", [])]
        self.assertEqual(
            [event.get("json") for event in events if "fromChild" in event or "toChild" in event], ['{"hello":1}'] * 2
        )
        self.assertIn("closed", events[-1])

    def test_an_error(self):
        code, answers, errors = self.curl("deka.bridge.v1.BridgeService/GetChild", {"name": "nobody"})
        self.assertNotEqual(code, 0)
        self.assertEqual(answers, [])
        self.assertIn("not_found", errors)
        self.assertIn("nobody", errors)
        (detail,) = json.loads(errors)["details"]
        self.assertEqual(detail["type"], "google.rpc.ErrorInfo")
        # Reflection need not know of it, so buf shows its bytes.
        self.assertIn(b"CHILD_NOT_FOUND", base64.b64decode(detail["value"] + "=="))


if __name__ == "__main__":
    bridge.main()
