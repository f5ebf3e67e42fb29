// An agent that goes on where another one stopped. The one before is destroyed without an end: its
// memory and the children's descriptors are all that is left, as after a kill.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "agent/agent_memory.h"
#include "agent/agent_testing.h"
#include "agent/child_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ipc/descriptor.h"
#include "ipc/keeper.h"

namespace deka::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

ipc::Descriptor Duplicate(int descriptor) {
  return ipc::Descriptor(descriptor < 0 ? -1 : fcntl(descriptor, F_DUPFD_CLOEXEC, 3));
}

// A keeper in the same process: children are this process' own.
class TestKeeper : public ipc::Keeper {
 public:
  explicit TestKeeper(ipc::EventLoop& loop) : loop_(loop) {}

  ~TestKeeper() override {
    for (auto& [number, child] : children_) {
      if (!child.wait_status) kill(child.pid, SIGKILL), waitpid(child.pid, nullptr, 0);
    }
  }

  bool gone() const override { return gone_; }
  // As if it had ended.
  void Go() { gone_ = true; }

  spawn::Started Start(uint64_t number, const spawn::Options& options, const Held& held) override {
    if (gone_) {
      spawn::Started failed;
      failed.failed_step = spawn::Step::kStart;
      failed.error = EPIPE;
      return failed;
    }
    const spawn::Started started = spawn::Spawn(options);
    if (started.failed_step != spawn::Step::kNone) return started;
    Child& child = children_[number];
    child.pid = started.pid;
    child.pidfd = Duplicate(started.pidfd);
    child.memory = Duplicate(held.memory);
    child.channel = Duplicate(held.channel);
    for (int i = 0; i < 2; ++i) child.output[i] = Duplicate(held.output[i]);
    child.watch = std::make_unique<ipc::Watch>(loop_, child.pidfd.get(), [this, number](int) {
      Child& ended = children_.at(number);
      int status = 0;
      if (waitpid(ended.pid, &status, WNOHANG) != ended.pid) return;
      ended.wait_status = status;
      ended.watch.reset();
      if (ended.ended) std::exchange(ended.ended, nullptr)(status);
    });
    child.watch->Want(ipc::Watch::kReadable);
    child.watch->Reference(false);
    return started;
  }

  void OnEnd(uint64_t number, Ended ended) override {
    if (!children_.contains(number)) return;  // it was not started
    Child& child = children_.at(number);
    child.ended = std::move(ended);
    if (!child.ended || !child.wait_status) return;
    loop_.Post([this, number] {
      Child& told = children_.at(number);
      if (told.ended) std::exchange(told.ended, nullptr)(*told.wait_status);
    });
  }

  void Acknowledge(uint64_t number) override { children_.at(number).acknowledged = true; }
  void Release(uint64_t number) override {
    Child& child = children_.at(number);
    child.channel.Close();
    for (ipc::Descriptor& output : child.output) output.Close();
    child.pidfd.Close();
    child.released = true;
  }
  void Forget(uint64_t number) override {
    if (!children_.contains(number)) return;
    Release(number);
    children_.at(number).memory.Close();
  }

  std::vector<Agent::FoundChild> Found() {
    std::vector<Agent::FoundChild> found;
    for (auto& [number, child] : children_) {
      if (!child.memory.valid()) continue;
      Agent::FoundChild& one = found.emplace_back();
      one.number = number;
      one.memory = Duplicate(child.memory.get());
      one.channel = Duplicate(child.channel.get());
      for (int i = 0; i < 2; ++i) one.output[i] = Duplicate(child.output[i].get());
      one.pid = child.pid;
      one.pidfd = Duplicate(child.pidfd.get());
    }
    return found;
  }

  struct Child {
    pid_t pid = 0;
    ipc::Descriptor pidfd, memory, channel, output[2];
    std::unique_ptr<ipc::Watch> watch;
    std::optional<int> wait_status;
    Ended ended;
    bool acknowledged = false, released = false;
  };
  std::map<uint64_t, Child> children_;

