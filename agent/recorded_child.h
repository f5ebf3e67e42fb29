// A child whose every event is recorded: the implementation of Child.
//
//   ipc::ChildProcess -> stage -> Child::Listener        each event
//                     -> commit                          at the end of what one read or write
//                     brought
//   SendMessage -> [waiting for room] -> ChildProcess's queue -> OnSent -> event -> commit ->
//   answers
//
// States: starting -> started -> (disconnected, exited in either order) -> closed. A closed child
// has no process, channel or send any more; its log and description stay until it is forgotten.
//
// Sends. A message that is accepted is a Message until it is finished: written, undelivered, or
// taken back. A Call is one caller who waits for what becomes of it; a repeated request id adds a
// Call to the Message of the first. Messages with an id are remembered, finished ones up to a count
// and a time. Messages that wait for room stand in one line; nothing overtakes them.
//
// Under a keeper all this is also in the child's memory, in time: what describes the child before
// it starts, a message with its queue entry, what became of it with its event, a disconnect before
// it begins. So Recover() finds it again wherever the agent before was killed.
//
// Thread: the loop's. The destructor releases the process; calls that still wait are answered
// (OUTCOME_UNKNOWN if their message is in the queue).
#ifndef AGENT_RECORDED_CHILD_H_
#define AGENT_RECORDED_CHILD_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "agent/agent.h"
#include "agent/answer.h"
#include "agent/child.h"
#include "agent/child_memory.h"
#include "agent/event_log.h"
#include "agent/spec.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "deka/stored/v1/stored.pb.h"
#include "ipc/call_out.h"
#include "ipc/child_process.h"
#include "ipc/event_loop.h"
#include "ipc/keeper.h"

namespace deka::agent {

namespace stored = ::deka::stored;

class RecordedChild;

// What a description of a child shows of its arguments.
inline constexpr size_t kShownArgsBytesMax = 16 << 10;

// This process: a parent that embeds the agent, or the agent that stops.
v1::Sender OwnSender();

// All send queues together: their bytes, and the children that wait for some of them to go.
class QueueBudget {
 public:
  explicit QueueBudget(size_t bytes_max) : bytes_max_(bytes_max) {}

  size_t bytes() const { return bytes_; }
  size_t bytes_max() const { return bytes_max_; }
  bool Fits(size_t bytes) const { return bytes <= bytes_max_ - std::min(bytes_, bytes_max_); }

  // A child's queue went from `before` to `now` bytes. If room was made, those who wait try again.
  void Change(size_t before, size_t now);
  void Wait(RecordedChild& child);
  void Forget(RecordedChild& child);

 private:
  const size_t bytes_max_;
  size_t bytes_ = 0;
  std::list<RecordedChild*> waiting_;  // in the order they began to
};

class RecordedChild final : public Child, private ipc::ChildProcess::Listener {
 public:
  // What a child has of its agent; all of it outlives the child.
  struct Environment {
    ipc::EventLoop& loop;
    EventLog& log;
    QueueBudget& queues;
    const Limits& limits;
    ipc::Keeper* keeper = nullptr;  // who outlives the agent
    // After `disconnected` or `exited` is recorded, in a call of the child's.
    std::function<void()> on_ending;
    // After the child's last event and its listener's OnClose.
    std::function<void(RecordedChild&)> on_closed;
  };

  struct Description {
    std::string id;
    std::string display_name;
    Labels labels;
    ChildLimits limits;
    std::string program;
    std::vector<std::string> args;
  };

  // `log` is the one of `memory`.
  RecordedChild(const Environment& environment, Description description,
                std::shared_ptr<ChildMemory> memory, std::shared_ptr<Log> log,
                Child::Listener* listener);
  ~RecordedChild() override;

  // By what a fork is known again: see Agent::ForkChild.
  struct ForkId {
    std::string key = {};
    uint64_t fingerprint = 0;
    int64_t sequence = 0;  // the newest event before it
  };

