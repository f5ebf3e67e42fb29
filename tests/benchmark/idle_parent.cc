// An embedded parent of many children that have nothing to say: what memory that takes.
//
//   idle_parent N    on its channel: {"channels":n,"messages":n,"resident":bytes,
//                    "page_tables":bytes}, both for all channels together
//
// The children are held by one process (idle_parent held), so that they cost no processes and
// this one's memory is all there is to see: each says one message, hears one, and falls silent. The
// parent is an agent::Agent that adopts their channels; no process is watched for each.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "ipc/event_loop.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/process_figures.h"
#include "tests/benchmark/program.h"

namespace deka::benchmark {
namespace {

constexpr std::string_view kMessage = "{\"n\":1}\n";

[[noreturn]] void Die(std::string_view what) {
  std::fprintf(stderr, "idle_parent: %s: %s\n", std::string(what).c_str(), std::strerror(errno));
  exit(1);
}

void SendDescriptor(int channel, int descriptor) {
  char byte = 0;
  iovec part = {.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  if (sendmsg(channel, &message, MSG_NOSIGNAL) != 1) Die("a descriptor was not sent");
}

// -1 at the end.
int ReceiveDescriptor(int channel) {
  char byte;
  iovec part = {.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (recvmsg(channel, &message, MSG_CMSG_CLOEXEC) != 1) return -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr) Die("no descriptor came");
  int descriptor;
  std::memcpy(&descriptor, CMSG_DATA(header), sizeof(int));
  return descriptor;
}

// The children: all of them say their message when they come, and nothing more.
int Hold() {
  RaiseDescriptorLimit(1 << 15);
  for (;;) {
    const int child = ReceiveDescriptor(3);
    if (child < 0) return 0;
    if (write(child, kMessage.data(), kMessage.size()) < 0) Die("a child says nothing");
  }
}

class IdleParent final : public agent::Child::Listener {
 public:
  explicit IdleParent(int channels) : channels_(channels), look_(loop_) {}

  int Run() {
    RaiseDescriptorLimit(1 << 15);
    auto holder = Program::Start({.command = {Runfile("tests/benchmark/idle_parent"), "held"}});
    if (!holder.ok()) return Fail(holder.status());
    holder_ = *std::move(holder);
    auto agent = agent::Agent::Create(loop_, {.id = "benchmark"});
    if (!agent.ok()) return Fail(agent.status());
    agent_ = *std::move(agent);
    // One that is not counted brings in what all have in common.
    if (absl::Status status = AdoptNext(); !status.ok()) return Fail(status);
    LookUntilSteady([this] { Begin(); });
    loop_.Run();
    return exit_code_;
  }

 private:
  int Fail(const absl::Status& status) {
    std::fprintf(stderr, "idle_parent: %s\n", std::string(status.message()).c_str());
    exit_code_ = 1;
    loop_.Stop();
    return 1;
  }

  absl::Status AdoptNext() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return absl::ErrnoToStatus(errno, "socketpair");
    }
    const absl::StatusOr<agent::Child*> child =
        agent_->Adopt(ends[0], /*pid=*/0, ipc::Dialect::kNode, {}, this);
    SendDescriptor(holder_->socket(), ends[1]);
    close(ends[1]);
    return child.status();
  }

  void OnMessage(agent::Child& child, std::string_view) override {
    ++messages_;
    (void)child.Send("{\"n\":2}", [this](const absl::Status& status) {
      if (!status.ok()) Fail(status);
    });
  }

  void Begin() {
    before_ = Figures();
    messages_ = 0;
    for (int i = 0; i < channels_; ++i) {
      if (absl::Status status = AdoptNext(); !status.ok()) {
        Fail(status);
        return;
      }
    }
    LookUntilSteady([this] { End(); });
  }

  void End() {
    const Memory after = Figures();
    const std::string report =
        fmt::format("{{\"channels\":{},\"messages\":{},\"resident\":{},\"page_tables\":{}}}\n",
                    channels_, messages_, after.resident_bytes - before_.resident_bytes,
                    after.page_table_bytes - before_.page_table_bytes);
    if (write(3, report.data(), report.size()) < 0) Die("nobody listens");
    loop_.Stop();
  }

  // Pages of a channel that fell silent are given back half a second later or more.
  void LookUntilSteady(std::function<void()> steady) {
    look_.Start(std::chrono::milliseconds(700), [this, steady = std::move(steady)]() mutable {
      const int64_t now = Figures().resident_bytes;
      const bool same = now == std::exchange(last_look_, now);
      if (same) return steady();
      LookUntilSteady(std::move(steady));
    });
  }

  Memory Figures() {
    const absl::StatusOr<Memory> memory = MemoryOf(getpid());
    if (!memory.ok()) Die("no figures");
    return *memory;
  }

  const int channels_;
  ipc::EventLoop loop_;
  ipc::Timer look_;
  std::unique_ptr<Program> holder_;
  std::unique_ptr<agent::Agent> agent_;
  int64_t messages_ = 0;
  int64_t last_look_ = 0;
  Memory before_;
  int exit_code_ = 0;
};

int Main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "held") return Hold();
  if (argc != 2) {
    std::fprintf(stderr, "usage: idle_parent N\n");
    return 2;
  }
  return IdleParent(std::atoi(argv[1])).Run();
}

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) { return deka::benchmark::Main(argc, argv); }