 private:
  ipc::EventLoop& loop_;
  bool gone_ = false;
};

class RecoveryTest : public AgentTest {
 protected:
  RecoveryTest() : keeper_(std::make_unique<TestKeeper>(loop_)) { Replace(); }
  ~RecoveryTest() override {
    agent_.reset();
    keeper_.reset();
  }

  // The agent ends without a word, `meanwhile` happens, and another one goes on.
  std::vector<absl::Status> Replace(const std::function<void()>& meanwhile = [] {}) {
    agent_.reset();
    meanwhile();
    auto agent = Agent::Create(
        loop_, {.id = "host", .limits = limits_, .keeper = keeper_.get(), .memory = &memory_});
    EXPECT_TRUE(agent.ok()) << agent.status();
    agent_ = *std::move(agent);
    return agent_->Recover(keeper_->Found());
  }

  // Waits for a condition that the children bring about, with the agent or without.
  static void WaitUntil(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      sched_yield();
    }
  }

  // What can be read of a descriptor that is held, without reading it.
  size_t Readable(uint64_t number, bool output = false) {
    TestKeeper::Child& child = keeper_->children_.at(number);
    int bytes = 0;
    ioctl(output ? child.output[0].get() : child.channel.get(), FIONREAD, &bytes);
    return static_cast<size_t>(bytes);
  }

  Shown Earliest(const v1::Child& child) {
    v1::ObserveRequest request;
    request.mutable_filter()->add_children(child.name());
    request.mutable_observation()->mutable_start()->set_earliest(true);
    auto observation = Observe(request);
    EXPECT_TRUE(observation.ok()) << observation.status();
    Shown shown;
    TakeAll(**observation, shown);
    return shown;
  }

  // What all children said after this sequence.
  Shown After(int64_t sequence) {
    v1::ObserveRequest request;
    v1::Cursor& cursor = *request.mutable_observation()->mutable_start()->mutable_after();
    cursor.set_agent("host");
    cursor.set_epoch(memory_.epoch);
    cursor.set_sequence(sequence);
    auto observation = Observe(request);
    EXPECT_TRUE(observation.ok()) << observation.status();
    Shown shown;
    TakeAll(**observation, shown);
    return shown;
  }

  // Runs the loop until the child's story has `count` events.
  Shown UntilEvents(const v1::Child& child, size_t count) {
    Shown shown;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (shown.events.size() < count && std::chrono::steady_clock::now() < deadline) {
      shown = Earliest(child);
    }
    EXPECT_GE(shown.events.size(), count);
    return shown;
  }

  static void ExpectDense(const Shown& shown) {
    EXPECT_TRUE(shown.gaps.empty());
    for (size_t i = 0; i < shown.events.size(); ++i) {
      EXPECT_EQ(shown.events[i].child_sequence(), static_cast<int64_t>(i + 1));
    }
  }

  Limits limits_;
  AgentMemory memory_;
  std::unique_ptr<TestKeeper> keeper_;
};

TEST_F(RecoveryTest, AConversationGoesOn) {
  const v1::Child child = ForkScript(kEcho, "echo");
  ASSERT_TRUE(Send(Message(child, "1")).ok());
  const Shown before = UntilEvents(child, 3);
  EXPECT_TRUE(Replace().empty());
  const absl::StatusOr<v1::Child> same = Get("agents/-/children/echo");
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->name(), child.name());
  EXPECT_EQ(same->pid(), child.pid());
  EXPECT_EQ(same->dialect_reason(), child.dialect_reason());
  EXPECT_EQ(same->state(), v1::Child::STATE_CONNECTED);
  ASSERT_TRUE(Send(Message(child, "2")).ok());
  const Shown after = UntilEvents(child, 5);
  EXPECT_EQ(after.attached.epoch(), before.attached.epoch());
  EXPECT_THAT(after.payloads(), ElementsAre("", "1", "1", "2", "2"));
  ExpectDense(after);
  EXPECT_EQ(after.events[4].sequence(), 5);
  EXPECT_EQ(after.events[1].SerializeAsString(), before.events[1].SerializeAsString());
}

