// A child with a channel that does one thing, named by its argument:
//
//   echo         sends every message back; "bye" makes it disconnect
//   words N      sends the numbers 0 to N - 1, disconnects, exits with 7
//   inherited    sends the list of the descriptors it was born with
//   environment  sends how many of the channel's variables are left, whether the channel is
//                close-on-exec, and whether it still finds a channel
//   open         exits with the reason why it has no channel, on stderr
//   grandchild   has opened the channel and runs a shell that says on stdout whether it has the
//                channel's descriptor, and what is left of the channel's variables
//   parent WHAT  forks itself, to do WHAT 1, and waits for its end
#include <fcntl.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "ipc/child_process.h"
#include "ipc/error.h"
#include "ipc/event_loop.h"
#include "ipc/process.h"

namespace deka::ipc {
namespace {

class Child : public Process::Listener {
 public:
  void OnMessage(Message message) override {
    if (message.json == "\"bye\"") {
      (void)process->Disconnect();
    } else {
      (void)process->Send(message.json);
    }
  }

  std::unique_ptr<Process> process;
};

int RunParent(std::string what) {
  EventLoop loop;
  ChildProcess::Listener listener;
  ForkOptions options;
  options.program = "/proc/self/exe";
  options.args = {std::move(what), "1"};
  const absl::StatusOr<std::unique_ptr<ChildProcess>> child =
      ChildProcess::Fork(loop, std::move(options), listener);
  loop.Run();
  return child.ok() ? 0 : 1;
}

std::string Inherited() {
  std::string list;
  for (int number = 0; number < 1024; ++number) {
    if (fcntl(number, F_GETFD) == -1) continue;
    list += fmt::format("{}{}", list.empty() ? "" : ",", number);
  }
  return '[' + list + ']';
}

int Run(std::string_view what, std::string argument) {
  if (what == "parent") return RunParent(std::move(argument));
  const std::string inherited = Inherited();
  EventLoop loop;
  Child child;
  absl::StatusOr<std::unique_ptr<Process>> process = Process::Open(loop, {}, child);
  if (!process.ok()) {
    const std::optional<Reason> reason = ReasonOf(process.status());
    std::fprintf(stderr, "%s\n", std::string(ReasonName(*reason)).c_str());
    return 1;
  }
  child.process = *std::move(process);
  int code = 0;
  if (what == "words") {
    for (int i = 0; i < std::atoi(argument.c_str()); ++i)
      (void)child.process->Send(fmt::format("{}", i));
    (void)child.process->Disconnect();
    code = 7;
  } else if (what == "inherited") {
    (void)child.process->Send(inherited);
  } else if (what == "environment") {
    int left = 0;
    for (const char* name : {"DEKA_IPC_ENABLED", "DEKA_IPC_FD", "NODE_CHANNEL_FD",
                             "NODE_CHANNEL_SERIALIZATION_MODE"}) {
      left += std::getenv(name) != nullptr ? 1 : 0;
    }
    (void)child.process->Send(fmt::format("[{},{},{}]", left, (fcntl(3, F_GETFD) & FD_CLOEXEC) != 0,
                                          Process::HasChannel()));
  }
  if (what == "grandchild") {
    return std::system(
        "test -e /proc/self/fd/3 && echo held || echo free; echo \"[$DEKA_IPC_ENABLED$DEKA_IPC_FD"
        "$NODE_CHANNEL_FD$NODE_CHANNEL_SERIALIZATION_MODE]\"");
  }
  loop.Run();
  return code;
}

}  // namespace
}  // namespace deka::ipc

int main(int argc, char** argv) {
  return deka::ipc::Run(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "");
}
