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
// While reading is paused the drain limit does not count: what the child wrote before it went is
// still told before OnExit, however long the pause.
//
// Processes are started by spawn/ and reaped by pidfd: SIGCHLD and waitpid(-1) of the host program
// stay its own. All descriptors of this side are close-on-exec from their first moment.
//
// A child may be in the custody of a keeper (ipc/keeper.h): then its memory is mapped from a file,
// the keeper starts it and tells how it ended, and Recover goes on with it in another process.
//
// Thread: every method, the destructor included, runs on the loop's thread. The listener is never
// called from inside a call, and may destroy the ChildProcess from any of its calls. The destructor
// releases: it closes this process' descriptors and leaves the child running, which sees its
// channel end; the loop still reaps it when it ends.
#ifndef IPC_CHILD_PROCESS_H_
#define IPC_CHILD_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/call_out.h"
#include "ipc/channel.h"
#include "ipc/descriptor.h"
#include "ipc/dialect.h"
#include "ipc/event_loop.h"
#include "ipc/idle_task.h"
#include "ipc/keeper.h"
#include "ipc/output_lines.h"
#include "ipc/stream_memory.h"

namespace deka::ipc {

// How one of the child's descriptors 0 to 2 is set up.
enum class Stdio {
  kInherit,
  kNull,
  kPipe,  // output comes to OnOutput, line by line; not for stdin
};

struct ForkOptions {
  std::string program = {};            // execPath: a path, or a name found in the child's PATH
  std::vector<std::string> args = {};  // execArgv, module path and args in one: argv[1...]
  std::string cwd = {};                // empty: the parent's
  std::optional<std::vector<std::string>> env =
      {};                 // "K=V" each, replacing the parent's; unset: the parent's
  bool detached = false;  // own session
  bool own_process_group = false;
  std::optional<uid_t> uid = {};
  std::optional<gid_t> gid = {};
  std::chrono::milliseconds timeout{0};  // 0: none; then kill_signal is sent
  int kill_signal = SIGTERM;
  Stdio stdin_mode = Stdio::kInherit, stdout_mode = Stdio::kInherit, stderr_mode = Stdio::kInherit;
  bool ipc = true;                          // false: no channel
  std::optional<Dialect> dialect = {};      // unset: chosen from the program, see ChooseDialect
  Channel::Options channel = {};            // its dialect is overwritten by the one above
  size_t output_line_bytes_max = 64 << 10;  // longer lines come in pieces
  std::chrono::milliseconds exit_drain_ms_max{1000};
  std::optional<unsigned long> descriptors_soft_max =
      {};  // RLIMIT_NOFILE given to the child; unset: the parent's
};

// The dialect that Fork gives a child, and why.
DialectChoice ForkDialect(const ForkOptions& options);

// The environment of this process, "K=V" each.
std::vector<std::string> OwnEnvironment();

struct ExitStatus {
  // One of the two; neither if it could not be told, see unknown_reason.
  std::optional<int> code = std::nullopt;    // it exited
  std::optional<int> signal = std::nullopt;  // a signal ended it
  std::string unknown_reason = {};
  bool drained = true;  // false: another process still holds the channel or the output
};

// What a wait status (see waitpid) says.
ExitStatus ExitStatusOf(int wait_status);

class ChildProcess : private Channel::Listener {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnSpawn() {}  // on a later turn than Fork; not told by Adopt
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

  // What a child has of whoever outlives this process. Without it its memory is heap, this process
  // starts and reaps it, and its channel ends with this process.
  struct Custody {
    std::optional<StreamMemory> memory = {};  // for memory_limits(), its file held by the keeper
    Keeper* keeper = nullptr;                 // outlives the child
    uint64_t number = 0;                      // the keeper's name for the child
  };
  static StreamMemory::Limits MemoryLimits(const ForkOptions& options);

  // Starts the program. A spawn that fails is a typed error at once: kProgramNotFound
  // (its interpreter or cwd too), kProgramNotExecutable, kDescriptorsExhausted, kKeeperGone,
  // kSpawnFailed (which step and why), kInvalidArgument for options that cannot be. `listener`
  // outlives the child's object.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Fork(EventLoop& loop, ForkOptions options,
                                                            Listener& listener, Custody custody);
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Fork(EventLoop& loop, ForkOptions options,
                                                            Listener& listener) {
    return Fork(loop, std::move(options), listener, Custody());
  }

  // Goes on with a child that another process has forked, from what its memory holds. `options` are
  // those of the fork, with the dialect that was chosen. What was told and not stored is told
  // again.
  struct Found {
    Descriptor channel = {};    // not valid: there is none any more
    Descriptor output[2] = {};  // the same
    pid_t pid = 0;
    Descriptor pidfd = {};
    std::string dialect_reason = {};
  };
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Recover(EventLoop& loop, ForkOptions options,
                                                               Found found, Listener& listener,
                                                               Custody custody);

