// Starts a program, signals it and learns how it ended, by pidfd.
//
//   Spawn --> clone (shares memory, the caller waits) --> child: signals, session, descriptors,
//         limit, directory, identity, exec --+--> Started: pid and pidfd
//                                            +--> a step failed: the step and errno, at once
//
// What the program gets:
//   signals      every disposition SIG_DFL, nothing blocked
//   descriptors  the mapped ones and those of 0 to 2 that are not mapped; every other one is closed
//                by exec, however the caller opened it
//   the rest     as Options says, else inherited
//
// Thread: any, several at once. Nothing here is global, and only the calling thread waits (until
// exec). SIGCHLD stays the caller's own: nobody but Reap() waits for the child, and a child that
// something else has reaped is no error.
//
// Uses nothing but libc, so that a static program without a C++ runtime can link it. Linux 5.11.
#ifndef SPAWN_SPAWN_H_
#define SPAWN_SPAWN_H_

#include <sys/resource.h>
#include <sys/types.h>

#include <cstddef>

namespace deka::spawn {

// The child's descriptor `to` is the caller's `from`.
struct DescriptorMapping {
  int from;
  int to;
};

enum class Session {
  kInherit,    // the caller's process group
  kOwnGroup,   // setpgid(0, 0)
  kOwnSession  // setsid(): detached
};

// Pointers are only read, until Spawn() returns. `program`, `arguments` and `environment` are
// required.
struct Options {
  // A path, or a name without a slash: found in the PATH of `environment` as execvp does (a file
  // that may not be executed does not end the search). A file that is neither a binary nor begins
  // with #! is refused (ENOEXEC), no shell is tried. A relative path starts at `directory`.
  const char* program = nullptr;
  const char* const* arguments = nullptr;    // argv, with argv[0], ended by a null pointer
  const char* const* environment = nullptr;  // "NAME=value" each, ended by a null pointer

  // In any order; sources and targets may overlap (a swap too). A target stands once, else EINVAL.
  const DescriptorMapping* descriptors = nullptr;
  size_t descriptors_count = 0;  // at most kDescriptorsMax, else E2BIG

  Session session = Session::kInherit;
  const rlimit* descriptors_limit = nullptr;  // RLIMIT_NOFILE of the program; null: inherited
  const char* directory = nullptr;            // null: inherited

  // Null: inherited. If one is given, supplementary groups are dropped too; that this is not
  // permitted is overlooked only if both are already the caller's.
  const uid_t* user = nullptr;
  const gid_t* group = nullptr;
};

inline constexpr size_t kDescriptorsMax = 256;

enum class Step {
  kNone,  // the program runs
  kStart,
  kSession,
  kDescriptors,
  kLimit,
  kDirectory,
  kSetgroups,
  kSetgid,
  kSetuid,
  kExec
};

// "exec", "setgid", ...: to be read by people.
const char* StepName(Step step);

struct Started {
  Step failed_step = Step::kNone;
  int error = 0;   // errno of that step
  pid_t pid = -1;  // -1 if a step failed: nothing of the child is left then
  int pidfd = -1;  // close-on-exec, above 2 while there are numbers; the caller's to close
};

// `kStart` with EMFILE or ENFILE: no descriptor is left for the pidfd. With EAGAIN or ENOMEM: no
// process or memory.
Started Spawn(const Options& options);

// 0, or errno: ESRCH if the process has ended and been reaped, EPERM. Never hits another process.
int SendSignal(int pidfd, int signal_number);

struct Ended {
  enum class How {
    kNotYet,    // runs
    kExited,    // `value` is the exit code
    kSignal,    // `value` is the signal that ended it
    kNotKnown,  // ended; something else reaped it and the kernel does not tell (before 6.15), or it
                // is no child of ours and its parent has not reaped it
  };
  How how = How::kNotYet;
  int value = 0;
  bool stolen = false;  // somebody else reaped it, or it is no child of ours
};

// Reaps the process if it has ended and is our child. Never blocks; call it when the pidfd is
// readable. May be called again.
Ended Reap(int pidfd);

}  // namespace deka::spawn

#endif  // SPAWN_SPAWN_H_
