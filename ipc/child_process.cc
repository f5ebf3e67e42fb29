#include "ipc/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "ipc/error.h"
#include "ipc/log.h"
#include "spawn/spawn.h"

namespace deka::ipc {
namespace {

constexpr int kChannelDescriptor = 3;  // in the child

absl::Status Invalid(std::string_view message) {
  return MakeError(Reason::kInvalidArgument, message);
}

absl::Status NoChannel() {
  return MakeError(Reason::kNoChannel, "The child was forked without a channel (ipc is false).");
}

// `error` is the errno of the call that made a descriptor for `what`.
absl::Status NoDescriptor(std::string_view what, int error) {
  if (error == EMFILE || error == ENFILE) {
    return MakeError(Reason::kDescriptorsExhausted,
                     fmt::format("No descriptor is left for {}: {}. Close some, or raise the limit "
                                 "(ulimit -n).",
                                 what, std::strerror(error)));
  }
  return MakeError(Reason::kSpawnFailed,
                   fmt::format("No descriptor was made for {}: {}.", what, std::strerror(error)));
}

// A host that runs with descriptors 0 to 2 closed gets low numbers; a child that inherits its
// stdio must not find ours there.
absl::StatusOr<Descriptor> AboveStdio(int descriptor, std::string_view what) {
  Descriptor made(descriptor);
  if (!made.valid()) return NoDescriptor(what, errno);
  if (made.get() > STDERR_FILENO) return made;
  Descriptor moved(fcntl(made.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  if (!moved.valid()) return NoDescriptor(what, errno);
  return moved;
}

struct Ends {
  Descriptor ours;
  Descriptor childs;
};

absl::StatusOr<Ends> EndsOf(int ours, int childs, std::string_view what) {
  Descriptor kept(childs);  // closed if the first one fails
  absl::StatusOr<Descriptor> first = AboveStdio(ours, what);
  if (!first.ok()) return first.status();
  absl::StatusOr<Descriptor> second = AboveStdio(kept.Release(), what);
  if (!second.ok()) return second.status();
  return Ends{*std::move(first), *std::move(second)};
}

absl::StatusOr<Ends> MakeSocketPair() {
  constexpr std::string_view kWhat = "the child's channel";
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return NoDescriptor(kWhat, errno);
  }
  return EndsOf(ends[0], ends[1], kWhat);
}

// Not a socketpair: a child that opens /dev/stderr would fail.
absl::StatusOr<Ends> MakePipe() {
  constexpr std::string_view kWhat = "the child's output";
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return NoDescriptor(kWhat, errno);
  return EndsOf(ends[0], ends[1], kWhat);
}

std::string_view PathIn(const std::vector<std::string>& environment) {
  constexpr std::string_view kName = "PATH=";
  for (const std::string& variable : environment) {
    if (variable.starts_with(kName)) return std::string_view(variable).substr(kName.size());
  }
  return {};
}

std::vector<const char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<const char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (const std::string& string : strings) pointers.push_back(string.c_str());
  pointers.push_back(nullptr);
  return pointers;
}

bool HasNul(const std::string& string) { return string.find('\0') != std::string::npos; }

absl::Status CheckOptions(const ForkOptions& options) {
  if (options.program.empty()) return Invalid("The program is empty. Name one to run.");
  if (HasNul(options.program) || HasNul(options.cwd) ||
      std::any_of(options.args.begin(), options.args.end(), HasNul)) {
    return Invalid(
        "A NUL byte stands in the program, its directory or its arguments, where none can be. "
        "Take it out.");
  }
  if (options.env.has_value()) {
    for (const std::string& variable : *options.env) {
      const size_t equals = variable.find('=');
      if (HasNul(variable) || equals == 0 || equals == std::string::npos) {
        return Invalid(
            fmt::format("The environment's '{}' is not of the form NAME=value. Give it one.",
                        Escaped(variable, 64)));
      }
    }
  }
  if (options.stdin_mode == Stdio::kPipe) {
    return Invalid("stdin cannot be captured. Let it be inherited or null.");
  }
  if (options.output_line_bytes_max == 0) {
    return Invalid("output_line_bytes_max is 0. Give at least 1.");
  }
  if (options.kill_signal < 1 || options.kill_signal > SIGRTMAX) {
    return Invalid(fmt::format("kill_signal is {}, which is no signal. Give a number from 1 to {}.",
                               options.kill_signal, SIGRTMAX));
  }
  return absl::OkStatus();
}

// The kernel's MAX_ARG_STRLEN, without the NUL behind the string.
size_t ArgumentBytesMax() { return 32 * static_cast<size_t>(getpagesize()) - 1; }

// The kernel refused `arguments` and `environment` as too long, one string or all together.
absl::Status TooLong(const std::vector<std::string>& arguments,
                     const std::vector<std::string>& environment) {
  const auto too_long = [](const std::string& string) {
    return string.size() > ArgumentBytesMax();
  };
  const auto error = [&](std::string_view what) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("The program '{}' was not started: {}. Pass what is long in a "
                                 "message or a file.",
                                 arguments[0], what),
                     {{"limit", fmt::format("{}", ArgumentBytesMax())}});
  };
  if (const auto found = std::find_if(arguments.begin(), arguments.end(), too_long);
      found != arguments.end()) {
    return error(fmt::format("its argument {} has {} bytes, and one may have at most {}",
                             found - arguments.begin(), found->size(), ArgumentBytesMax()));
  }
  if (const auto found = std::find_if(environment.begin(), environment.end(), too_long);
      found != environment.end()) {
    return error(fmt::format(
        "its environment's {} has {} bytes with its name, and one variable may have at most {}",
        Escaped(std::string_view(*found).substr(0, found->find('=')), 64), found->size(),
        ArgumentBytesMax()));
  }
  size_t bytes = 0;
  for (const auto* strings : {&arguments, &environment}) {
    for (const std::string& string : *strings) bytes += string.size() + 1 + sizeof(char*);
  }
  return error(
      fmt::format("its arguments and environment take {} bytes, more than the system lets them: a "
                  "quarter of the stack's limit (ulimit -s), 6 MiB at most",
                  bytes));
}