TEST_F(RecoveryTest, NothingIsForkedWhenTheKeeperHasEnded) {
  const v1::Child child = ForkScript(kEcho);
  keeper_->Go();
  const absl::Status refused = Fork(Script("exit")).status();
  EXPECT_EQ(ipc::ReasonOf(refused), ipc::Reason::kKeeperGone) << refused;
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Send(Message(child, "1")).ok());
}

TEST_F(RecoveryTest, ARepeatThatNeverCameIsSent) {
  limits_.send_request_ids_max = 2;
  Replace();
  const v1::Child child = ForkScript(kEcho);
  const int64_t known = child.last_sequence();
  v1::SendMessageRequest first = Message(child, "1", "first");
  first.set_repeat(true);
  EXPECT_EQ(ipc::ReasonOf(Send(first).status()), ipc::Reason::kOutcomeUnknown);
  first.set_known_sequence(known);
  const absl::StatusOr<v1::SendMessageResponse> sent = Send(first);
  ASSERT_TRUE(sent.ok()) << sent.status();
  EXPECT_EQ(Send(first)->sequence(), sent->sequence());
  // Now one is forgotten: it might have been that which is asked for.
  int64_t newest = 0;
  for (const char* id : {"second", "third"}) newest = Send(Message(child, "2", id))->sequence();
  const auto repeat = [&](const std::string& id, int64_t known_sequence) {
    v1::SendMessageRequest request = Message(child, "3", id);
    request.set_repeat(true);
    request.set_known_sequence(known_sequence);
    return Send(request).status();
  };
  for (int agents = 0; agents < 2; ++agents) {
    EXPECT_EQ(ipc::ReasonOf(repeat("lost", known)), ipc::Reason::kOutcomeUnknown);
    EXPECT_TRUE(Replace().empty());
  }
  EXPECT_TRUE(repeat("lost", newest).ok());
}

TEST_F(RecoveryTest, ACursorGoesOnWithoutAGap) {
  const v1::Child child = ForkScript(kEcho);
  ASSERT_TRUE(Send(Message(child, "1")).ok());
  UntilEvents(child, 3);
  Replace();
  ASSERT_TRUE(Send(Message(child, "2")).ok());
  UntilEvents(child, 5);
  const Shown shown = After(2);
  EXPECT_TRUE(shown.gaps.empty());
  EXPECT_THAT(shown.payloads(), ElementsAre("1", "2", "2"));
}

TEST_F(RecoveryTest, WhatAChildWritesMeanwhileIsRecorded) {
  const std::string dir = testing::TempDir() + "go" + std::to_string(getpid());
  const v1::Child child = ForkScript("while [ ! -e " + dir + " ]; do :; done; " + Say("1") +
                                     Say("2") + "printf half >&3; echo out; printf more; exit 7");
  UntilEvents(child, 1);
  Replace([&] {
    ipc::Descriptor(open(dir.c_str(), O_CREAT | O_WRONLY, 0600));
    WaitUntil([&] { return Readable(1, true) == 8; });
  });
  unlink(dir.c_str());
  const Shown shown = WholeStory({child});
  ExpectDense(shown);
  EXPECT_THAT(Kinds(shown), SizeIs(9));
  EXPECT_EQ(shown.events[7].exited().status().code(), 7);
  EXPECT_TRUE(keeper_->children_.at(1).acknowledged);
  EXPECT_TRUE(keeper_->children_.at(1).released);
  std::vector<std::string> texts;
  for (const v1::Event& event : shown.events) {
    if (event.has_from_child()) texts.push_back(event.json());
    if (event.has_output()) texts.push_back(event.text());
    if (event.has_error()) texts.push_back(event.error().reason());
  }
  EXPECT_THAT(texts, testing::UnorderedElementsAre("1", "2", "FRAME_TRUNCATED", "out", "more"));
}

