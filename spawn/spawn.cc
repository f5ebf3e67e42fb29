#include "spawn/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// The child runs in the caller's memory, on a stack that the sanitizers do not know, and never
// returns from its functions: what it runs is not instrumented. It calls the kernel by syscall()
// alone, since libc's wrappers (and the sanitizers' around them) keep books on the process, and
// setuid's would make the caller's other threads change too.
#if defined(__clang__)
#define IN_CHILD __attribute__((disable_sanitizer_instrumentation, noinline))
#else
#define IN_CHILD \
  __attribute__((no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined"), noinline))
#endif

// ThreadSanitizer takes a call of clone() for fork() and then believes that this process is the
// child. glibc has the same function under a name that is not intercepted.
#if defined(__GLIBC__)
extern "C" int __clone(int (*function)(void*), void* stack, int flags, void* argument, ...);
#define CLONE __clone
#else
#define CLONE clone
#endif

// 32-bit systems have calls with 16-bit ids under the plain names.
#if defined(SYS_setuid32)
#define SYS_SETUID SYS_setuid32
#define SYS_SETGID SYS_setgid32
#define SYS_SETGROUPS SYS_setgroups32
#else
#define SYS_SETUID SYS_setuid
#define SYS_SETGID SYS_setgid
#define SYS_SETGROUPS SYS_setgroups
#endif

namespace deka::spawn {
namespace {

// As <linux/pidfd.h> of 6.15 has it; Debian's does not know it.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroup;
  uint32_t pid, tgid, ppid;
  uint32_t ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
  int32_t exit_code;  // a wait status
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr uint64_t kPidfdInfoExit = 1 << 3;
constexpr unsigned long kPidfdGetInfo = _IOWR(0xFF, 11, PidfdInfo);

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kGuardBytes = 64 << 10;  // a multiple of every page size
constexpr size_t kSignalSetBytes = (_NSIG - 1) / 8;

// What caller and child share.
struct Shared {
  const Options* options;
  uid_t caller_user;
  gid_t caller_group;
  volatile Step failed_step;
  volatile int error;
};

[[noreturn]] IN_CHILD void Fail(Shared* shared, Step step, int error) {
  shared->failed_step = step;
  shared->error = error;
  for (;;) syscall(SYS_exit_group, 127);
}

IN_CHILD void ResetSignals() {
  // Zeros are SIG_DFL with no flags in every layout of the kernel's struct. SIGKILL and SIGSTOP
  // fail, as they may.
  alignas(8) const char by_default[128] = {};
  for (int number = 1; number < _NSIG; ++number) {
    syscall(SYS_rt_sigaction, number, by_default, nullptr, kSignalSetBytes);
  }
}

IN_CHILD void MapDescriptors(Shared* shared) {
  const DescriptorMapping* mappings = shared->options->descriptors;
  const size_t count = shared->options->descriptors_count;

  if (syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) != 0) {
    Fail(shared, Step::kDescriptors, errno);
  }
  for (int standard = 0; standard <= 2; ++standard) {
    syscall(SYS_fcntl, standard, F_SETFD, 0);  // one that is closed stays so
  }

  // A source that a mapping is about to overwrite is moved behind all targets first.
  int sources[kDescriptorsMax];
  int target_max = 2;
  for (size_t i = 0; i < count; ++i) {
    if (mappings[i].to > target_max) target_max = mappings[i].to;
  }
  for (size_t i = 0; i < count; ++i) {
    sources[i] = mappings[i].from;
    if (mappings[i].from == mappings[i].to) continue;
    for (size_t j = 0; j < count; ++j) {
      if (mappings[j].to != mappings[i].from) continue;
      sources[i] =
          static_cast<int>(syscall(SYS_fcntl, mappings[i].from, F_DUPFD_CLOEXEC, target_max + 1));
      // EINVAL: the first number to try is beyond the limit of descriptors.
      if (sources[i] < 0) Fail(shared, Step::kDescriptors, errno == EINVAL ? EMFILE : errno);
      break;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    const long result = sources[i] == mappings[i].to
                            ? syscall(SYS_fcntl, sources[i], F_SETFD, 0)
                            : syscall(SYS_dup3, sources[i], mappings[i].to, 0);
    if (result < 0) Fail(shared, Step::kDescriptors, errno);
  }
}

IN_CHILD void ChangeIdentity(Shared* shared) {
  const uid_t* user = shared->options->user;
  const gid_t* group = shared->options->group;
  if (user == nullptr && group == nullptr) return;

  if (syscall(SYS_SETGROUPS, 0, nullptr) != 0) {
    const bool unchanged = (user == nullptr || *user == shared->caller_user) &&
                           (group == nullptr || *group == shared->caller_group);
    if (errno != EPERM || !unchanged) Fail(shared, Step::kSetgroups, errno);
  }
  if (group != nullptr && syscall(SYS_SETGID, *group) != 0) Fail(shared, Step::kSetgid, errno);
  if (user != nullptr && syscall(SYS_SETUID, *user) != 0) Fail(shared, Step::kSetuid, errno);
}

// Returns errno: it only returns if no exec succeeded.
IN_CHILD int Execute(const Options* options) {
  const char* program = options->program;
  const size_t program_length = __builtin_strlen(program);
  if (program_length == 0) return ENOENT;

  bool is_path = false;
  for (size_t i = 0; i < program_length; ++i) is_path |= program[i] == '/';
  if (is_path) {
    syscall(SYS_execve, program, options->arguments, options->environment);
    return errno;
  }
  if (program_length > NAME_MAX) return ENAMETOOLONG;

  const char* path = "/bin:/usr/bin";
  for (const char* const* variable = options->environment; *variable != nullptr; ++variable) {
    const char* v = *variable;
    if (v[0] == 'P' && v[1] == 'A' && v[2] == 'T' && v[3] == 'H' && v[4] == '=') {
      path = v + 5;
      break;
    }
  }

  bool denied = false;
  for (;;) {
    const char* end = path;
    while (*end != '\0' && *end != ':') ++end;
    const size_t length = static_cast<size_t>(end - path);

    char candidate[PATH_MAX];
    if (length + 1 + program_length + 1 <= sizeof(candidate)) {
      char* out = candidate;
      for (size_t i = 0; i < length; ++i) *out++ = path[i];
      if (length > 0) *out++ = '/';  // an empty entry is the current directory
      for (size_t i = 0; i <= program_length; ++i) *out++ = program[i];

      syscall(SYS_execve, candidate, options->arguments, options->environment);
      switch (errno) {
        case EACCES:
          denied = true;
          break;
        case ENOENT:
        case ENOTDIR:
        case ELOOP:
        case ENAMETOOLONG:
        case ESTALE:
        case ENODEV:
        case ETIMEDOUT:
          break;
        default:
          return errno;
      }
    }
    if (*end == '\0') return denied ? EACCES : ENOENT;
    path = end + 1;
  }
}

IN_CHILD int RunChild(void* argument) {
  Shared* shared = static_cast<Shared*>(argument);
  const Options* options = shared->options;

  // No handler of the caller may run here: all signals are blocked until none is left.
  ResetSignals();

  if (options->session == Session::kOwnSession && syscall(SYS_setsid) < 0) {
    Fail(shared, Step::kSession, errno);
  }
  if (options->session == Session::kOwnGroup && syscall(SYS_setpgid, 0, 0) != 0) {
    Fail(shared, Step::kSession, errno);
  }
  MapDescriptors(shared);
  if (options->descriptors_limit != nullptr) {
    const rlimit64 limit = {options->descriptors_limit->rlim_cur,
                            options->descriptors_limit->rlim_max};
    if (syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &limit, nullptr) != 0) {
      Fail(shared, Step::kLimit, errno);
    }
  }
  if (options->directory != nullptr && syscall(SYS_chdir, options->directory) != 0) {
    Fail(shared, Step::kDirectory, errno);
  }
  ChangeIdentity(shared);

  alignas(8) const char nothing[kSignalSetBytes] = {};
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, nothing, nullptr, kSignalSetBytes);
  Fail(shared, Step::kExec, Execute(options));
}

Started Failed(Step step, int error) {
  Started failed;
  failed.failed_step = step;
  failed.error = error;
  return failed;
}

// A caller without some of its standard descriptors may leave their numbers to children: a pidfd
// there would be one of theirs. It stays if there is no other number.
int AboveStandard(int descriptor) {
  if (descriptor > STDERR_FILENO) return descriptor;
  const int above = fcntl(descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (above < 0) return descriptor;
  close(descriptor);
  return above;
}

}  // namespace

const char* StepName(Step step) {
  switch (step) {
    case Step::kNone:
      return "none";
    case Step::kStart:
      return "start";
    case Step::kSession:
      return "session";
    case Step::kDescriptors:
      return "descriptors";
    case Step::kLimit:
      return "descriptor limit";
    case Step::kDirectory:
      return "directory";
    case Step::kSetgroups:
      return "setgroups";
    case Step::kSetgid:
      return "setgid";
    case Step::kSetuid:
      return "setuid";
    case Step::kExec:
      return "exec";
  }
  return "unknown";
}

Started Spawn(const Options& options) {
  if (options.descriptors_count > kDescriptorsMax) return Failed(Step::kDescriptors, E2BIG);
  for (size_t i = 0; i < options.descriptors_count; ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (options.descriptors[i].to == options.descriptors[j].to) {
        return Failed(Step::kDescriptors, EINVAL);
      }
    }
  }

  char* memory = static_cast<char*>(mmap(nullptr, kGuardBytes + kStackBytes, PROT_NONE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0));
  if (memory == MAP_FAILED) return Failed(Step::kStart, errno);
  if (mprotect(memory + kGuardBytes, kStackBytes, PROT_READ | PROT_WRITE) != 0) {
    const int error = errno;
    munmap(memory, kGuardBytes + kStackBytes);
    return Failed(Step::kStart, error);
  }

  // libc's own signals too, which its functions would leave unblocked.
  alignas(8) unsigned char all[kSignalSetBytes];
  alignas(8) unsigned char before[kSignalSetBytes];
  memset(all, 0xff, sizeof(all));
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, all, before, kSignalSetBytes);

  Shared shared{.options = &options,
                .caller_user = geteuid(),
                .caller_group = getegid(),
                .failed_step = Step::kNone,
                .error = 0};
  Started started;
  started.pid = CLONE(RunChild, memory + kGuardBytes + kStackBytes,
                      CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &shared, &started.pidfd);
  const int clone_error = errno;

  syscall(SYS_rt_sigprocmask, SIG_SETMASK, before, nullptr, kSignalSetBytes);
  munmap(memory, kGuardBytes + kStackBytes);

  if (started.pid < 0) return Failed(Step::kStart, clone_error);
  started.pidfd = AboveStandard(started.pidfd);
  if (shared.failed_step == Step::kNone) return started;

  siginfo_t unused;
  while (waitid(P_PIDFD, static_cast<id_t>(started.pidfd), &unused, WEXITED) != 0 &&
         errno == EINTR) {
  }
  close(started.pidfd);
  return Failed(shared.failed_step, shared.error);
}