  // One of the two, once; then `started` is recorded. If it fails there is no child.
  absl::Status Fork(ipc::ForkOptions options, std::chrono::milliseconds timeout,
                    const v1::Sender& sender, const ForkId& fork_id);
  absl::Status Adopt(int socket, pid_t pid, ipc::Channel::Options options,
                     const v1::Sender& sender);
  // Or this: goes on with a child of another agent, from its memory.
  absl::Status Recover(Agent::FoundChild found, const stored::v1::StoredChild& stored);

  // --- Child: what a parent in the same process calls. ---

  const std::string& id() const override { return description_.id; }
  std::string name() const override;
  const std::string& display_name() const override { return description_.display_name; }
  pid_t pid() const override { return pid_; }
  bool connected() const override;
  absl::StatusOr<ipc::Channel::Accepted> Send(
      std::string_view json, absl::AnyInvocable<void(absl::Status)> on_written) override;
  absl::Status Disconnect() override;
  absl::Status Kill(int signal) override;

  // --- For others. ---

  // One caller of SendMessage.
  class Call;
  // A message that was taken.
  class Message;

  std::shared_ptr<Call> SendMessage(v1::SendMessageRequest request, const v1::Sender& sender,
                                    Agent::SendOptions options,
                                    Answer<v1::SendMessageResponse> answer);
  // See Cancellation.
  void Cancel(const std::shared_ptr<Call>& call, const absl::Status& reason);

  void Disconnect(ipc::Channel::Mode mode, v1::Disconnected::By by, const v1::Sender& sender,
                  Answer<v1::DisconnectResponse> answer);
  // Records `signalled`, then sends the signal. Its sequence. Fails with nothing recorded if the
  // signal cannot go; should the process end or change its user in this very moment, `signalled`
  // stands all the same.
  absl::StatusOr<int64_t> Signal(int signal, const v1::Sender& sender);
  // The same with SIGKILL, which goes to the child's process group too: see
  // ipc::ChildProcess::KillGroup.
  absl::StatusOr<int64_t> KillGroup(const v1::Sender& sender);

  // Tries again to queue what waits for room.
  void TryWaiting();
  // Refuses what waits for room.
  void RefuseWaiting(const absl::Status& reason);

  v1::Child::State state() const;
  bool running() const {
    return state() == v1::Child::STATE_CONNECTED || state() == v1::Child::STATE_DISCONNECTED;
  }
  bool closed() const { return closed_; }
  bool has_open_channel() const { return has_channel_ && !disconnected_; }
  const Labels& labels() const { return description_.labels; }
  const std::shared_ptr<Log>& log() const { return log_; }
  const ChildMemory& memory() const { return *memory_; }
  v1::Child ToProto() const;

 private:
  void OnSpawn() override;
  void OnMessage(ipc::Message message) override;
  void OnReadEnd() override;
  void OnOutput(ipc::OutputLine line) override;
  void OnError(ipc::BadFrame frame) override;
  void OnSent(ipc::Sent sent) override;
  void OnWriteEnd() override;
  void OnDrain() override;
  void OnDisconnect(absl::Status reason) override;
  void OnExit(ipc::ExitStatus status) override;
  void OnClose() override;

  absl::Status Store(const ipc::ForkOptions& options, std::chrono::milliseconds timeout,
                     const v1::Sender& sender, const ForkId& fork_id);
  void StoreDisconnect(ipc::Channel::Mode mode, v1::Disconnected::By by, const v1::Sender& sender);
  void RecoverMessages();
  void StartTimeout(std::chrono::milliseconds timeout, int kill_signal);
  ipc::ChildProcess::Custody Custody() const;

  absl::StatusOr<int64_t> RecordSignal(int signal, const v1::Sender& sender);
  int64_t Stage(int kind_field, const google::protobuf::MessageLite& kind,
                PayloadField payload_field = PayloadField::kNone, std::string_view payload = {});
  void RecordStarted(const v1::Sender& sender);
  const ipc::Progress* Progress();  // until the next call