absl::Status KeeperGoneError() {
  return MakeError(Reason::kKeeperGone,
                   fmt::format("The keeper of agent process {}, which starts its children, has "
                               "ended: nothing can be started any more. The children that there "
                               "are go on; when they have ended, stop the agent (kill {}) and "
                               "start a new one.",
                               getpid(), getpid()));
}

absl::Status SpawnError(const std::string& program, const std::string& directory,
                        const spawn::Started& started) {
  const std::string cause = std::strerror(started.error);
  if (started.failed_step == spawn::Step::kExec) {
    switch (started.error) {
      case ENOENT:
      case ENOTDIR:
      case ENAMETOOLONG:
        return MakeError(
            Reason::kProgramNotFound,
            fmt::format("The program '{}' was not found: {}. {}", program, cause,
                        program.find('/') == std::string::npos
                            ? "Give its path: it is in no directory of the child's PATH."
                            : "Look at its path, and at the interpreter if it is a script."));
      case EACCES:
      case ENOEXEC:
      case EISDIR:
        return MakeError(Reason::kProgramNotExecutable,
                         fmt::format("The program '{}' cannot be executed: {}. It must be a binary "
                                     "or begin with #!, and be allowed to run (chmod +x).",
                                     program, cause));
      default:
        break;
    }
  }
  if (started.failed_step == spawn::Step::kStart &&
      (started.error == EMFILE || started.error == ENFILE)) {
    return NoDescriptor("the child's process", started.error);
  }
  if (started.failed_step == spawn::Step::kDirectory &&
      (started.error == ENOENT || started.error == ENOTDIR || started.error == ENAMETOOLONG)) {
    return MakeError(Reason::kProgramNotFound,
                     fmt::format("The program '{}' was not started: there is no directory '{}' to "
                                 "start it in: {}. Look at cwd.",
                                 program, directory, cause));
  }
  const std::string what = started.failed_step == spawn::Step::kDirectory
                               ? fmt::format("its directory '{}'", directory)
                               : fmt::format("the step '{}'", StepName(started.failed_step));
  return MakeError(
      Reason::kSpawnFailed,
      fmt::format("The program '{}' was not started: {} failed: {}.", program, what, cause));
}

