#include "keeper/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "keeper/packet.h"
#include "keeper/process.h"
#include "keeper/spawn_call.h"

namespace deka::keeper {
namespace {

constexpr int kAgentDescriptor = 3;
constexpr uint32_t kHeldMask = kMemory | kChannel | kStdout | kStderr;
constexpr unsigned kMemoryIndex = 0;  // of Child::descriptors
constexpr unsigned kPidfdIndex = 4;
constexpr unsigned kHeldOfSpawn = 4;  // what kSpawn brings at most; the pidfd is the keeper's
constexpr size_t kPageBytes = 4096;
constexpr int64_t kRetryMs = 10;
constexpr int64_t kKilledMsMax = 5000;  // for what was sent SIGKILL to be gone
constexpr unsigned kPacketsAtOnce = 256;

void Close(int& descriptor) {
  if (descriptor >= 0) close(descriptor);
  descriptor = -1;
}

void Earlier(int64_t& deadline, int64_t other) {
  if (other < deadline) deadline = other;
}

}  // namespace

// --- Start and loop ------------------------------------------------------------------------------

Keeper::Keeper(const Options& options, char** command, char** environment)
    : options_(options), command_(command), environment_(environment) {}

Keeper::~Keeper() {
  for (Agent& agent : agents_) {
    Close(agent.socket);
    Close(agent.pidfd);
  }
  for (size_t i = 0; i < children_count_; ++i) Release(children_[i], true);
  for (Slot& slot : slots_) Empty(slot);
  free(children_);
  CloseProgram(program_);
  CloseProgram(upgrade_);
  free(agents_environment_);
  if (heartbeat_ != nullptr) munmap(const_cast<uint64_t*>(heartbeat_), kPageBytes);
  Close(agent_file_);
  Close(signals_);
}

int Keeper::Run() {
  if (!Prepare()) return 1;
  while (!finished_) {
    now_ = Now();
    Arrange();
    Tell(*agent_);
    Tell(*spare_);
    if (!finished_) Wait();
  }
  Drop(*spare_);
  return exit_code_;
}

bool Keeper::Prepare() {
  HoldStandardDescriptors();
  RaiseDescriptorLimit();
  if (!PrepareSignals()) {
    Say(Level::kError, "cannot wait for signals: %s", strerror(errno));
    return false;
  }
  if (!MakeAgentFile()) {
    Say(Level::kError, "cannot make the agent's file: %s", strerror(errno));
    return false;
  }

  if (!MakeEnvironment()) {
    Say(Level::kError, "cannot make the agent's environment: %s", strerror(errno));
    return false;
  }
  if (!OpenProgram(command_[0], program_)) {
    Say(Level::kError, "cannot open %s: %s", command_[0], strerror(errno));
    return false;
  }
  now_ = Now();
  return true;
}

// The keeper's, with our variable in place of one that is there.
bool Keeper::MakeEnvironment() {
  static char variable[sizeof(kDescriptorVariable) + 16];
  const int name_length = snprintf(variable, sizeof(variable), "%s=", kDescriptorVariable);
  size_t count = 0;
  while (environment_[count] != nullptr) ++count;
  agents_environment_ = static_cast<char**>(malloc((count + 2) * sizeof(char*)));
  if (agents_environment_ == nullptr) return false;
  char** end = agents_environment_;
  for (size_t i = 0; i < count; ++i) {
    if (strncmp(environment_[i], variable, static_cast<size_t>(name_length)) == 0) continue;
    *end++ = environment_[i];
  }
  snprintf(variable + name_length, sizeof(variable) - static_cast<size_t>(name_length), "%d",
           kAgentDescriptor);
  *end++ = variable;
  *end = nullptr;
  return true;
}

void Keeper::RaiseDescriptorLimit() {
  getrlimit(RLIMIT_NOFILE, &limit_at_start_);
  const rlim_t wanted = static_cast<rlim_t>(options_.descriptors);
  if (limit_at_start_.rlim_max < wanted) {
    const rlimit higher = {.rlim_cur = wanted, .rlim_max = wanted};
    if (setrlimit(RLIMIT_NOFILE, &higher) == 0) return;
  }
  const rlimit highest = {.rlim_cur = limit_at_start_.rlim_max,
                          .rlim_max = limit_at_start_.rlim_max};
  setrlimit(RLIMIT_NOFILE, &highest);
}

bool Keeper::PrepareSignals() {
  struct sigaction hangup;
  sigaction(SIGHUP, nullptr, &hangup);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGUSR2);
  if (hangup.sa_handler != SIG_IGN) sigaddset(&set, SIGHUP);
  // An ignored SIGCHLD would throw statuses away.
  signal(SIGCHLD, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGTTOU, SIG_IGN);
  if (sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return false;
  signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  return signals_ >= 0;
}

bool Keeper::MakeAgentFile() {
  agent_file_ = memfd_create("deka-agent", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  // The page that is looked at is there from the start: none that is missing may be met later.
  if (agent_file_ < 0 || ftruncate(agent_file_, AgentFile::kBytes) != 0 ||
      fallocate(agent_file_, 0, 0, kPageBytes) != 0 ||
      fcntl(agent_file_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return false;
  }
  void* page = mmap(nullptr, kPageBytes, PROT_READ, MAP_SHARED, agent_file_, 0);
  if (page == MAP_FAILED) return false;
  heartbeat_ = &static_cast<const AgentFile*>(page)->heartbeat;
  return true;
}

void Keeper::Wait() {
  pollfd ready[3] = {{.fd = signals_, .events = POLLIN, .revents = 0}};
  for (unsigned i = 0; i < 2; ++i) {
    const Agent& agent = agents_[i];
    int events = 0;
    if (!agent.answer_due) events |= POLLIN;
    if (agent.blocked) events |= POLLOUT;
    ready[1 + i] = {
        .fd = events != 0 ? agent.socket : -1, .events = static_cast<short>(events), .revents = 0};
  }
  const int64_t deadline = NextDeadline();
  int timeout = -1;
  if (deadline != INT64_MAX) {
    const int64_t rest = deadline - Now();
    timeout = rest < 0 ? 0 : static_cast<int>(rest > 3600000 ? 3600000 : rest);
  }
  poll(ready, 3, timeout);
  now_ = Now();

  TakeSignals();
  Hear(*agent_, false);
  Hear(*spare_, false);
}

int64_t Keeper::NextDeadline() const {
  int64_t deadline = INT64_MAX;
  for (const Agent& agent : agents_) {
    if (agent.pid == 0) continue;
    if (agent.retry_at != 0 && !agent.deaf) Earlier(deadline, agent.retry_at);
    if (agent.hung) continue;
    if (agent.closed_by != 0) Earlier(deadline, agent.closed_by);
    if (!agent.ready) Earlier(deadline, agent.ready_by);
    if (agent.ready && !agent.went && agent.mail_by != 0) Earlier(deadline, agent.mail_by);
    if (agent.ready && agent.went) Earlier(deadline, agent.look_at);
  }
  if (ending_) {
    Earlier(deadline, end_by_);
  } else if (stop_ != 0) {
    if (!agent_->hung) Earlier(deadline, stop_by_);
  } else {
    if (agent_->pid == 0) Earlier(deadline, agent_at_);
    if (spare_->pid == 0 && agent_->ready) Earlier(deadline, spare_at_);
    if (spare_->pid == 0 && agent_->pid == 0 && upgrade_.descriptor >= 0) {
      Earlier(deadline, spare_at_);
    }
  }
  return deadline;
}

void Keeper::Finish(int exit_code) {
  exit_code_ = exit_code;
  finished_ = true;
}

// --- Who starts, who ends ------------------------------------------------------------------------

void Keeper::Arrange() {
  if (!ending_) {
    Watch(*agent_);
    Watch(*spare_);
  }
  if (stop_ == 0) {
    ArrangeStarts();
  } else if (!ending_) {
    ArrangeStop();
  }
  if (ending_) ArrangeEnd();
}

void Keeper::ArrangeStop() {
  if (agent_->pid == 0 && spare_->ready && now_ >= agent_at_) {
    TakeOver();
  } else if (agent_->pid == 0) {
    EndChildren();
  } else if (now_ >= stop_by_ && !agent_->hung) {
    Say(Level::kWarning, "agent %d has not stopped in time and is killed", agent_->pid);
    agent_->hung = true;
    spawn::SendSignal(agent_->pidfd, SIGKILL);
  }
}

void Keeper::ArrangeStarts() {
  if (agent_->pid == 0 && now_ >= agent_at_) TakeOver();
  const bool upgrading = upgrade_.descriptor >= 0;
  if (upgrading && spare_->pid != 0 && !spare_->candidate) Drop(*spare_);
  const bool wanted = agent_->ready || (upgrading && agent_->pid == 0);
  if (wanted && spare_->pid == 0 && (upgrading || now_ >= spare_at_)) {
    if (!Start(*spare_, upgrading ? upgrade_ : program_)) {
      if (upgrading) {
        RefuseUpgrade(Refusal::kNotStarted, "cannot be started");
      } else {
        spare_at_ = spare_crashes_.Add(options_, now_, now_);
      }
    }
  }
}

void Keeper::Watch(Agent& agent) {
  if (agent.pid == 0 || agent.hung) return;
  if (agent.closed_by != 0 && now_ >= agent.closed_by) {
    Overdue(agent, "has closed its end of the conversation");
  } else if (!agent.ready && now_ >= agent.ready_by) {
    Overdue(agent, "is not ready in time");
  } else if (agent.ready && !agent.went && agent.mail_by != 0 && now_ >= agent.mail_by) {
    Overdue(agent, "does not take its mail");
  } else if (agent.ready && agent.went && now_ >= agent.look_at) {
    Look(agent);
  }
}

void Keeper::Look(Agent& agent) {
  agent.look_at = now_ + options_.look_ms;
  const uint64_t heartbeat = *heartbeat_;
  if (heartbeat != agent.heartbeat) {
    agent.heartbeat = heartbeat;
    agent.looks = 0;
    agent.spared = false;
  } else if (++agent.looks >= options_.looks_max) {
    agent.looks = 0;
    Overdue(agent, "hangs");
  }
}

// A process that a debugger holds has all the time there is.
void Keeper::Overdue(Agent& agent, const char* why) {
  const char* what = &agent == agent_ ? "agent" : "spare";
  if (IsTraced(agent.pid)) {
    if (!agent.spared)
      Say(Level::kWarning, "%s %d %s, but is traced: it goes on", what, agent.pid, why);
    agent.spared = true;
    if (agent.closed_by != 0) agent.closed_by = now_ + options_.mail_ms_max;
    if (agent.mail_by != 0) agent.mail_by = now_ + options_.mail_ms_max;
    agent.ready_by = now_ + options_.ready_ms_max;
    return;
  }
  Say(Level::kWarning, "%s %d %s and is killed", what, agent.pid, why);
  agent.hung = true;
  spawn::SendSignal(agent.pidfd, SIGKILL);
}

int64_t Keeper::Crashes::Add(const Options& options, int64_t started_at, int64_t now) {
  if (often && now - started_at > options.crash_window_ms) {
    often = false;
    count = 0;
  }
  const unsigned oldest = count++ % kCrashesMax;
  at[oldest] = now;
  if (count >= kCrashesMax && now - at[count % kCrashesMax] <= options.crash_window_ms) {
    often = true;
  }
  if (!often) return now;
  const int64_t next = started_at + options.crash_pause_ms;
  return next > now ? next : now;
}

bool Keeper::Start(Agent& agent, const Program& program) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    Say(Level::kError, "cannot start an agent: %s", strerror(errno));
    return false;
  }
  // By its path, which is the name that people see, while that is still the same file.
  char through_descriptor[32];
  snprintf(through_descriptor, sizeof(through_descriptor), "/proc/self/fd/%d", program.descriptor);
  struct stat opened;
  struct stat there;
  const bool same = fstat(program.descriptor, &opened) == 0 && stat(program.path, &there) == 0 &&
                    opened.st_dev == there.st_dev && opened.st_ino == there.st_ino;

  const spawn::DescriptorMapping mapping = {.from = ends[1], .to = kAgentDescriptor};
  spawn::Options options;
  options.program = same ? program.path : through_descriptor;
  options.arguments = command_;
  options.environment = agents_environment_;
  options.descriptors = &mapping;
  options.descriptors_count = 1;
  options.session = spawn::Session::kOwnGroup;
  options.descriptors_limit = &limit_at_start_;
  const spawn::Started started = spawn::Spawn(options);
  close(ends[1]);
  if (started.failed_step != spawn::Step::kNone) {
    close(ends[0]);
    Say(Level::kError, "cannot start %s: %s: %s", program.path,
        spawn::StepName(started.failed_step), strerror(started.error));
    return false;
  }

  agent = Agent();
  agent.pid = started.pid;
  agent.pidfd = started.pidfd;
  agent.socket = ends[0];
  agent.number = agents_count_ + 1;
  agent.candidate = &program == &upgrade_;
  agent.started_at = now_;
  agent.ready_by = now_ + options_.ready_ms_max;
  return true;
}

// Ends a spare, or forgets an agent that has ended. A spare that was dropped never hears kGo, so
// nobody waits for its end in particular.
void Keeper::Drop(Agent& agent) {
  if (agent.pid == 0) return;
  if (&agent == spare_) spawn::SendSignal(agent.pidfd, SIGKILL);
  Close(agent.pidfd);
  Close(agent.socket);
  agent = Agent();
  for (size_t i = children_count_; i-- > 0;) {
    KnownTo(agent, children_[i]) = 0;
    EraseIfDone(i);
  }
}

// The agent before has been waited for.
void Keeper::TakeOver() {
  if (spare_->hung || (spare_->candidate && !spare_->ready)) Drop(*spare_);
  if (spare_->pid == 0 && !Start(*spare_, program_)) {
    if (agents_count_ == 0) {
      Finish(1);
      return;
    }
    agent_at_ = agent_crashes_.Add(options_, now_, now_);
    return;
  }
  Agent* next = spare_;
  spare_ = agent_;
  agent_ = next;
  agent_->next = true;
  agent_->started_at = now_;
  ++agents_count_;
  spare_at_ = now_;
  if (agent_->candidate) {
    CloseProgram(program_);
    program_ = upgrade_;
    upgrade_ = Program();
    agent_->candidate = false;
  }
}

// --- Signals and ended processes -----------------------------------------------------------------

void Keeper::TakeSignals() {
  signalfd_siginfo taken[8];
  const ssize_t bytes = read(signals_, taken, sizeof(taken));
  if (bytes <= 0) return;
  // Who has ended comes first: a stop is for who is there then.
  WaitForProcesses();
  for (size_t i = 0; i < static_cast<size_t>(bytes) / sizeof(taken[0]); ++i) {
    switch (taken[i].ssi_signo) {
      case SIGCHLD:
        break;
      case SIGUSR2:
        WantUpgrade(-1);
        break;
      default:
        Stop(static_cast<int>(taken[i].ssi_signo));
    }
  }
}

void Keeper::WaitForProcesses() {
  for (;;) {
    int status;
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    if (pid == agent_->pid) {
      AgentEnded(status);
      continue;
    }
    if (pid == spare_->pid) {
      SpareEnded(status);
      continue;
    }
    for (size_t i = 0; i < children_count_; ++i) {
      Child& child = children_[i];
      // The number of one that has exited may be another's by now.
      if (child.pid != pid || child.exited) continue;
      child.exited = true;
      child.status = status;
      if (!EraseIfDone(i)) Changed();
      break;
    }
  }
}

void Keeper::AgentEnded(int status) {
  // What it has asked for is done.
  agent_->deaf = true;
  agent_->answer_due = false;
  Hear(*agent_, true);

  const Agent ended = *agent_;
  Drop(*agent_);
  const Ending how(status);
  if (stop_ != 0) {
    if (WIFEXITED(status)) {
      Finish(WEXITSTATUS(status));
      return;
    }
    Say(Level::kWarning, "agent %d %s while it stopped", ended.pid, how.text);
    agent_at_ = now_;
    if (spare_->ready) {
      stop_by_ = now_ + options_.stop_ms_max;
    } else {
      EndChildren();
    }
    return;
  }
  if (WIFEXITED(status) && !was_ready_ && Running() == 0) {
    // It has said why.
    Finish(WEXITSTATUS(status));
    return;
  }
  agent_at_ = now_;
  if (ended.replaced && spare_->ready) {
    Say(Level::kInfo, "agent %d makes room for agent %d", ended.pid, spare_->pid);
    return;
  }
  Say(Level::kWarning, "agent %d %s; %zu children go on", ended.pid, how.text, Running());
  if (!ended.hung && !IsOwnEnd(status)) return;
  agent_at_ = Crashed(agent_crashes_, "agents", ended.started_at);
}

void Keeper::SpareEnded(int status) {
  const Agent ended = *spare_;
  Drop(*spare_);
  const Ending how(status);
  if (ended.candidate) {
    RefuseUpgrade(ended.hung ? Refusal::kSilent : Refusal::kEnded,
                  ended.hung ? "is not ready in time" : how.text);
    return;
  }
  spare_at_ = now_;
  Say(Level::kWarning, "spare %d %s", ended.pid, how.text);
  if (!ended.hung && !IsOwnEnd(status)) return;
  spare_at_ = Crashed(spare_crashes_, "spares", ended.started_at);
}

int64_t Keeper::Crashed(Crashes& crashes, const char* what, int64_t started_at) {
  const bool before = crashes.often;
  const int64_t next = crashes.Add(options_, started_at, now_);
  if (crashes.often && !before) {
    Say(Level::kError,
        "%u %s have ended by themselves in %lld s: one is started every %lld s from now on",
        kCrashesMax, what, static_cast<long long>(options_.crash_window_ms / 1000),
        static_cast<long long>(options_.crash_pause_ms / 1000));
  }
  return next;
}

void Keeper::Stop(int signal_number) {
  stop_signal_ = signal_number;
  if (ending_) {
    end_by_ = now_;
    return;
  }
  if (stop_ == 0) {
    stop_by_ = now_ + options_.stop_ms_max;
    // One that is ready stops in the place of an agent that is killed before it has.
    if (!spare_->ready) {
      Drop(*spare_);
      CloseProgram(upgrade_);
    }
  }
  stop_ = stop_ == 0 ? 1 : 2;
}

void Keeper::EndChildren() {
  ending_ = true;
  Drop(*spare_);
  end_by_ = now_ + options_.end_ms_max;
  const size_t running = Running();
  if (running > 0) Say(Level::kWarning, "ends the %zu children that run", running);
  for (size_t i = 0; i < children_count_; ++i) {
    // Nobody else waits for it, so the number is its own.
    if (!children_[i].exited) kill(children_[i].pid, SIGTERM);
  }
}

void Keeper::ArrangeEnd() {
  if (Running() == 0) {
    Finish(1);
  } else if (now_ >= end_by_) {
    if (killed_) {
      Say(Level::kError, "%zu children cannot be ended", Running());
      Finish(1);
      return;
    }
    KillChildren();
    killed_ = true;
    end_by_ = now_ + kKilledMsMax;
  }
}

void Keeper::KillChildren() {
  for (size_t i = 0; i < children_count_; ++i) {
    const Child& child = children_[i];
    if (child.exited) continue;
    // A group of this number can be the child's own only.
    kill(-child.pid, SIGKILL);
    kill(child.pid, SIGKILL);
  }
}

size_t Keeper::Running() const {
  size_t running = 0;
  for (size_t i = 0; i < children_count_; ++i) running += children_[i].exited ? 0 : 1;
  return running;
}

// --- Upgrade -------------------------------------------------------------------------------------

bool Keeper::OpenProgram(const char* path, Program& program) {
  program.path = strdup(path);
  program.descriptor = open(path, O_PATH | O_CLOEXEC);
  if (program.path != nullptr && program.descriptor >= 0) return true;
  const int error = errno;
  CloseProgram(program);
  errno = error;
  return false;
}

void Keeper::CloseProgram(Program& program) {
  Close(program.descriptor);
  free(program.path);
  program = Program();
}

// `descriptor` is the program, or -1: that at the path of the one there is. The last wish counts.
void Keeper::WantUpgrade(int descriptor) {
  if (stop_ != 0) return;
  char path[4096];
  snprintf(path, sizeof(path), "%s", program_.path);
  if (descriptor >= 0) {
    char link[32];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
    const ssize_t length = readlink(link, path, sizeof(path) - 1);
    path[length > 0 ? length : 0] = '\0';
  }
  if (spare_->candidate) Drop(*spare_);
  CloseProgram(upgrade_);
  if (descriptor >= 0) {
    upgrade_.path = strdup(path);
    upgrade_.descriptor = upgrade_.path != nullptr ? fcntl(descriptor, F_DUPFD_CLOEXEC, 3) : -1;
    if (upgrade_.descriptor >= 0) return;
  } else if (OpenProgram(path, upgrade_)) {
    return;
  }
  char text[128];
  snprintf(text, sizeof(text), "cannot be opened: %s", strerror(errno));
  RefuseUpgrade(Refusal::kNotStarted, text);
}

void Keeper::RefuseUpgrade(Refusal why, const char* text) {
  Say(Level::kError, "the upgrade to %s is refused: it %s; the agent goes on",
      upgrade_.path != nullptr ? upgrade_.path : program_.path, text);
  refusal_ = why;
  CloseProgram(upgrade_);
}

// --- What agents ask for -------------------------------------------------------------------------

// Reads what is there, or all that was ever sent of a process that has ended.
void Keeper::Hear(Agent& agent, bool to_the_end) {
  for (unsigned i = 0; to_the_end || i < kPacketsAtOnce; ++i) {
    if (agent.socket < 0 || agent.answer_due) return;
    Packet packet;
    switch (ReceivePacket(agent.socket, MSG_DONTWAIT, packet)) {
      case Received::kNothing:
        return;
      case Received::kNoise:
        break;
      case Received::kEnd:
        agent.closed_by = now_ + options_.mail_ms_max;
        agent.deaf = true;
        Close(agent.socket);
        break;
      case Received::kPacket:
        Take(agent, packet);
    }
    // What was taken is -1 now.
    for (size_t j = 0; j < packet.count; ++j) Close(packet.descriptors[j]);
  }
}

void Keeper::Take(Agent& agent, Packet& packet) {
  const Message& message = packet.message;
  if (message.type == Type::kReady) {
    TakeReady(agent, message);
    return;
  }
  if (!agent.went) return;  // a spare has nothing to ask for

  Child* child = Find(message.id);
  switch (message.type) {
    case Type::kKeep:
      TakeKeep(packet);
      break;
    case Type::kSpawn:
      TakeSpawn(agent, packet);
      break;
    case Type::kAcknowledge:
      if (child != nullptr && child->exited) child->acknowledged = true;
      break;
    case Type::kRelease:
      if (child == nullptr) break;
      Release(*child, false);
      child->released = true;
      KnownTo(agent, *child) |= kKnowsRelease;
      Changed();
      break;
    case Type::kForget:
      if (child == nullptr) break;
      Release(*child, true);
      child->forgotten = true;
      KnownTo(agent, *child) = 0;
      if (!EraseIfDone(static_cast<size_t>(child - children_))) Changed();
      break;
    case Type::kUpgrade:
      if (message.detail != 1) {
        WantUpgrade(-1);
      } else if (packet.count == 1) {
        WantUpgrade(packet.descriptors[0]);
      } else {
        RefuseUpgrade(Refusal::kNotStarted, "did not come with the request");
      }
      break;
    default:
      break;
  }
}

void Keeper::TakeReady(Agent& agent, const Message& message) {
  if (agent.ready || agent.hung) return;
  Refusal refusal = Refusal::kNone;
  if (message.number != kProtocolVersion) {
    refusal = Refusal::kProtocol;
  } else if (was_ready_ && message.id != layout_) {
    refusal = Refusal::kLayout;
  }

  if (refusal == Refusal::kNone) {
    agent.ready = true;
    was_ready_ = true;
    layout_ = message.id;
    agent.look_at = now_ + options_.look_ms;
    if (!agent.candidate) return;
    if (agent_->pid == 0) {
      agent_at_ = now_;
    } else {
      agent_->replaced = true;
      spawn::SendSignal(agent_->pidfd, SIGKILL);
    }
    return;
  }

  char text[96];
  if (refusal == Refusal::kProtocol) {
    snprintf(text, sizeof(text), "speaks version %llu of the protocol, not %u",
             static_cast<unsigned long long>(message.number), kProtocolVersion);
  } else {
    snprintf(text, sizeof(text), "has version %llu of the layout, the agent version %llu",
             static_cast<unsigned long long>(message.id), static_cast<unsigned long long>(layout_));
  }
  if (agent.candidate) {
    Drop(agent);
    RefuseUpgrade(refusal, text);
    return;
  }
  if (!was_ready_) Finish(1);
  Overdue(agent, text);
}

void Keeper::TakeKeep(Packet& packet) {
  const Message& message = packet.message;
  if (message.id >= kSlotsMax) return;
  Slot& slot = slots_[message.id];
  Empty(slot);
  if (packet.count == 0) return;
  if (!packet.truncated && packet.count <= kDescriptorsMax) {
    slot.descriptors = static_cast<int*>(malloc(packet.count * sizeof(int)));
  }
  if (slot.descriptors == nullptr) {
    Say(Level::kError, "cannot keep what the agent gave for slot %llu",
        static_cast<unsigned long long>(message.id));
    return;
  }
  for (; slot.count < packet.count; ++slot.count) {
    slot.descriptors[slot.count] = packet.descriptors[slot.count];
    packet.descriptors[slot.count] = -1;
  }
}

void Keeper::TakeSpawn(Agent& agent, Packet& packet) {
  const Message& message = packet.message;
  agent.answer = {.type = Type::kSpawned, .id = message.id};
  agent.answer_due = !agent.deaf;
  const Child* child = Find(message.id);
  if (child == nullptr) {
    spawn::Started started;
    started.failed_step = spawn::Step::kStart;
    started.error = EMFILE;
    if (!packet.truncated) started = StartChild(packet);
    if (started.failed_step != spawn::Step::kNone) {
      agent.answer.detail = static_cast<uint32_t>(started.failed_step);
      agent.answer.status = started.error;
      Tell(agent);
      return;
    }
    child = &children_[children_count_ - 1];
    KnownTo(agent, children_[children_count_ - 1]) = kKnowsChild;
    Changed();
  }
  agent.answer.pid = child->pid;
  Tell(agent);
}

// `descriptors` that were taken are -1.
spawn::Started Keeper::StartChild(Packet& packet) {
  const Message& message = packet.message;
  spawn::Started started;
  started.failed_step = spawn::Step::kStart;
  started.error = EINVAL;
  const uint32_t holds = message.detail;
  const size_t held = static_cast<size_t>(__builtin_popcount(holds));
  if ((holds & ~kHeldMask) != 0 || packet.count < 1 + held) return started;
  SpawnCall call;
  if (const int error = call.Read(packet.descriptors[0]); error != 0) {
    started.error = error;
    return started;
  }
  if (packet.count != 1 + held + call.descriptors_count()) return started;
  if (!MakeRoom()) {
    started.error = ENOMEM;
    return started;
  }
  started = spawn::Spawn(call.For(packet.descriptors + 1 + held, &limit_at_start_));
  if (started.failed_step != spawn::Step::kNone) return started;

  Child& child = children_[children_count_++];
  child = Child();
  child.id = message.id;
  child.pid = started.pid;
  int* next = packet.descriptors + 1;
  for (unsigned i = 0; i < kHeldOfSpawn; ++i) {
    if ((holds & (1u << i)) == 0) continue;
    child.descriptors[i] = *next;
    *next++ = -1;
  }
  child.descriptors[kPidfdIndex] = started.pidfd;
  return started;
}

// --- What agents are told ------------------------------------------------------------------------

void Keeper::Tell(Agent& agent) {
  if (agent.pid == 0 || agent.deaf || agent.retry_at > now_) return;
  agent.blocked = false;
  agent.retry_at = 0;
  if (agent.answer_due && !TellAnswer(agent)) return;
  if (!agent.file_told) {
    const Message message = {
        .type = Type::kFile, .id = agent.number, .pid = getpid(), .number = kProtocolVersion};
    if (!Send(agent, message, &agent_file_, 1)) return;
    agent.file_told = true;
  }
  if (agent.behind && !TellChildren(agent)) return;
  if (!agent.fed_told) {
    const Message message = {.type = Type::kFed, .detail = agent.next ? 1u : 0u};
    if (!Send(agent, message, nullptr, 0)) return;
    agent.fed_told = true;
  }
  if (agent.next && !agent.went && !TellGo(agent)) return;
  if (agent.went) TellNews(agent);
}

bool Keeper::TellAnswer(Agent& agent) {
  const Child* child = agent.answer.detail == static_cast<uint32_t>(spawn::Step::kNone)
                           ? Find(agent.answer.id)
                           : nullptr;
  const int* pidfd = child != nullptr ? &child->descriptors[kPidfdIndex] : nullptr;
  if (!Send(agent, agent.answer, pidfd, pidfd != nullptr && *pidfd >= 0 ? 1 : 0)) return false;
  agent.answer_due = false;
  return true;
}

bool Keeper::TellChildren(Agent& agent) {
  // From the end: what is erased is replaced by the last one, which has had its turn.
  for (size_t i = children_count_; i-- > 0;) {
    if (!TellChild(agent, children_[i])) return false;
    EraseIfDone(i);
  }
  agent.behind = false;
  return true;
}

bool Keeper::TellChild(Agent& agent, Child& child) {
  uint8_t& known = KnownTo(agent, child);
  if (child.forgotten) {
    if (known != 0 &&
        !Send(agent, {.type = Type::kGone, .detail = 1, .id = child.id}, nullptr, 0)) {
      return false;
    }
    known = 0;
    return true;
  }
  if (known == 0) {
    Message message = {.type = Type::kChild, .id = child.id, .pid = child.pid};
    int descriptors[kDescriptorsOfChild];
    size_t count = 0;
    for (unsigned i = 0; i < kDescriptorsOfChild; ++i) {
      if (child.descriptors[i] < 0) continue;
      message.detail |= 1u << i;
      descriptors[count++] = child.descriptors[i];
    }
    if (child.exited && !child.acknowledged) {
      message.detail |= kHasExited;
      message.status = child.status;
    }
    if (!Send(agent, message, descriptors, count)) return false;
    known = kKnowsChild;
    if (child.exited) known |= kKnowsExit;
    if (child.released) known |= kKnowsRelease;
    return true;
  }
  if (child.exited && (known & kKnowsExit) == 0) {
    const Message message = {.type = Type::kExited, .id = child.id, .status = child.status};
    if (!Send(agent, message, nullptr, 0)) return false;
    known |= kKnowsExit;
  }
  if (child.released && (known & kKnowsRelease) == 0) {
    if (!Send(agent, {.type = Type::kGone, .id = child.id}, nullptr, 0)) return false;
    known |= kKnowsRelease;
  }
  return true;
}

bool Keeper::TellGo(Agent& agent) {
  for (; agent.slots_told < kSlotsMax; ++agent.slots_told) {
    const Slot& slot = slots_[agent.slots_told];
    if (slot.count == 0) continue;
    const Message message = {.type = Type::kKept, .id = agent.slots_told};
    if (!Send(agent, message, slot.descriptors, slot.count)) return false;
  }
  if (!Send(agent, {.type = Type::kGo}, nullptr, 0)) return false;
  agent.went = true;
  agent.heartbeat = *heartbeat_;
  agent.look_at = now_ + options_.look_ms;
  return true;
}

void Keeper::TellNews(Agent& agent) {
  if (agent.stop_told < stop_) {
    const Message message = {.type = Type::kStop, .detail = stop_ - 1, .status = stop_signal_};
    if (!Send(agent, message, nullptr, 0)) return;
    agent.stop_told = stop_;
  }
  const pid_t spare = spare_->ready ? spare_->pid : 0;
  if (agent.spare_told != spare) {
    if (!Send(agent, {.type = Type::kSpare, .pid = spare}, nullptr, 0)) return;
    agent.spare_told = spare;
  }
  if (refusal_ != Refusal::kNone) {
    const Message message = {.type = Type::kRefused, .detail = static_cast<uint32_t>(refusal_)};
    if (!Send(agent, message, nullptr, 0)) return;
    refusal_ = Refusal::kNone;
  }
}

// False: there is no room now, or never again.
bool Keeper::Send(Agent& agent, const Message& message, const int* descriptors, size_t count) {
  switch (SendPacket(agent.socket, MSG_DONTWAIT, message, descriptors, count)) {
    case 0:
      agent.mail_by = 0;
      return true;
    case EAGAIN:
      agent.blocked = true;
      break;
    case ETOOMANYREFS:
    case ENOBUFS:
    case ENOMEM:
      agent.retry_at = now_ + kRetryMs;
      break;
    default:
      // It has closed its end, or is about to be waited for. What it has sent is still heard.
      agent.deaf = true;
      agent.answer_due = false;
      return false;
  }
  if (agent.mail_by == 0) agent.mail_by = now_ + options_.mail_ms_max;
  return false;
}

// --- Children ------------------------------------------------------------------------------------

// Linear, like all walks of the table: 16,384 children are one megabyte.
Keeper::Child* Keeper::Find(uint64_t id) {
  for (size_t i = 0; i < children_count_; ++i) {
    if (children_[i].id == id && !children_[i].forgotten) return &children_[i];
  }
  return nullptr;
}

bool Keeper::MakeRoom() {
  if (children_count_ < children_room_) return true;
  const size_t room = children_room_ + children_room_ / 2 + 64;
  void* children = realloc(children_, room * sizeof(Child));
  if (children == nullptr) return false;
  children_ = static_cast<Child*>(children);
  children_room_ = room;
  return true;
}

void Keeper::Changed() {
  for (Agent& agent : agents_) agent.behind = true;
}

void Keeper::Empty(Slot& slot) {
  for (size_t i = 0; i < slot.count; ++i) close(slot.descriptors[i]);
  free(slot.descriptors);
  slot = Slot();
}

void Keeper::Release(Child& child, bool memory_too) {
  for (unsigned i = 0; i < kDescriptorsOfChild; ++i) {
    if (i != kMemoryIndex || memory_too) Close(child.descriptors[i]);
  }
}

bool Keeper::EraseIfDone(size_t index) {
  const Child& child = children_[index];
  if (!child.forgotten || !child.exited || child.known[0] != 0 || child.known[1] != 0) return false;
  children_[index] = children_[--children_count_];
  return true;
}

}  // namespace deka::keeper