TEST_F(RecoveryTest, WhatIsQueuedIsWrittenOnceAndItsIdIsKnown) {
  // Reads nothing before it is told to.
  const std::string go = testing::TempDir() + "read" + std::to_string(getpid());
  const v1::Child child = ForkScript("while [ ! -e " + go + " ]; do :; done; cat <&3 | wc -c");
  const std::string large = "\"" + std::string(300'000, 'x') + "\"";
  auto accept = [&](const std::string& json, const std::string& id) {
    v1::SendMessageRequest request = Message(child, json, id);
    request.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
    return Send(request);
  };
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(accept(large, "id" + std::to_string(i)).ok());
  EXPECT_EQ(Get(child.name())->queued_messages(), 3);
  Replace();
  EXPECT_EQ(Get(child.name())->queued_messages(), 3);
  // Under way still, and known.
  EXPECT_TRUE(accept(large, "id1").ok());
  ExpectReason(accept("1", "id1").status(), ipc::Reason::kRequestIdReused);
  EXPECT_EQ(Get(child.name())->queued_messages(), 3);
  ipc::Descriptor(open(go.c_str(), O_CREAT | O_WRONLY, 0600));
  const Shown written = UntilEvents(child, 4);
  unlink(go.c_str());
  EXPECT_EQ(written.events[2].to_child().request_id(), "id1");
  EXPECT_EQ(written.events[2].to_child().sender().principal(), kCaller.principal);
  EXPECT_EQ(written.events[2].to_child().sender().client(), kCaller.client);
  Replace();
  // Finished, and remembered.
  v1::SendMessageRequest repeat = Message(child, large, "id2");
  repeat.set_repeat(true);
  const absl::StatusOr<v1::SendMessageResponse> answer = Send(repeat);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->sequence(), written.events[3].sequence());
  ASSERT_TRUE(Disconnect(child).ok());
  const Shown shown = WholeStory({child});
  ExpectDense(shown);
  size_t frames = 0;
  for (const v1::Event& event : shown.events) {
    if (event.has_output()) {
      EXPECT_EQ(event.text(), std::to_string(3 * (large.size() + 29)));
    }
    frames += event.has_to_child();
  }
  EXPECT_EQ(frames, 3u);
}

TEST_F(RecoveryTest, ADisconnectThatWasAskedForIsCarriedOn) {
  const std::string go = testing::TempDir() + "end" + std::to_string(getpid());
  const v1::Child child = ForkScript("while [ ! -e " + go + " ]; do :; done; cat <&3 >/dev/null");
  UntilEvents(child, 1);
  v1::DisconnectRequest request;
  request.set_child(child.name());
  agent_->Disconnect(request, kCaller, [](const auto&) {});
  v1::SendMessageRequest refused = Message(child, "1");
  ExpectReason(Send(refused).status(), ipc::Reason::kChannelClosed);
  Replace();
  ExpectReason(Send(refused).status(), ipc::Reason::kChannelClosed);
  ipc::Descriptor(open(go.c_str(), O_CREAT | O_WRONLY, 0600));
  const Shown shown = WholeStory({child});
  unlink(go.c_str());
  EXPECT_THAT(Kinds(shown), ElementsAre(v1::Event::kStarted, v1::Event::kDisconnected,
                                        v1::Event::kExited, v1::Event::kClosed));
  EXPECT_EQ(shown.events[1].disconnected().by(), v1::Disconnected::BY_CALLER);
  EXPECT_EQ(shown.events[1].disconnected().sender().principal(), kCaller.principal);
}

TEST_F(RecoveryTest, AForkThatIsRepeatedGivesTheSameChild) {
  const auto first = Fork(Script(kEcho), "fork-1");
  ASSERT_TRUE(first.ok());
  Replace();
  const auto again = Fork(Script(kEcho), "fork-1");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->child().name(), first->child().name());
  EXPECT_EQ(again->cursor().sequence(), first->cursor().sequence());
  ExpectReason(Fork(Script("exit 1"), "fork-1").status(), ipc::Reason::kRequestIdReused);
  EXPECT_EQ(List()->children_size(), 1);
}