ExitStatus StatusOf(const spawn::Ended& ended) {
  switch (ended.how) {
    case spawn::Ended::How::kExited:
      return {.code = ended.value};
    case spawn::Ended::How::kSignal:
      return {.signal = ended.value};
    default:
      return {
          .unknown_reason =
              "Somebody else waits for this process, and the kernel did not tell how it ended."};
  }
}

// How a process ended that somebody else started: looks, but leaves it for its parent to reap.
// Unset: it has not ended.
std::optional<ExitStatus> Look(int pidfd) {
  siginfo_t info = {};
  if (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info,
             WEXITED | WNOHANG | WNOWAIT) == 0) {
    if (info.si_pid == 0) return std::nullopt;
    if (info.si_code == CLD_EXITED) return ExitStatus{.code = info.si_status};
    return ExitStatus{.signal = info.si_status};
  }
  const spawn::Ended ended = spawn::Reap(pidfd);
  if (ended.how == spawn::Ended::How::kNotYet) return std::nullopt;
  return StatusOf(ended);
}

// Children whose ChildProcess is gone: still reaped when they end.
class Orphans {
 public:
  explicit Orphans(EventLoop& loop) : loop_(loop) {}

  void Add(Descriptor pidfd) {
    const int number = pidfd.get();
    Orphan& orphan = orphans_.emplace_back(std::move(pidfd));
    orphan.watch = std::make_unique<Watch>(loop_, number, [this, number](int) { OnReady(number); });
    orphan.watch->Reference(false);
    orphan.watch->Want(Watch::kReadable);
  }

 private:
  struct Orphan {
    explicit Orphan(Descriptor descriptor) : pidfd(std::move(descriptor)) {}
    Descriptor pidfd;
    std::unique_ptr<Watch> watch;
  };

  void OnReady(int number) {
    if (spawn::Reap(number).how == spawn::Ended::How::kNotYet) return;
    std::erase_if(orphans_,
                  [number](const Orphan& orphan) { return orphan.pidfd.get() == number; });
  }

  EventLoop& loop_;
  std::vector<Orphan> orphans_;
};

}  // namespace

ExitStatus ExitStatusOf(int wait_status) {
  if (WIFEXITED(wait_status)) return {.code = WEXITSTATUS(wait_status)};
  return {.signal = WTERMSIG(wait_status)};
}

DialectChoice ForkDialect(const ForkOptions& options) {
  if (options.dialect.has_value()) return {.dialect = *options.dialect, .reason = "asked for"};
  return ChooseDialect(options.program, PathIn(options.env ? *options.env : OwnEnvironment()),
                       options.cwd.empty() ? "." : options.cwd);
}

