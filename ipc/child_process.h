// The parent's end: a process with a channel, as Node's ChildProcess.
//
//   Fork --> spawn -> message*, output*, error* -> disconnect -> exit -> close
//
// Events come in Node's order: OnSpawn first; every message that the child wrote before
// OnDisconnect; OnExit when channel and captured output are read to their end, or exit_drain_ms_max
// after the process went (a grandchild may hold them: then `drained` is false and messages, output
// and OnDisconnect may follow); OnClose last, when process, channel and captured output have all
// ended.
//
// Processes are started by spawn/ and reaped by pidfd: SIGCHLD and waitpid(-1) of the host program
// stay its own.
//
// Thread: every method, the destructor included, runs on the loop's thread. The listener is never
// called from inside a call, and may destroy the ChildProcess from any of its calls. The destructor
// releases: it closes this process' descriptors and leaves the child running, which sees its
// channel end.
#ifndef IPC_CHILD_PROCESS_H_
#define IPC_CHILD_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/channel.h"
#include "ipc/dialect.h"
#include "ipc/event_loop.h"

namespace deka::ipc {

// How one of the child's descriptors 0 to 2 is set up.
enum class Stdio {
  kInherit,
  kNull,
  kPipe
};  // kPipe: output comes to OnOutput, line by line; for stdin: not allowed

struct ForkOptions {
  std::string program;            // execPath: a path, or a name found in the child's PATH
  std::vector<std::string> args;  // execArgv, module path and args in one: argv[1...]
  std::string cwd;                // empty: the parent's
  std::optional<std::vector<std::string>>
      env;                // "K=V" each, replacing the parent's; unset: the parent's
  bool detached = false;  // own session
  bool own_process_group = false;
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  std::chrono::milliseconds timeout{0};  // 0: none; then kill_signal is sent
  int kill_signal = SIGTERM;
  Stdio stdin_mode = Stdio::kInherit, stdout_mode = Stdio::kInherit, stderr_mode = Stdio::kInherit;
  bool ipc = true;                          // false: no channel
  std::optional<Dialect> dialect;           // unset: chosen from the program, see ChooseDialect
  Channel::Options channel;                 // its dialect is overwritten by the one above
  size_t output_line_bytes_max = 64 << 10;  // longer lines come in pieces
  std::chrono::milliseconds exit_drain_ms_max{1000};
  std::optional<unsigned long>
      descriptors_soft_max;  // RLIMIT_NOFILE given to the child; unset: the parent's
};

struct OutputLine {
  int descriptor = 1;         // 1 or 2
  std::string_view text;      // without its line break; any bytes
  bool partial = false;       // a piece of a longer line, more follows
  bool unterminated = false;  // the stream ended without a line break
};

struct ExitStatus {
  std::optional<int> code;  // exited
  std::optional<int>
      signal;  // or ended by a signal; both unset: it could not be told, see unknown_reason
  std::string unknown_reason;
  bool drained = true;  // false: another process still holds the channel or the output
};

class ChildProcess {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnSpawn() {}
    virtual void OnMessage(Message) {}
    virtual void OnReadEnd() {}  // end of what one read of channel or output brought
    virtual void OnOutput(OutputLine) {}
    virtual void OnError(BadFrame) {}  // a frame that was no message
    virtual void OnSent(Sent) {}       // see Channel::Listener
    virtual void OnWriteEnd() {}
    virtual void OnDrain() {}
    virtual void OnDisconnect(absl::Status) {}
    virtual void OnExit(ExitStatus) {}
    virtual void OnClose() {}
  };

  // Starts the program. A spawn that fails is a typed error at once: kProgramNotFound,
  // kProgramNotExecutable, kDescriptorsExhausted, kSpawnFailed (which step and why).
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Fork(EventLoop& loop, ForkOptions options,
                                                            Listener& listener);

  // Takes over the parent's end of a channel to a process that runs already. `pid` may be 0
  // (unknown: only the channel's end is seen) or a process that is not our child: it is seen to
  // end, its code unknown.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Adopt(EventLoop& loop, int socket, pid_t pid,
                                                             Channel::Options options,
                                                             Listener& listener);

  ~ChildProcess();

  // As Node's send(message, handle?, options?, callback?): the callback's part is OnSent for `tag`.
  // A handle is refused with kHandleUnsupported. Without a channel: kNoChannel.
  absl::StatusOr<Channel::Accepted> Send(std::string_view json, uint64_t tag = 0);
  absl::StatusOr<Channel::Accepted> Send(std::string_view json, int handle, uint64_t tag = 0);
  bool Cancel(uint64_t tag);

  // Node's disconnect(): at once. kChannelClosed if it is closed already (Node's
  // ERR_IPC_DISCONNECTED).
  absl::Status Disconnect();
  // In order, with time limits: see Channel::Disconnect.
  absl::Status Disconnect(Channel::Mode mode);

  // By pidfd: never hits another process. kChildExited if it has ended.
  absl::Status Kill(int signal = SIGTERM);

  void PauseReading();  // channel and captured output
  void ResumeReading();
  void ReferenceChannel(bool referenced);  // Node's channel.ref() and unref()

  bool connected() const;
  pid_t pid() const;
  bool exited() const;
  Dialect dialect() const;
  const std::string& dialect_reason() const;
  size_t queued_bytes() const;
  size_t queued_messages() const;

 private:
  class Impl;
  explicit ChildProcess(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace deka::ipc

#endif  // IPC_CHILD_PROCESS_H_
