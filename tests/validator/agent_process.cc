#include "tests/validator/agent_process.h"

#include <fcntl.h>
#include <google/protobuf/text_format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "fmt/format.h"

namespace deka::validator {
namespace {

constexpr std::chrono::seconds kStartLimit{30};
constexpr char kServes[] = " serves unix:";

}  // namespace

absl::StatusOr<std::unique_ptr<AgentProcess>> AgentProcess::Start(
    const std::string& program, const std::string& directory,
    const bridge::v1::AgentConfig& config) {
  std::unique_ptr<AgentProcess> agent(new AgentProcess);
  agent->target_ = "unix:" + directory + "/agent.sock";
  const std::string config_path = directory + "/agent.textproto";
  {
    std::string text;
    google::protobuf::TextFormat::PrintToString(config, &text);
    std::ofstream(config_path) << text;
  }
  int pipe[2];
  if (pipe2(pipe, O_CLOEXEC) != 0) return absl::UnavailableError("there is no pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, pipe[1], 1);
  posix_spawn_file_actions_adddup2(&actions, pipe[1], 2);
  const char* const arguments[] = {program.c_str(), "--listen",          agent->target_.c_str(),
                                   "--config",      config_path.c_str(), nullptr};
  const int error = posix_spawn(&agent->pid_, arguments[0], &actions, nullptr,
                                const_cast<char* const*>(arguments), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe[1]);
  if (error != 0) {
    close(pipe[0]);
    agent->ended_ = true;
    return absl::NotFoundError(fmt::format("the agent {} cannot be started", program));
  }
  agent->reader_ = std::thread([raw = agent.get(), end = pipe[0]] { raw->ReadLog(end); });
  if (!agent->AwaitServed()) {
    return absl::UnavailableError(fmt::format("the agent does not serve: {}", agent->log()));
  }
  return agent;
}

AgentProcess::~AgentProcess() {
  if (!ended_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (reader_.joinable()) reader_.join();
}

void AgentProcess::ReadLog(int pipe) {
  char bytes[4096];
  for (;;) {
    const ssize_t count = read(pipe, bytes, sizeof(bytes));
    if (count < 0 && errno == EINTR) continue;
    ipc::MutexLock lock(mutex_);
    if (count > 0) {
      log_.append(bytes, static_cast<size_t>(count));
    } else {
      log_ended_ = true;
    }
    changed_.NotifyAll();
    if (count <= 0) break;
  }
  close(pipe);
}

bool AgentProcess::AwaitServed() {
  const auto deadline = std::chrono::steady_clock::now() + kStartLimit;
  ipc::MutexLock lock(mutex_);
  while (log_.find(kServes) == std::string::npos) {
    if (log_ended_ || !changed_.WaitUntil(mutex_, deadline)) return false;
  }
  return true;
}

std::string AgentProcess::log() const {
  ipc::MutexLock lock(mutex_);
  return log_;
}

int AgentProcess::Stop(std::chrono::milliseconds limit) {
  const int descriptor = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  kill(pid_, SIGTERM);
  pollfd ended{descriptor, POLLIN, 0};
  const auto deadline = std::chrono::steady_clock::now() + limit;
  int ready;
  do {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    ready = poll(&ended, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
  } while (ready < 0 && errno == EINTR);
  close(descriptor);
  if (ready <= 0) return -1;
  int status = 0;
  waitpid(pid_, &status, 0);
  ended_ = true;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace deka::validator