int SendSignal(int pidfd, int signal_number) {
  return syscall(SYS_pidfd_send_signal, pidfd, signal_number, nullptr, 0) == 0 ? 0 : errno;
}

Ended Reap(int pidfd) {
  siginfo_t reaped;
  reaped.si_pid = 0;
  if (waitid(P_PIDFD, static_cast<id_t>(pidfd), &reaped, WEXITED | WNOHANG) == 0) {
    if (reaped.si_pid == 0) return {};
    return {.how = reaped.si_code == CLD_EXITED ? Ended::How::kExited : Ended::How::kSignal,
            .value = reaped.si_status};
  }

  // Not ours to reap. The pidfd is readable once the process has ended, whoever reaps it.
  pollfd ready{.fd = pidfd, .events = POLLIN, .revents = 0};
  int count;
  do {
    count = poll(&ready, 1, 0);
  } while (count < 0 && errno == EINTR);
  if (count == 0) return {.stolen = true};

  PidfdInfo info = {};
  info.mask = kPidfdInfoExit;
  if (ioctl(pidfd, kPidfdGetInfo, &info) == 0) {
    if ((info.mask & kPidfdInfoExit) != 0) {
      if (WIFEXITED(info.exit_code)) {
        return {.how = Ended::How::kExited, .value = WEXITSTATUS(info.exit_code), .stolen = true};
      }
      return {.how = Ended::How::kSignal, .value = WTERMSIG(info.exit_code), .stolen = true};
    }
    // Our own child, which another thread is reaping at this moment.
    if (info.ppid == static_cast<uint32_t>(getpid())) return {.stolen = true};
  }
  return {.how = Ended::How::kNotKnown, .stolen = true};
}

}  // namespace deka::spawn
