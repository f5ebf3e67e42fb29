// What the tests of ChildProcess share: a listener that writes down what it hears, and real tiny
// programs as children.
#ifndef IPC_CHILD_PROCESS_TESTING_H_
#define IPC_CHILD_PROCESS_TESTING_H_

#include <gtest/gtest.h>
#include <sys/types.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/child_process.h"
#include "ipc/event_loop.h"
#include "ipc/testing.h"

namespace deka::ipc {

inline constexpr char kChild[] = "ipc/testcases/process_child";

// Writes down what it hears: S spawn, m message, o output, e error, s sent, D disconnect, X exit,
// C close, d drain.
class Recorder : public ChildProcess::Listener, public Calls {
 public:
  void OnSpawn() override { Heard('S'); }
  void OnMessage(Message message) override {
    messages.emplace_back(message.json);
    Heard('m');
  }
  void OnOutput(OutputLine line) override {
    output[line.descriptor] += std::string(line.text) + (line.unterminated ? "!" : "|");
    Heard('o');
  }
  void OnError(BadFrame frame) override {
    errors.push_back(frame.reason);
    Heard('e');
  }
  void OnSent(Sent sent) override {
    sent_tags.push_back(sent.tag);
    sent_status = sent.status;
    Heard('s');
  }
  void OnDrain() override { Heard('d'); }
  void OnDisconnect(absl::Status status) override {
    disconnected = std::move(status);
    Heard('D');
  }
  void OnExit(ExitStatus status) override {
    exit = std::move(status);
    Heard('X');
  }
  void OnClose() override { Heard('C'); }

  std::vector<std::string> messages;
  std::string output[3];
  std::vector<absl::Status> errors;
  std::vector<uint64_t> sent_tags;
  std::optional<absl::Status> sent_status, disconnected;
  std::optional<ExitStatus> exit;
};

inline ForkOptions Shell(std::string script) {
  ForkOptions options;
  options.program = "/bin/sh";
  options.args = {"-c", std::move(script)};
  return options;
}

inline ForkOptions Program(std::vector<std::string> args) {
  ForkOptions options;
  options.program = kChild;
  options.args = std::move(args);
  return options;
}

// Node's frame of dialect deka, written by a shell.
inline std::string Say(std::string_view json) {
  return "echo '{\"cmd\":\"NODE_HANDLE\",\"msg\":" + std::string(json) + "}' >&3;";
}

// A JSON string of that many bytes.
inline std::string JsonOf(size_t size) { return '"' + std::string(size - 2, 'x') + '"'; }

class ChildProcessTest : public testing::Test {
 protected:
  ~ChildProcessTest() override {
    if (child_ != nullptr) (void)child_->Kill(SIGKILL);
  }

  void Fork(ForkOptions options) {
    absl::StatusOr<std::unique_ptr<ChildProcess>> child =
        ChildProcess::Fork(loop_, std::move(options), heard_);
    ASSERT_TRUE(child.ok()) << child.status();
    child_ = *std::move(child);
  }

  // Stops the child, and returns when it stands still.
  void Halt() {
    ASSERT_TRUE(child_->Kill(SIGSTOP).ok());
    siginfo_t stopped = {};
    ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child_->pid()), &stopped, WSTOPPED | WNOWAIT), 0);
  }
  void GoOn() { ASSERT_TRUE(child_->Kill(SIGCONT).ok()); }

  // Queues a message that is begun and cannot be finished: the child is halted.
  void SendBlocker(uint64_t tag) {
    ASSERT_TRUE(child_->Send(kBlocker, tag).ok());
    ASSERT_TRUE(Until([&] { return child_->queued_bytes() < kBlocker.size(); }));
    ASSERT_EQ(child_->queued_messages(), 1u);
  }

  absl::Status Refused(ForkOptions options) {
    return ChildProcess::Fork(loop_, std::move(options), heard_).status();
  }

  // Run(), which returns when nothing is left to wait for. False if that takes too long.
  [[nodiscard]] bool RunToTheEnd() {
    bool ended = true;
    Timer deadline(loop_);
    deadline.Start(
        std::chrono::seconds(30),
        [&] {
          ended = false;
          loop_.Stop();
        },
        /*referenced=*/false);
    loop_.Run();
    return ended;
  }

  [[nodiscard]] bool Until(absl::FunctionRef<bool()> condition) {
    return RunUntil(loop_, condition);
  }
  [[nodiscard]] bool UntilHeard(char event) {
    return Until([&] { return heard_.Has(event); });
  }

  static inline const std::string kBlocker = JsonOf(1 << 20);

  EventLoop loop_;
  Recorder heard_;
  std::unique_ptr<ChildProcess> child_;
};

}  // namespace deka::ipc

#endif  // IPC_CHILD_PROCESS_TESTING_H_
