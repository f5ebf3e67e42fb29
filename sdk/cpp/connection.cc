#include "sdk/cpp/connection.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "fmt/format.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "ipc/default_address.h"

namespace deka {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view kScheme = "unix:";
constexpr milliseconds kBackoff{100};
// Calls that are reset soon after they began, though the connection stands: so many in a row are no
// outage.
constexpr milliseconds kResetSoon{1000};
constexpr int kResetsMax = 3;
constexpr size_t kClientBytesMax = 63;

absl::Status Unreachable(std::string_view message) {
  return ClientError(absl::StatusCode::kUnavailable, "AGENT_UNREACHABLE", message);
}

// Why a connection to `path` fails; 0 if it does not, or may not for long.
int ConnectError(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket < 0) {
    return errno;
  }
  const absl::Cleanup close_socket = [socket] { close(socket); };
  if (connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    return 0;
  }
  // EAGAIN: the agent's backlog is full.
  return errno == EAGAIN ? 0 : errno;
}

bool IsSocket(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
}

// `error` as ConnectError() tells it.
absl::Status NoAgent(const std::string& target, int error) {
  const auto unreachable = [&target](std::string_view why) {
    return Unreachable(
        fmt::format("no agent answers at {}: {} with DEKA_TARGET or --target", target, why));
  };
  const std::string start =
      fmt::format("; start one with `deka-agent --listen {}`, or name another", target);
  switch (error) {
    case 0:
      return unreachable(
          "it takes connections, but does not answer; see whether it hangs, or name "
          "another");
    case ENOENT:
      return unreachable("there is no such socket" + start);
    case ECONNREFUSED:
      return IsSocket(target.substr(kScheme.size()))
                 ? unreachable("nobody serves this socket" + start)
                 : unreachable("this is no socket; name an agent's");
    case EACCES:
      return unreachable("only another user may open it; name one of your own");
    default:
      return unreachable(std::string(strerror(error)) + "; name another");
  }
}

// The default socket may lie in a directory that anybody could have made.
absl::Status CheckOwner(const std::string& path) {
  const std::string directory = path.substr(0, path.rfind('/'));
  struct stat info;
  if (lstat(directory.c_str(), &info) != 0) {
    return absl::OkStatus();  // no socket there: connecting tells
  }
  const bool owned = info.st_uid == geteuid() || info.st_uid == 0;
  if (S_ISDIR(info.st_mode) && owned && (info.st_mode & (S_IWGRP | S_IWOTH)) == 0) {
    return absl::OkStatus();
  }
  return ClientError(
      absl::StatusCode::kFailedPrecondition, "ADDRESS_UNSAFE",
      fmt::format(
          "{} is not this user's alone, so another user could pose as the agent; remove it, "
          "or name the agent's socket with DEKA_TARGET or --target",
          directory));
}

absl::StatusOr<std::string> ChooseTarget(std::string target) {
  if (target.empty()) {
    const char* variable = getenv("DEKA_TARGET");
    target = variable == nullptr ? "" : variable;
  }
  if (target.empty()) {
    target = ipc::DefaultAddress();
    if (absl::Status status = CheckOwner(target.substr(kScheme.size())); !status.ok()) {
      return status;
    }
  }
  const auto malformed = [&target](std::string_view why) {
    return ClientError(
        absl::StatusCode::kInvalidArgument, "INVALID_ARGUMENT",
        fmt::format("target {} {}; write it as unix:/path/to/agent.sock", target, why));
  };
  if (!target.starts_with(kScheme) || target.size() == kScheme.size()) {
    return malformed("is no Unix socket");
  }
  if (target.size() - kScheme.size() >= sizeof(sockaddr_un::sun_path)) {
    return malformed(fmt::format("is longer than a socket's path can be, {} bytes",
                                 sizeof(sockaddr_un::sun_path) - 1));
  }
  return target;
}

