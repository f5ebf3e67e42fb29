#include "tests/benchmark/program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <utility>

#include "spawn/spawn.h"

namespace deka::benchmark {
namespace {

using std::chrono::milliseconds;

absl::Status SystemError(std::string_view what) {
  return absl::InternalError(fmt::format("{}: {}", what, std::strerror(errno)));
}

// Waits until it is readable.
absl::Status Await(int descriptor, milliseconds deadline, std::string_view what) {
  pollfd wanted = {.fd = descriptor, .events = POLLIN, .revents = 0};
  const int ready = poll(&wanted, 1, static_cast<int>(deadline.count()));
  if (ready < 0) return SystemError("poll");
  if (ready > 0) return absl::OkStatus();
  return absl::DeadlineExceededError(fmt::format("not within {} ms: {}", deadline.count(), what));
}

std::vector<const char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<const char*> pointers;
  for (const std::string& string : strings) pointers.push_back(string.c_str());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

std::string Runfile(std::string_view path) {
  // Bazel starts tests, and what it runs, among these files.
  if (std::filesystem::exists(path)) return std::filesystem::absolute(path);
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  return fmt::format("{}.runfiles/deka_bridge/{}", self, path);
}

absl::StatusOr<std::unique_ptr<Program>> Program::Start(Options options) {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!std::string_view(*entry).starts_with("NODE_CHANNEL_")) variables.emplace_back(*entry);
  }
  std::vector<spawn::DescriptorMapping> descriptors;
  ipc::Descriptor here, there;
  if (options.channel) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return SystemError("socketpair");
    }
    here = ipc::Descriptor(ends[0]);
    there = ipc::Descriptor(ends[1]);
    descriptors.push_back({.from = there.get(), .to = 3});
    variables.emplace_back("NODE_CHANNEL_FD=3");
    variables.emplace_back("NODE_CHANNEL_SERIALIZATION_MODE=json");
  }
  ipc::Descriptor log;
  if (!options.log_path.empty()) {
    log = ipc::Descriptor(
        open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!log.valid()) return SystemError(options.log_path);
    descriptors.push_back({.from = log.get(), .to = 2});
  }

  const std::vector<const char*> arguments = Pointers(options.command);
  const std::vector<const char*> environment = Pointers(variables);
  spawn::Options start;
  start.program = arguments[0];
  start.arguments = arguments.data();
  start.environment = environment.data();
  start.descriptors = descriptors.data();
  start.descriptors_count = descriptors.size();
  const spawn::Started started = spawn::Spawn(start);
  if (started.failed_step != spawn::Step::kNone) {
    return absl::NotFoundError(fmt::format("{} was not started: {}: {}", options.command[0],
                                           spawn::StepName(started.failed_step),
                                           std::strerror(started.error)));
  }
  return std::unique_ptr<Program>(new Program(options.command[0], started.pid,
                                              ipc::Descriptor(started.pidfd), std::move(here)));
}

Program::~Program() {
  if (!pidfd_.valid()) return;
  spawn::SendSignal(pidfd_.get(), SIGKILL);
  Wait().IgnoreError();
}

absl::Status Program::WriteLine(std::string_view line) {
  std::string bytes(line);
  bytes += '\n';
  for (size_t offset = 0; offset < bytes.size();) {
    const ssize_t written =
        send(socket_.get(), bytes.data() + offset, bytes.size() - offset, MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return SystemError(name_ + " does not take its orders");
    offset += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Program::ReadLine(milliseconds deadline) {
  for (;;) {
    if (const size_t end = read_.find('\n'); end != std::string::npos) {
      std::string line = read_.substr(0, end);
      read_.erase(0, end + 1);
      return line;
    }
    if (absl::Status status = Await(socket_.get(), deadline, name_ + " answers"); !status.ok()) {
      return status;
    }
    char more[4096];
    const ssize_t size = recv(socket_.get(), more, sizeof(more), 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return SystemError(name_);
    if (size == 0) return absl::UnavailableError(name_ + " has ended without an answer");
    read_.append(more, static_cast<size_t>(size));
  }
}

absl::Status Program::Signal(int number) const {
  errno = spawn::SendSignal(pidfd_.get(), number);
  return errno == 0 ? absl::OkStatus() : SystemError(name_);
}

absl::StatusOr<int> Program::Wait(milliseconds deadline) {
  if (absl::Status status = Await(pidfd_.get(), deadline, name_ + " ends"); !status.ok()) {
    return status;
  }
  const spawn::Ended ended = spawn::Reap(pidfd_.get());
  pidfd_.Close();
  if (ended.how == spawn::Ended::How::kExited) return ended.value;
  return absl::UnavailableError(fmt::format("{} was ended by signal {}", name_, ended.value));
}

}  // namespace deka::benchmark