  // Takes over the parent's end of a channel to a process that runs already; `socket` is closed if
  // it fails. `pid` may be 0, unknown: then OnClose follows OnDisconnect, without an OnExit. A
  // process that is not our child is seen to end, its code unknown. One that is our child is not
  // reaped: that stays with who started it. kChildExited if there is no such process.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Adopt(EventLoop& loop, int socket, pid_t pid,
                                                             Channel::Options options,
                                                             Listener& listener, Custody custody);
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Adopt(EventLoop& loop, int socket, pid_t pid,
                                                             Channel::Options options,
                                                             Listener& listener) {
    return Adopt(loop, socket, pid, std::move(options), listener, Custody());
  }

  ~ChildProcess();

  // As Node's send(message, options?, callback?): the callback's part is OnSent for `tag`. Without
  // a channel: kNoChannel.
  absl::StatusOr<Channel::Accepted> Send(std::string_view json, uint64_t tag = 0,
                                         std::string_view note = {});
  // As Node's send(message, handle, ...): refused with kHandleUnsupported, nothing is sent. The
  // handle stays the caller's.
  absl::StatusOr<Channel::Accepted> SendWithHandle(std::string_view json, int handle,
                                                   uint64_t tag = 0);
  bool Cancel(uint64_t tag);

  // Node's disconnect(): at once. kChannelClosed if it is closed already (Node's
  // ERR_IPC_DISCONNECTED).
  absl::Status Disconnect();
  // In order, with time limits: see Channel::Disconnect.
  absl::Status Disconnect(Channel::Mode mode);

  // By pidfd: never hits another process. Signal 0 is not sent, only whether one could be is told.
  // kChildExited if it has ended, kInvalidArgument if there is no such signal, kNoProcess if the
  // channel was adopted without its process, kSignalNotPermitted if that runs as another user now.
  absl::Status Kill(int signal = SIGTERM);
  // SIGKILL to the child and to all processes of its group, if Fork gave it one of its own: to what
  // it has started, but for what has left the group. Such a group has the child's number, which
  // nobody else can get before the child is reaped; so nothing is sent to the group of a child that
  // has ended. (Where a host reaps our children itself, that would have to happen between a look
  // and the signal, and all other numbers be used up too, before the signal could hit another
  // group.) Fails as Kill does.
  absl::Status KillGroup();

  void PauseReading();  // channel and captured output
  void ResumeReading();
  void ReferenceChannel(bool referenced);  // Node's channel.ref() and unref()

  bool connected() const;
  pid_t pid() const { return pid_; }  // stays known after the exit; 0: unknown
  bool exited() const { return exit_.has_value(); }
  Dialect dialect() const { return dialect_; }
  const std::string& dialect_reason() const { return dialect_reason_; }
  size_t queued_bytes() const;
  size_t queued_messages() const;

  // How far the listener was told, the call that is under way included: what is stored when it
  // returns. `ends` is an OR of End.
  enum End : uint64_t { kDisconnected = 1, kExited = 2, kClosed = 4 };
  Progress progress() const;

  // Each message in the queue, the oldest first, with what Send was given.
  void ForEachQueued(absl::FunctionRef<void(uint64_t tag, std::string_view note)> queued) const;

 private:
  // A captured stream.
  struct Output {
    Output(EventLoop& loop, StreamMemory& memory, int number_of, size_t line_bytes_max,
           Descriptor end)
        : number(number_of),
          inbox(memory, number - 1),
          lines(number, line_bytes_max, inbox.begin()),
          pipe(std::move(end)),
          idle(loop, [this, &memory] {
            if (inbox.empty()) memory.GiveBackOutputPages(number - 1);
          }) {}
    const int number;  // 1 or 2
    OutputInbox inbox;
    OutputLines lines;
    Descriptor pipe;  // closed at its end
    std::optional<Watch> watch;
    IdleTask idle;  // gives pages back
    bool told_all = false;
  };

  ChildProcess(EventLoop& loop, Listener& listener);

  absl::Status TakeMemory(const StreamMemory::Limits& limits, Custody custody);
  absl::Status OpenChannel(Descriptor socket, Channel::Options options);
  absl::Status CaptureOutput(int number, size_t line_bytes_max, Descriptor pipe);
  absl::Status WatchProcess(pid_t pid, Descriptor pidfd);
  absl::Status WatchPidfd();
  void OnEnded(ExitStatus status);

  void OnTurnEnd();
  void OnProcessReady();
  void OnOutputReady(Output& output);
  [[nodiscard]] bool TellOutput(Output& output);
  bool Drained() const;
  void StartDrain();
  void TellEnds();
  void Store();  // which ends were told

  // Channel::Listener.
  void OnMessage(Message message) override { listener_.OnMessage(message); }
  void OnReadEnd() override { listener_.OnReadEnd(); }
  void OnBadFrame(BadFrame frame) override { listener_.OnError(std::move(frame)); }
  void OnSent(Sent sent) override { listener_.OnSent(std::move(sent)); }
  void OnWriteEnd() override { listener_.OnWriteEnd(); }
  void OnDrain() override { listener_.OnDrain(); }
  void OnClosed(absl::Status reason) override;

  EventLoop& loop_;
  Listener& listener_;
  CallOut tell_;  // calls the listener
  TurnTask turn_;
  std::string scratch_;  // a line that wraps in its ring

  Dialect dialect_ = Dialect::kDeka;
  std::string dialect_reason_;
  std::optional<StreamMemory> memory_;
  std::unique_ptr<Channel> channel_;
  std::vector<std::unique_ptr<Output>> outputs_;

  Keeper* keeper_ = nullptr;
  uint64_t number_ = 0;  // the keeper's
  pid_t pid_ = 0;
  bool forked_ = false;       // it is ours to reap
  bool leads_group_ = false;  // since it was forked
  Descriptor pidfd_;          // until it has ended
  std::optional<Watch> process_watch_;
  Timer timeout_;
  Timer drain_;
  int kill_signal_ = SIGTERM;
  std::chrono::milliseconds exit_drain_ms_max_{1000};

  bool paused_ = false;
  bool spawn_told_ = true;
  bool disconnect_told_ = true;
  std::optional<ExitStatus> exit_;
  bool drain_over_ = false;
  bool exit_told_ = false;
  bool close_told_ = false;
};

}  // namespace deka::ipc

#endif  // IPC_CHILD_PROCESS_H_
