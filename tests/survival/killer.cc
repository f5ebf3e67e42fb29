#include "tests/survival/killer.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "fmt/format.h"
#include "ipc/descriptor.h"

namespace deka::storm {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kSlow{200};
constexpr milliseconds kQuickMin{10};
constexpr milliseconds kQuickMax{60};

std::vector<double> Sorted(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values;
}

ipc::Descriptor Open(pid_t pid) {
  return ipc::Descriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

// Until it has come.
void AwaitTime(Clock::time_point time) {
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(time - Clock::now());
  if (left.count() <= 0) return;
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  itimerspec when = {};
  when.it_value.tv_sec = left.count() / 1'000'000'000;
  when.it_value.tv_nsec = left.count() % 1'000'000'000;
  timerfd_settime(timer, 0, &when, nullptr);
  pollfd passed = {.fd = timer, .events = POLLIN, .revents = 0};
  while (poll(&passed, 1, -1) < 0 && errno == EINTR) {
  }
  close(timer);
}

}  // namespace

Killer::Killer(const Options& options, Verdict& verdict)
    : options_(options), verdict_(verdict), random_(options.seed) {
  prober_ = std::thread([this] { Probe(); });
}

Killer::~Killer() {
  {
    ipc::MutexLock lock(mutex_);
    ended_ = true;
    changed_.NotifyAll();
  }
  prober_.join();
}

void Killer::Run() {
  std::vector<bool> quick(static_cast<size_t>(options_.kills));
  for (size_t i = 0; i < quick.size(); i += 2) quick[i] = true;
  for (size_t i = quick.size(); i > 1; --i) {
    const size_t other = random_.Below(i);
    const bool was = quick[i - 1];
    quick[i - 1] = quick[other];
    quick[other] = was;
  }
  for (size_t i = 0; i < quick.size() && !stopping_; ++i) Kill(quick[i]);
}

std::optional<pid_t> Killer::FindAgent() const {
  std::ifstream children(
      fmt::format("/proc/{}/task/{}/children", options_.keeper, options_.keeper));
  for (pid_t pid; children >> pid;) {
    std::error_code error;
    const auto program = std::filesystem::read_symlink(fmt::format("/proc/{}/exe", pid), error);
    if (!error && program == options_.program) return pid;
  }
  return std::nullopt;
}

void Killer::Kill(bool quick) {
  milliseconds time = kSlow;
  if (quick) {
    const auto span = static_cast<uint64_t>((kQuickMax - kQuickMin).count());
    time = kQuickMin + milliseconds(random_.Below(span + 1));
  }
  Clock::time_point last;
  {
    ipc::MutexLock lock(mutex_);
    last = killed_time_;
  }
  const auto deadline = Clock::now() + kHangs;
  if (quick) AwaitTime(last + time);
  std::optional<pid_t> agent;
  ipc::Descriptor process;
  while (!(agent = FindAgent()) || (!quick && !AwaitWork(*agent, time)) ||
         !(process = Open(*agent)).valid()) {
    if (Clock::now() > deadline) {
      verdict_.Violation(fmt::format(
          "{}", agent ? "no agent has answered a client for a minute" : "there is no agent"));
      stopping_ = true;
      return;
    }
    if (!agent) AwaitTime(Clock::now() + milliseconds(1));
  }
  bool answered = false;
  {
    ipc::MutexLock lock(mutex_);
    answered = answered_ == *agent;
    killed_answered_ = answered;
    syscall(SYS_pidfd_send_signal, process.get(), SIGKILL, nullptr, 0);
    killed_time_ = Clock::now();
    measured_ = !answered;
    ++kills_;
    changed_.NotifyAll();
  }
  quick_ += quick;
  ++(answered ? after_answer_ : before_answer_);
  verdict_.Kill(fmt::format("kill {} ({}, pid {}, it had {}answered)", kills_.load(),
                            quick ? "quick" : "slow", *agent, answered ? "" : "not "));
}

bool Killer::AwaitWork(pid_t agent, milliseconds ago) {
  const auto deadline = Clock::now() + milliseconds(100);
  Clock::time_point time;
  {
    ipc::MutexLock lock(mutex_);
    while (answered_ != agent || attached_kills_ != kills_) {
      if (!changed_.WaitUntil(mutex_, deadline)) return false;
    }
    time = std::max(answered_time_, attached_time_) + ago;
  }
  AwaitTime(time);
  return true;
}

void Killer::Probe() {
  for (int answered_kills = -1;;) {
    int kills = 0;
    {
      ipc::MutexLock lock(mutex_);
      while (!ended_ && answered_kills == kills_) changed_.Wait(mutex_);
      if (ended_) return;
      kills = kills_;
    }
    // A new channel each time: gRPC's own would wait before it connects again.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel =
        grpc::CreateCustomChannel(options_.target, grpc::InsecureChannelCredentials(), arguments);
    const auto stub = v1::BridgeService::NewStub(channel);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    v1::GetAgentRequest request;
    request.set_name("agents/-");
    v1::GetAgentResponse response;
    const grpc::Status status = stub->GetAgent(&context, request, &response);
    ipc::MutexLock lock(mutex_);
    if (status.ok()) {
      answered_kills = kills;
      answered_ = response.agent().pid();
      answered_time_ = Clock::now();
      if (std::exchange(killed_answered_, false) && kills == kills_) {
        takeovers_ms_.push_back(
            std::chrono::duration<double, std::milli>(answered_time_ - killed_time_).count());
      }
      changed_.NotifyAll();
    } else if (!ended_) {
      changed_.WaitUntil(mutex_, Clock::now() + milliseconds(2));
    }
  }
}

Clock::time_point Killer::last_kill() const {
  ipc::MutexLock lock(mutex_);
  return killed_time_;
}

void Killer::Attached() {
  ipc::MutexLock lock(mutex_);
  attached_kills_ = kills_;
  attached_time_ = Clock::now();
  changed_.NotifyAll();
}

void Killer::Event() {
  ipc::MutexLock lock(mutex_);
  if (measured_ || attached_kills_ != kills_) return;
  measured_ = true;
  downtimes_ms_.push_back(
      std::chrono::duration<double, std::milli>(Clock::now() - killed_time_).count());
}

std::vector<double> Killer::DowntimesMs() const {
  ipc::MutexLock lock(mutex_);
  return Sorted(downtimes_ms_);
}

std::vector<double> Killer::TakeoversMs() const {
  ipc::MutexLock lock(mutex_);
  return Sorted(takeovers_ms_);
}

}  // namespace deka::storm