TEST_F(RecoveryTest, EndedChildrenAreStillReadAndNumbersAreNotUsedAgain) {
  const v1::Child child = ForkScript(Say("1") + "exit 3");
  WholeStory({child});
  Replace();
  const absl::StatusOr<v1::Child> closed = Get(child.name());
  ASSERT_TRUE(closed.ok());
  EXPECT_EQ(closed->state(), v1::Child::STATE_CLOSED);
  EXPECT_EQ(closed->exit_status().code(), 3);
  const Shown shown = WholeStory({child});
  EXPECT_THAT(Kinds(shown),
              ElementsAre(v1::Event::kStarted, v1::Event::kFromChild, v1::Event::kDisconnected,
                          v1::Event::kExited, v1::Event::kClosed));
  const v1::Child second = ForkScript("exit 0");
  EXPECT_THAT(keeper_->children_, SizeIs(2));
  WholeStory({second});
}

TEST_F(RecoveryTest, AClosedChildKeepsItsLogAndNoStreams) {
  const v1::Child child = ForkScript("head -c 500000 /dev/zero | tr '\\0' x; exit 0");
  WholeStory({child});
  struct stat file = {};
  ASSERT_EQ(fstat(keeper_->children_.at(1).memory.get(), &file), 0);
  // The lines, once.
  EXPECT_LT(file.st_blocks * 512, 500'000 + (64 << 10));
}

TEST_F(RecoveryTest, ATimeOutIsKept) {
  v1::ChildSpec spec = Script("exec sleep 1000");
  spec.mutable_timeout()->set_nanos(300'000'000);
  const auto response = Fork(spec);
  ASSERT_TRUE(response.ok()) << response.status();
  Replace();
  const Shown shown = WholeStory({response->child()});
  EXPECT_THAT(Kinds(shown), testing::Contains(v1::Event::kSignalled));
}

TEST_F(RecoveryTest, EvictedEventsAreTheSameGap) {
  limits_.log_events_max = 64;
  Replace();
  const v1::Child child =
      ForkScript("i=0; while [ $i -lt 300 ]; do " + Say("7") + " i=$((i+1)); done; exit 0");
  ASSERT_TRUE(WaitFor(child, v1::Child::STATE_CLOSED).ok());
  const Shown before = After(1);
  Replace();
  const Shown after = After(1);
  ASSERT_THAT(before.gaps, SizeIs(1));
  ASSERT_THAT(after.gaps, SizeIs(1));
  EXPECT_EQ(after.gaps[0].SerializeAsString(), before.gaps[0].SerializeAsString());
  ASSERT_EQ(after.events.size(), before.events.size());
  EXPECT_EQ(after.events[0].SerializeAsString(), before.events[0].SerializeAsString());
}

TEST_F(RecoveryTest, AChildWhoseMemoryCannotBeIsLostAloneAndTheFieldIsNamed) {
  const v1::Child good = ForkScript(kEcho), bad = ForkScript(kEcho);
  UntilEvents(good, 1);
  const std::vector<absl::Status> failures = Replace([&] {
    void* const page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                            keeper_->children_.at(2).memory.get(), 0);
    ASSERT_NE(page, MAP_FAILED);
    static_cast<ipc::StreamMemory::Control*>(page)->inbox_capacity = 12345;
    munmap(page, 4096);
  });
  ASSERT_THAT(failures, SizeIs(1));
  EXPECT_THAT(std::string(failures[0].message()), HasSubstr("inbox capacity is 12345"));
  EXPECT_TRUE(Get(good.name()).ok());
  ExpectReason(Get(bad.name()).status(), ipc::Reason::kChildNotFound);
  EXPECT_TRUE(Send(Message(good, "1")).ok());
}

}  // namespace
}  // namespace deka::agent