std::vector<std::string> OwnEnvironment() {
  std::vector<std::string> variables;
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    variables.emplace_back(*variable);
  }
  return variables;
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Fork(EventLoop& loop,
                                                                 ForkOptions options,
                                                                 Listener& listener,
                                                                 Custody custody) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  std::unique_ptr<ChildProcess> child(new ChildProcess(loop, listener));
  child->kill_signal_ = options.kill_signal;
  child->exit_drain_ms_max_ = options.exit_drain_ms_max;

  DialectChoice dialect = ForkDialect(options);
  std::vector<std::string> environment =
      options.env.has_value() ? *std::move(options.env) : OwnEnvironment();
  child->dialect_ = dialect.dialect;
  child->dialect_reason_ = std::move(dialect.reason);
  environment = options.ipc ? ChannelEnvironment(environment, child->dialect_, kChannelDescriptor)
                            : EnvironmentWithoutChannel(environment);

  // What may fail on this side does so before the program runs. The child's ends are closed when
  // this returns.
  std::vector<Descriptor> childs;
  std::vector<spawn::DescriptorMapping> mappings;
  const auto give_child = [&](Descriptor descriptor, int number) {
    mappings.push_back({.from = descriptor.get(), .to = number});
    childs.push_back(std::move(descriptor));
  };
  if (absl::Status status = child->TakeMemory(MemoryLimits(options), std::move(custody));
      !status.ok()) {
    return status;
  }
  Keeper::Held held = {.memory = child->memory_->file()};
  if (options.ipc) {
    absl::StatusOr<Ends> ends = MakeSocketPair();
    if (!ends.ok()) return ends.status();
    options.channel.dialect = child->dialect_;
    held.channel = ends->ours.get();
    absl::Status status = child->OpenChannel(std::move(ends->ours), std::move(options.channel));
    if (!status.ok()) return status;
    give_child(std::move(ends->childs), kChannelDescriptor);
  }
  const Stdio modes[] = {options.stdin_mode, options.stdout_mode, options.stderr_mode};
  for (int number = 0; number <= STDERR_FILENO; ++number) {
    if (modes[number] == Stdio::kNull) {
      absl::StatusOr<Descriptor> null =
          AboveStdio(open("/dev/null", O_RDWR | O_CLOEXEC), "the child's /dev/null");
      if (!null.ok()) return null.status();
      give_child(*std::move(null), number);
    } else if (modes[number] == Stdio::kPipe) {
      absl::StatusOr<Ends> ends = MakePipe();
      if (!ends.ok()) return ends.status();
      held.output[number - 1] = ends->ours.get();
      absl::Status status =
          child->CaptureOutput(number, options.output_line_bytes_max, std::move(ends->ours));
      if (!status.ok()) return status;
      give_child(std::move(ends->childs), number);
    }
  }

  std::vector<std::string> arguments = {options.program};
  arguments.insert(arguments.end(), std::make_move_iterator(options.args.begin()),
                   std::make_move_iterator(options.args.end()));
  const std::vector<const char*> argv = Pointers(arguments);
  const std::vector<const char*> envp = Pointers(environment);
  rlimit limit;
  if (options.descriptors_soft_max.has_value()) {
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = std::min<rlim_t>(*options.descriptors_soft_max, limit.rlim_max);
  }
  spawn::Options start;
  start.program = options.program.c_str();
  start.arguments = argv.data();
  start.environment = envp.data();
  start.descriptors = mappings.data();
  start.descriptors_count = mappings.size();
  start.session = options.detached            ? spawn::Session::kOwnSession
                  : options.own_process_group ? spawn::Session::kOwnGroup
                                              : spawn::Session::kInherit;
  start.descriptors_limit = options.descriptors_soft_max.has_value() ? &limit : nullptr;
  start.directory = options.cwd.empty() ? nullptr : options.cwd.c_str();
  start.user = options.uid.has_value() ? &*options.uid : nullptr;
  start.group = options.gid.has_value() ? &*options.gid : nullptr;
  const spawn::Started started = child->keeper_ == nullptr
                                     ? spawn::Spawn(start)
                                     : child->keeper_->Start(child->number_, start, held);
  if (started.failed_step == spawn::Step::kExec && started.error == E2BIG) {
    return TooLong(arguments, environment);
  }
  if (started.failed_step != spawn::Step::kNone) {
    if (child->keeper_ != nullptr && child->keeper_->gone()) return KeeperGoneError();
    return SpawnError(options.program, options.cwd, started);
  }

  if (absl::Status status = child->WatchProcess(started.pid, Descriptor(started.pidfd));
      !status.ok()) {
    spawn::SendSignal(child->pidfd_.get(), SIGKILL);
    siginfo_t ended;
    if (child->keeper_ == nullptr) {
      waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(child->pidfd_.get()), &ended,
             WEXITED);
    }
    return status;
  }
  child->forked_ = child->keeper_ == nullptr;
  child->leads_group_ = options.detached || options.own_process_group;
  // Nothing is read before OnSpawn.
  child->spawn_told_ = false;
  if (child->channel_ != nullptr) child->channel_->PauseReading();
  child->turn_.Schedule();
  if (options.timeout.count() > 0) {
    child->timeout_.Start(options.timeout,
                          [child = child.get()] { (void)child->Kill(child->kill_signal_); });
  }
  LogVerbose(fmt::format("child {} started: {}; dialect {}: {}", started.pid, options.program,
                         options.ipc ? DialectName(child->dialect_) : "none, no channel",
                         child->dialect_reason_));
  return child;
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Adopt(EventLoop& loop, int socket,
                                                                  pid_t pid,
                                                                  Channel::Options options,
                                                                  Listener& listener,
                                                                  Custody custody) {
  Descriptor taken(socket);
  std::unique_ptr<ChildProcess> child(new ChildProcess(loop, listener));
  child->dialect_ = options.dialect;
  child->dialect_reason_ = "given with the channel that was adopted";
  Descriptor pidfd;
  if (pid != 0) {
    const int opened = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
    if (opened < 0) {
      if (errno == ESRCH) {
        return MakeError(Reason::kChildExited,
                         fmt::format("There is no process {}. Adopt its channel with pid 0 to read "
                                     "what is left in it.",
                                     pid));
      }
      if (errno == EMFILE || errno == ENFILE) return NoDescriptor("the child's process", errno);
      return Invalid(
          fmt::format("Process {} cannot be watched: {}. Give the pid of a process, or 0.", pid,
                      std::strerror(errno)));
    }
    absl::StatusOr<Descriptor> above = AboveStdio(opened, "the child's process");
    if (!above.ok()) return above.status();
    pidfd = *std::move(above);
  }
  if (absl::Status status = child->TakeMemory(options.memory_limits(), std::move(custody));
      !status.ok()) {
    return status;
  }
  if (absl::Status status = child->OpenChannel(std::move(taken), std::move(options));
      !status.ok()) {
    return status;
  }
  if (pid != 0) {
    if (absl::Status status = child->WatchProcess(pid, std::move(pidfd)); !status.ok()) {
      return status;
    }
  }
  return child;
}

