"""What an agent keeps of children that have ended: for some a description and a log, and nothing else."""

import os

import bridge
from bridge import Code

COUNT = 1000
KEPT = 32


class LeakTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent(f"limits {{ ended_children_max: {KEPT} }}\n")
        self.pid = self.agent.pid
        self.observer = self.agent.observe()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def status(self, name):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))

    def children_of_the_process(self):
        """Zombies too: the kernel lists them until they are reaped."""
        task = f"/proc/{self.agent.process.pid}/task"
        found = []
        for thread in os.listdir(task):
            with open(f"{task}/{thread}/children", encoding="ascii") as children:
                found += children.read().split()
        # The keeper's own: the agent, and its spare.
        return [pid for pid in found if os.path.basename(os.readlink(f"/proc/{pid}/exe")) != "deka-agent"]

    def fork_and_wait(self, count):
        before = len(self.observer.of("closed"))
        for number in range(count):
            if number % 3 == 0:
                self.agent.fork("/bin/sh", "-c", 'echo "$$"; echo "$$" >&2; printf "%s\\n" 1 >&3', dialect=bridge.NODE)
            else:
                self.agent.fork("/bin/true", no_channel=number % 3 == 1)
            if number % 10 == 0:
                with self.assertRefused(Code.NOT_FOUND, "PROGRAM_NOT_FOUND"):
                    self.agent.fork("/no/such/program")
        self.observer.wait_for_count("closed", before + count)

    def test_a_thousand_forks(self):
        # More than are kept, so that everything that grows with the first ones is there.
        self.fork_and_wait(200)
        descriptors, threads, resident = self.descriptors(), self.status("Threads"), self.status("VmRSS")
        self.fork_and_wait(COUNT)
        bridge.wait_until(lambda: not self.children_of_the_process(), "every process is reaped")
        bridge.wait_until(lambda: self.descriptors() <= descriptors, "the descriptors of before")
        # gRPC has some more when it is busy.
        self.assertLess(self.status("Threads"), threads + 10)
        # A log of one event is a page; a thousand that nobody frees would be more.
        self.assertLess(self.status("VmRSS") - resident, 4 * COUNT)

        kept = self.agent.list(page_size=1000).children
        self.assertLessEqual(len(kept), KEPT)
        self.assertGreater(len(kept), 0)
        names = {child.name for child in kept}
        self.assertIn(self.observer.of("closed")[-1].child, {name.rpartition("/")[2] for name in names})
        forgotten = self.observer.of("started")[0].started.child.name
        with self.assertRefused(Code.NOT_FOUND, "CHILD_NOT_FOUND"):
            self.agent.send(forgotten, "1")
        self.agent.pids.clear()


if __name__ == "__main__":
    bridge.main()
