// Back-pressure both ways, with real children: one that does not read, and ones that never stop
// writing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "ipc/child_process.h"
#include "ipc/child_process_testing.h"
#include "ipc/error.h"

namespace deka::ipc {
namespace {

using std::chrono::milliseconds;

class BackPressureTest : public ChildProcessTest {};

TEST_F(BackPressureTest, AChildThatDoesNotReadFillsABoundedQueueAndTheSenderIsTold) {
  ForkOptions options = Program({"echo"});
  options.channel.queue_bytes_max = 2 << 20;
  Fork(std::move(options));
  Halt();
  const std::string json = JsonOf(1000);
  uint64_t sent = 0;
  size_t high = 0;
  absl::Status refused;
  for (;; ++sent) {
    const absl::StatusOr<Channel::Accepted> accepted = child_->Send(json, sent);
    if (!accepted.ok()) {
      refused = accepted.status();
      break;
    }
    ASSERT_LT(sent, 10000u) << "no bound";
    high += *accepted == Channel::Accepted::kAcceptedHigh ? 1 : 0;
    EXPECT_EQ(*accepted == Channel::Accepted::kAcceptedHigh,
              child_->queued_bytes() >= Channel::kSendBufferLow);
    RunFor(loop_, milliseconds(0));
  }
  EXPECT_EQ(ReasonOf(refused), Reason::kQueueFull);
  EXPECT_EQ(MetadataOf(refused, "limit"), "2097152");
  EXPECT_GT(high, 1000u);
  EXPECT_LE(child_->queued_bytes(), size_t{2} << 20);
  EXPECT_GT(child_->queued_bytes(), (size_t{2} << 20) - 2000);
  const size_t queued = child_->queued_messages();
  EXPECT_FALSE(child_->Send(json).ok());
  EXPECT_EQ(child_->queued_messages(), queued) << "what is refused is not queued";
  EXPECT_FALSE(heard_.Has('d'));
  EXPECT_LT(heard_.sent_tags.size(), sent) << "told when written, not before";

  GoOn();
  ASSERT_TRUE(Until([&] { return heard_.messages.size() == sent; }));
  EXPECT_EQ(heard_.Count('d'), 1u);
  ASSERT_EQ(heard_.sent_tags.size(), sent);
  for (uint64_t tag = 0; tag < sent; ++tag) ASSERT_EQ(heard_.sent_tags[tag], tag);
  EXPECT_EQ(*child_->Send(json), Channel::Accepted::kAccepted);
}

// A child that writes without end, handled batch by batch.
class FloodTest : public ChildProcessTest, public ChildProcess::Listener {
 protected:
  static constexpr char kFrame[] = R"({"cmd":"NODE_HANDLE","msg":12345678})";

  void Flood(const std::string& redirection) {
    ForkOptions options = Shell("exec yes '" + std::string(kFrame) + "' " + redirection);
    options.stdout_mode = Stdio::kPipe;
    absl::StatusOr<std::unique_ptr<ChildProcess>> child =
        ChildProcess::Fork(loop_, std::move(options), *this);
    ASSERT_TRUE(child.ok()) << child.status();
    child_ = *std::move(child);
  }

  void OnMessage(Message message) override {
    EXPECT_EQ(message.json, "12345678");
    handled_ += sizeof(kFrame);  // with the line break
  }
  void OnOutput(OutputLine line) override {
    EXPECT_EQ(line.text, kFrame);
    handled_ += sizeof(kFrame);
  }
  void OnReadEnd() override {
    ++batches_;
    child_->PauseReading();
  }

  // What the child has written in whole calls, of which each is a few KiB.
  int64_t Written() const {
    std::ifstream io("/proc/" + std::to_string(child_->pid()) + "/io");
    std::string name;
    for (int64_t value; io >> name >> value;) {
      if (name == "wchar:") return value;
    }
    ADD_FAILURE() << "the kernel does not count what a process writes";
    return 0;
  }

  // It sleeps: nothing but a write that blocks makes it.
  [[nodiscard]] bool UntilChildIsBlocked() {
    return Until([&] {
      RunFor(loop_, milliseconds(1));
      std::ifstream stat("/proc/" + std::to_string(child_->pid()) + "/stat");
      std::string pid, name, state;
      stat >> pid >> name >> state;
      return name == "(yes)" && state == "S";
    });
  }

  void ExpectToBeReadAtThePaceItIsHandled() {
    constexpr int64_t kUnhandledMax = 1 << 20;  // in the kernel and here
    constexpr size_t kBatches = 60;
    while (batches_ < kBatches) {
      const size_t before = batches_;
      ASSERT_TRUE(Until([&] { return batches_ > before; }));
      ASSERT_TRUE(UntilChildIsBlocked());
      ASSERT_EQ(batches_, before + 1) << "nothing is told while reading is paused";
      ASSERT_LT(Written() - handled_, kUnhandledMax);
      child_->ResumeReading();
    }
    EXPECT_GT(handled_, 2 * kUnhandledMax);
  }

  int64_t handled_ = 0;
  size_t batches_ = 0;
};

TEST_F(FloodTest, OfMessagesIsReadAtThePaceItIsHandled) {
  Flood(">&3");
  ExpectToBeReadAtThePaceItIsHandled();
}

TEST_F(FloodTest, OfOutputIsReadAtThePaceItIsHandled) {
  Flood("");
  ExpectToBeReadAtThePaceItIsHandled();
}

}  // namespace
}  // namespace deka::ipc