StreamMemory::Limits ChildProcess::MemoryLimits(const ForkOptions& options) {
  StreamMemory::Limits limits = options.channel.memory_limits();
  if (options.stdout_mode == Stdio::kPipe || options.stderr_mode == Stdio::kPipe) {
    limits.output_line_bytes_max = options.output_line_bytes_max;
  }
  return limits;
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Recover(EventLoop& loop,
                                                                    ForkOptions options,
                                                                    Found found, Listener& listener,
                                                                    Custody custody) {
  std::unique_ptr<ChildProcess> child(new ChildProcess(loop, listener));
  child->kill_signal_ = options.kill_signal;
  child->exit_drain_ms_max_ = options.exit_drain_ms_max;
  child->dialect_ = options.dialect.value_or(Dialect::kDeka);
  child->dialect_reason_ = std::move(found.dialect_reason);
  child->leads_group_ = options.detached || options.own_process_group;
  if (absl::Status status = child->TakeMemory(MemoryLimits(options), std::move(custody));
      !status.ok()) {
    return status;
  }
  const uint64_t ends = child->memory_->progress().ends;
  if (options.ipc && (ends & kDisconnected) == 0) {
    options.channel.dialect = child->dialect_;
    if (absl::Status status =
            child->OpenChannel(std::move(found.channel), std::move(options.channel));
        !status.ok()) {
      return status;
    }
  }
  for (int number = STDOUT_FILENO; number <= STDERR_FILENO; ++number) {
    Descriptor& pipe = found.output[number - 1];
    if (!pipe.valid()) continue;
    if (absl::Status status =
            child->CaptureOutput(number, options.output_line_bytes_max, std::move(pipe));
        !status.ok()) {
      return status;
    }
  }
  child->exit_told_ = (ends & kExited) != 0;
  child->close_told_ = (ends & kClosed) != 0;
  if (child->exit_told_) {
    child->pid_ = found.pid;
    child->exit_.emplace();
  } else if (absl::Status status = child->WatchProcess(found.pid, std::move(found.pidfd));
             !status.ok()) {
    return status;
  }
  child->turn_.Schedule();
  return child;
}

ChildProcess::ChildProcess(EventLoop& loop, Listener& listener)
    : loop_(loop),
      listener_(listener),
      turn_(loop, [this] { OnTurnEnd(); }),
      timeout_(loop),
      drain_(loop) {}

ChildProcess::~ChildProcess() {
  process_watch_.reset();
  if (keeper_ != nullptr) keeper_->OnEnd(number_, nullptr);
  if (forked_ && pidfd_.valid()) loop_.Shared<Orphans>().Add(std::move(pidfd_));
}

absl::Status ChildProcess::TakeMemory(const StreamMemory::Limits& limits, Custody custody) {
  keeper_ = custody.keeper;
  number_ = custody.number;
  if (custody.memory.has_value()) {
    memory_ = std::move(custody.memory);
    return absl::OkStatus();
  }
  absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate(limits);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  return absl::OkStatus();
}

absl::Status ChildProcess::OpenChannel(Descriptor socket, Channel::Options options) {
  absl::StatusOr<std::unique_ptr<Channel>> channel =
      Channel::Open(loop_, socket.get(), *memory_, std::move(options), *this);
  if (!channel.ok()) return channel.status();
  socket.Release();
  channel_ = *std::move(channel);
  disconnect_told_ = false;
  return absl::OkStatus();
}

absl::Status ChildProcess::CaptureOutput(int number, size_t line_bytes_max, Descriptor pipe) {
  outputs_.push_back(
      std::make_unique<Output>(loop_, *memory_, number, line_bytes_max, std::move(pipe)));
  Output& output = *outputs_.back();
  output.watch.emplace(loop_, output.pipe.get(), [this, &output](int) { OnOutputReady(output); });
  if (output.watch->error() != 0) {
    return NoDescriptor("a watch of the child's output", output.watch->error());
  }
  return absl::OkStatus();
}

absl::Status ChildProcess::WatchProcess(pid_t pid, Descriptor pidfd) {
  pid_ = pid;
  pidfd_ = std::move(pidfd);
  if (channel_ != nullptr) channel_->set_debug_name(fmt::format("child {}", pid));
  if (keeper_ == nullptr) return WatchPidfd();
  keeper_->OnEnd(number_, [this](std::optional<int> wait_status) {
    if (wait_status.has_value()) return OnEnded(ExitStatusOf(*wait_status));
    // Without a keeper the kernel is asked.
    (void)WatchPidfd();
  });
  return absl::OkStatus();
}

absl::Status ChildProcess::WatchPidfd() {
  process_watch_.emplace(loop_, pidfd_.get(), [this](int) { OnProcessReady(); });
  if (process_watch_->error() != 0) {
    return NoDescriptor("a watch of the child's process", process_watch_->error());
  }
  process_watch_->Want(Watch::kReadable);
  return absl::OkStatus();
}

absl::StatusOr<Channel::Accepted> ChildProcess::Send(std::string_view json, uint64_t tag,
                                                     std::string_view note) {
  if (channel_ == nullptr) {
    return NoChannel();
  }
  return channel_->Send(json, tag, note);
}

absl::StatusOr<Channel::Accepted> ChildProcess::SendWithHandle(std::string_view, int, uint64_t) {
  return MakeError(
      Reason::kHandleUnsupported,
      "A handle cannot travel with a message. Nothing was sent: send the message without it.");
}

bool ChildProcess::Cancel(uint64_t tag) { return channel_ != nullptr && channel_->Cancel(tag); }

absl::Status ChildProcess::Disconnect() {
  if (channel_ != nullptr && !connected()) {
    return MakeError(Reason::kChannelClosed, "The channel is disconnected already.");
  }
  if (channel_ == nullptr) {
    return NoChannel();
  }
  channel_->Close();
  return absl::OkStatus();
}

absl::Status ChildProcess::Disconnect(Channel::Mode mode) {
  if (channel_ == nullptr) {
    return NoChannel();
  }
  if (channel_->state() == Channel::State::kClosed) {
    return MakeError(Reason::kChannelClosed, "The channel is disconnected already.");
  }
  channel_->Disconnect(mode);
  return absl::OkStatus();
}

absl::Status ChildProcess::Kill(int signal) {
  if (exited()) {
    return MakeError(Reason::kChildExited, fmt::format("Process {} has ended.", pid_));
  }
  if (!pidfd_.valid()) {
    return MakeError(
        Reason::kNoProcess,
        "The channel was adopted without its process, so nothing can be signalled. Disconnect it "
        "instead.");
  }
  switch (const int error = spawn::SendSignal(pidfd_.get(), signal); error) {
    case 0:
      return absl::OkStatus();
    case ESRCH:
      return MakeError(Reason::kChildExited, fmt::format("Process {} has ended.", pid_));
    case EPERM:
      return MakeError(
          Reason::kSignalNotPermitted,
          fmt::format("Process {} may not be signalled: it runs as another user now. Disconnect it "
                      "instead.",
                      pid_));
    default:
      return Invalid(
          fmt::format("Signal {} cannot be sent to process {}: {}. Give a number from 0 to {}.",
                      signal, pid_, std::strerror(error), SIGRTMAX));
  }
}

absl::Status ChildProcess::KillGroup() {
  // Before the child itself: dead, it might be reaped by somebody else.
  if (leads_group_ && Kill(0).ok()) kill(-pid_, SIGKILL);
  return Kill(SIGKILL);
}

void ChildProcess::PauseReading() {
  if (paused_) return;
  paused_ = true;
  if (channel_ != nullptr) channel_->PauseReading();
  for (const std::unique_ptr<Output>& output : outputs_) {
    if (output->watch.has_value()) output->watch->Want(Watch::kNone);
  }
  drain_.Cancel();
}

void ChildProcess::ResumeReading() {
  if (!paused_) return;
  paused_ = false;
  if (channel_ != nullptr) channel_->ResumeReading();
  if (exited() && !exit_told_) StartDrain();
  turn_.Schedule();
}

void ChildProcess::ReferenceChannel(bool referenced) {
  if (channel_ != nullptr) channel_->Reference(referenced);
}

bool ChildProcess::connected() const {
  return channel_ != nullptr && channel_->state() == Channel::State::kOpen;
}

size_t ChildProcess::queued_bytes() const {
  return channel_ == nullptr ? 0 : channel_->queued_bytes();
}

size_t ChildProcess::queued_messages() const {
  return channel_ == nullptr ? 0 : channel_->queued_messages();
}

void ChildProcess::OnTurnEnd() {
  if (!spawn_told_) {
    spawn_told_ = true;
    if (!tell_([this] { listener_.OnSpawn(); })) return;
    if (channel_ != nullptr && !paused_) channel_->ResumeReading();
  }
  for (const std::unique_ptr<Output>& output : outputs_) {
    if (!TellOutput(*output)) return;
  }
  TellEnds();
}

void ChildProcess::OnProcessReady() {
  if (forked_) {
    const spawn::Ended ended = spawn::Reap(pidfd_.get());
    if (ended.how != spawn::Ended::How::kNotYet) OnEnded(StatusOf(ended));
  } else if (std::optional<ExitStatus> status = Look(pidfd_.get()); status.has_value()) {
    OnEnded(*std::move(status));
  }
}

void ChildProcess::OnEnded(ExitStatus status) {
  LogVerbose(fmt::format("child {} ended", pid_));
  exit_ = std::move(status);
  process_watch_.reset();
  pidfd_.Close();
  timeout_.Cancel();
  if (!paused_) StartDrain();
  TellEnds();
}

void ChildProcess::OnOutputReady(Output& output) {
  const ssize_t count = output.inbox.Fill(output.pipe.get());
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  output.idle.Use();
  if (count <= 0) {
    output.watch.reset();
    output.pipe.Close();
  }
  if (TellOutput(output)) TellEnds();
}

bool ChildProcess::TellOutput(Output& output) {
  const bool ended = !output.pipe.valid();
  bool told = false;
  while (!paused_) {
    const std::optional<OutputLine> line = output.lines.Next(output.inbox.view(), ended, scratch_);
    if (!line.has_value()) break;
    told = true;
    if (!tell_([&] { listener_.OnOutput(*line); })) return false;
  }
  if (told && !tell_([this] { listener_.OnReadEnd(); })) return false;
  output.inbox.Store(output.lines.position());
  if (paused_) return true;
  if (ended) {
    output.told_all = true;
  } else {
    output.watch->Want(Watch::kReadable);
  }
  return true;
}

Progress ChildProcess::progress() const {
  Progress progress = memory_->progress();
  if (channel_ != nullptr) channel_->AddProgress(progress);
  for (const std::unique_ptr<Output>& output : outputs_) {
    progress.output[output->number - 1] = output->lines.position();
  }
  if (channel_ != nullptr && disconnect_told_) progress.ends |= kDisconnected;
  if (exit_told_) progress.ends |= kExited;
  if (close_told_) progress.ends |= kClosed;
  return progress;
}

void ChildProcess::ForEachQueued(
    absl::FunctionRef<void(uint64_t tag, std::string_view note)> queued) const {
  if (channel_ != nullptr) channel_->ForEachQueued(queued);
}

void ChildProcess::OnClosed(absl::Status reason) {
  LogVerbose(fmt::format("child {} disconnected: {}", pid_, reason.ToString()));
  disconnect_told_ = true;
  if (!tell_([&] { listener_.OnDisconnect(std::move(reason)); })) return;
  Store();
  TellEnds();
}

void ChildProcess::Store() { memory_->progress().ends = progress().ends; }

bool ChildProcess::Drained() const {
  return disconnect_told_ &&
         std::all_of(outputs_.begin(), outputs_.end(),
                     [](const std::unique_ptr<Output>& output) { return output->told_all; });
}

void ChildProcess::StartDrain() {
  drain_.Start(exit_drain_ms_max_, [this] {
    drain_over_ = true;
    TellEnds();
  });
}

// Tells OnExit and OnClose when they are due.
void ChildProcess::TellEnds() {
  if (!spawn_told_) return;
  const bool drained = Drained();
  if (exited() && !exit_told_ && (drained || drain_over_)) {
    exit_told_ = true;
    drain_.Cancel();
    exit_->drained = drained;
    if (!tell_([this] { listener_.OnExit(*exit_); })) return;
    Store();
  }
  const bool process_over = exit_told_ || pid_ == 0;
  if (process_over && Drained() && !close_told_) {
    close_told_ = true;
    (void)tell_([this] { listener_.OnClose(); });
  }
}

}  // namespace deka::ipc