grpc::ChannelArguments Arguments(const Client::Options& options) {
  grpc::ChannelArguments arguments;
  // A connection of its own: what one client does not read holds up no other.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kBackoff.count());
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kBackoff.count());
  // How long one attempt may take: connections wait in the backlog while agents are exchanged.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                   static_cast<int>(options.connect_ms_max.count()));
  // Bounds what a stream that is not read takes in, which bandwidth probing would raise to many
  // megabytes each.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamBytesMax);
  // One response, and what Attach wraps around it.
  arguments.SetMaxReceiveMessageSize(Connection::kResponseBytesMax + 1024);
  return arguments;
}

}  // namespace

absl::StatusOr<std::shared_ptr<Connection>> Connection::Open(Client::Options options) {
  absl::StatusOr<std::string> target = ChooseTarget(std::move(options.target));
  if (!target.ok()) {
    return target.status();
  }
  options.target = *std::move(target);
  if (options.name.empty()) {
    const std::string pid = fmt::format("/{}", getpid());
    const std::string_view program = program_invocation_short_name;
    options.name = std::string(program.substr(0, kClientBytesMax - pid.size())) + pid;
  }
  const std::shared_ptr<Connection> connection(new Connection(std::move(options)));
  if (absl::Status status = connection->AwaitFirst(); !status.ok()) {
    return status;
  }
  return connection;
}

Connection::Connection(Client::Options options)
    : options_(std::move(options)),
      channel_(grpc::CreateCustomChannel(options_.target, grpc::InsecureChannelCredentials(),
                                         Arguments(options_))),
      stub_(v1::BridgeService::NewStub(channel_)) {}

absl::Status Connection::AwaitFirst() {
  const std::string path = options_.target.substr(kScheme.size());
  const Clock::time_point appear_deadline = Clock::now() + options_.appear_ms_max;
  const Clock::time_point deadline = appear_deadline + options_.connect_ms_max;
  for (;;) {
    const grpc_connectivity_state state = channel_->GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) {
      return absl::OkStatus();
    }
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE && Clock::now() >= appear_deadline) {
      if (const int error = ConnectError(path); error != 0) {
        return NoAgent(options_.target, error);
      }
    }
    if (Clock::now() >= deadline) {
      return Unreachable(fmt::format(
          "{} takes connections, but what serves it has not answered as an agent within "
          "{} ms; see whether it hangs, or name another with DEKA_TARGET or --target",
          options_.target, options_.connect_ms_max.count()));
    }
    channel_->WaitForStateChange(
        state, std::chrono::system_clock::now() + std::min(kBackoff, options_.connect_ms_max));
  }
}

Connection::Reconnection::Reconnection(Connection& connection, std::function<bool()> needless)
    : connection_(connection), needless_(std::move(needless)) {}

absl::Status Connection::Reconnection::Wait() {
  if (deadline_ == Clock::time_point::max()) {
    deadline_ = Clock::now() + connection_.options_.reconnect_ms_max;
  }
  const std::string& target = connection_.target();
  for (;;) {
    if (needless_()) {
      return absl::CancelledError("nobody waits any more");
    }
    const Clock::time_point now = Clock::now();
    const auto left = std::chrono::ceil<milliseconds>(deadline_ - now);
    const auto slice = std::clamp(left, milliseconds(0), kBackoff);
    if (now < next_) {
      std::this_thread::sleep_until(std::min(next_, now + slice));
    } else if (connection_.channel_->WaitForConnected(std::chrono::system_clock::now() + slice)) {
      call_ = Clock::now();
      return absl::OkStatus();
    }
    if (Clock::now() >= deadline_) {
      return NoAgent(target, ConnectError(target.substr(kScheme.size())));
    }
  }
}

absl::Status Connection::Reconnection::WaitAfter(const absl::Status& failure) {
  if (failure.code() != absl::StatusCode::kUnavailable) {
    resets_ = Clock::now() - call_ < kResetSoon ? resets_ + 1 : 1;
    if (resets_ > kResetsMax) {
      return failure;
    }
  }
  next_ = call_ + kBackoff;
  return Wait();
}

}  // namespace deka