  // What is to fit into the log: what is queued, `json_bytes` more, and what the child writes.
  EventLog::Room RoomFor(size_t json_bytes) const;
  // Held back: neither channel nor output are read, while a lossless observer has not read what the
  // log is full of. A parent in the same process that listens is never made to wait so.
  bool LogIsFull(size_t json_bytes = 0) const;
  // True if it is held back, now or already; then it goes on when there is this much room.
  bool HoldIfFull(size_t json_bytes = 0);
  void LookAtHold();

  std::shared_ptr<Message> Remembered(const std::string& key);
  std::string_view NoteOf(const Message& message);  // until the next call
  void Keep(const Message& message, const ipc::Sent& sent);
  absl::Status OutcomeOf(const absl::Status& status, uint64_t written_bytes) const;
  void Repeat(const std::shared_ptr<Message>& message, const std::shared_ptr<Call>& call);
  // Queues the message, or fails with nothing queued.
  absl::StatusOr<ipc::Channel::Accepted> Enqueue(const std::shared_ptr<Message>& message,
                                                 std::string_view json);
  void TellAccepted(const std::shared_ptr<Message>& message);
  void WaitForBudget();
  // Of a message that is in no queue (any more): its id is not remembered.
  void Refuse(const std::shared_ptr<Message>& message, const absl::Status& reason);
  void AnswerFinished();
  void AnswerDisconnect(Answer<v1::DisconnectResponse>& answer);
  void ForgetOldMessages();
  void UpdateQueued();

  absl::Status NoChannelError() const;
  absl::Status ChannelClosedError() const;
  absl::Status ExitedError() const;
  absl::Status SignalError(const absl::Status& status) const;
  absl::Status QueueFullError() const;
  absl::Status QueueBeyondLogError() const;
  absl::Status HeldError() const;

  const Environment environment_;
  const Description description_;
  const std::shared_ptr<ChildMemory> memory_;
  const std::shared_ptr<Log> log_;
  Child::Listener* const listener_;
  ipc::CallOut tell_;  // calls the listener

  std::unique_ptr<ipc::ChildProcess> process_;
  std::unique_ptr<ipc::Timer> timeout_;
  pid_t pid_ = 0;
  v1::Dialect dialect_ = v1::DIALECT_UNSPECIFIED;
  std::string dialect_reason_;
  std::chrono::system_clock::time_point start_time_{};
  bool has_channel_ = false;
  bool disconnected_ = false;  // recorded
  std::optional<v1::ExitStatus> exit_status_;
  bool closed_ = false;

  v1::Disconnected::By disconnected_by_ = v1::Disconnected::BY_UNSPECIFIED;  // who asked first
  v1::Sender disconnected_sender_;
  std::vector<Answer<v1::DisconnectResponse>> disconnect_answers_;

  size_t payload_bytes_max_;  // of a message, or of a line of output
  bool held_ = false;
  size_t held_for_bytes_ = 0;  // of the largest message that was refused
  ipc::Timer hold_limit_;
  // This child, for other threads; null when it is gone. The loop's thread alone looks.
  const std::shared_ptr<RecordedChild*> self_ = std::make_shared<RecordedChild*>(this);

  uint64_t finished_sends_ = 0;  // with an id, since the child started
  ipc::Progress progress_;       // scratch
  uint64_t next_tag_ = 1;
  size_t queued_bytes_ = 0;  // as QueueBudget knows it
  absl::flat_hash_map<uint64_t, std::shared_ptr<Message>> queued_;
  std::deque<std::shared_ptr<Message>> waiting_;
  std::vector<std::shared_ptr<Message>> finished_;  // recorded, and not yet answered
  absl::flat_hash_map<std::string, std::shared_ptr<Message>> remembered_;
  std::deque<std::shared_ptr<Message>> remembered_finished_;  // oldest first
  int64_t forgotten_through_ = 0;  // of all that are not remembered any more: the newest event
  std::string kind_bytes_;         // scratch
};

}  // namespace deka::agent

#endif  // AGENT_RECORDED_CHILD_H_
