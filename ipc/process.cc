#include "ipc/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "ipc/error.h"

namespace deka::ipc {
namespace {

constexpr char kDekaEnabled[] = "DEKA_IPC_ENABLED";
constexpr char kDekaDescriptor[] = "DEKA_IPC_FD";
constexpr char kNodeDescriptor[] = "NODE_CHANNEL_FD";
constexpr char kNodeSerialization[] = "NODE_CHANNEL_SERIALIZATION_MODE";

std::string_view Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : value;
}

struct Named {
  Dialect dialect;
  std::string_view variable;
  std::string_view descriptor;
};

std::optional<Named> FindChannel() {
  if (Variable(kDekaEnabled) == "1" && !Variable(kDekaDescriptor).empty()) {
    return Named{Dialect::kDeka, kDekaDescriptor, Variable(kDekaDescriptor)};
  }
  if (!Variable(kNodeDescriptor).empty()) {
    return Named{Dialect::kNode, kNodeDescriptor, Variable(kNodeDescriptor)};
  }
  return std::nullopt;
}

absl::StatusOr<int> SocketOf(const Named& named) {
  const auto invalid = [&named](std::string_view why) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("{}={} names no channel: {}. Start the program from a parent that "
                                 "gives it one.",
                                 named.variable, named.descriptor, why));
  };
  int descriptor = -1;
  const char* end = named.descriptor.data() + named.descriptor.size();
  const auto [rest, error] = std::from_chars(named.descriptor.data(), end, descriptor);
  if (error != std::errc() || rest != end || descriptor < 0) return invalid("it is no number");
  int domain = 0, type = 0;
  socklen_t size = sizeof(int);
  if (getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 ||
      getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
    return invalid(std::strerror(errno));
  }
  if (domain != AF_UNIX || type != SOCK_STREAM) return invalid("it is no Unix stream socket");
  return descriptor;
}

}  // namespace

bool Process::HasChannel() { return FindChannel().has_value(); }

absl::StatusOr<std::unique_ptr<Process>> Process::Open(EventLoop& loop, Channel::Options options,
                                                       Listener& listener) {
  const std::optional<Named> named = FindChannel();
  if (!named.has_value()) {
    return MakeError(Reason::kNoChannel,
                     "This process has no channel: neither DEKA_IPC_ENABLED=1 with DEKA_IPC_FD nor "
                     "NODE_CHANNEL_FD is in its environment. Start it from a parent that gives it "
                     "one.");
  }
  const std::string_view serialization = Variable(kNodeSerialization);
  if (named->dialect == Dialect::kNode && !serialization.empty() && serialization != "json") {
    return MakeError(
        Reason::kInvalidArgument,
        fmt::format("The parent chose serialization '{}', and this program speaks 'json'. "
                    "Fork it with that.",
                    serialization));
  }
  const absl::StatusOr<int> socket = SocketOf(*named);
  if (!socket.ok()) return socket.status();
  absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate(options.memory_limits());
  if (!memory.ok()) return memory.status();

  options.dialect = named->dialect;
  if (options.debug_name.empty()) options.debug_name = "parent";
  std::unique_ptr<Process> process(new Process(*std::move(memory), named->dialect, listener));
  absl::StatusOr<std::unique_ptr<Channel>> channel =
      Channel::Open(loop, *socket, process->memory_, std::move(options), *process);
  if (!channel.ok()) return channel.status();
  process->channel_ = *std::move(channel);
  fcntl(*socket, F_SETFD, FD_CLOEXEC);
  for (const char* name : {kDekaEnabled, kDekaDescriptor, kNodeDescriptor, kNodeSerialization}) {
    unsetenv(name);
  }
  return process;
}

absl::StatusOr<Channel::Accepted> Process::Send(std::string_view json, uint64_t tag) {
  return channel_->Send(json, tag);
}

absl::Status Process::Disconnect() {
  if (!connected()) {
    return MakeError(Reason::kChannelClosed, "The channel is disconnected already.");
  }
  channel_->Disconnect(Channel::Mode::kFlush);
  return absl::OkStatus();
}

}  // namespace deka::ipc
