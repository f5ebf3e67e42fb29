#include "agent/recorded_child.h"

#include <sys/wait.h>

#include <ctime>
#include <utility>

#include "agent/fingerprint.h"
#include "agent/names.h"
#include "agent/wall_time.h"
#include "fmt/format.h"
#include "ipc/error.h"
#include "ipc/utf8.h"

namespace deka::agent {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kErrorTextBytesMax = 2048;

// Room in a log that is kept for what cannot be held back: signals, and how a child ends.
constexpr size_t kKeptEvents = 64;
constexpr size_t kKeptBytes = 32 << 10;
// What an event may have beside its payload: numbers, sender, request id.
constexpr size_t kEventOverheadBytes = 384;

std::string ReasonOrInternal(const absl::Status& status) {
  return std::string(ipc::ReasonName(ipc::ReasonOf(status).value_or(ipc::Reason::kInternal)));
}

std::string TextOf(const absl::Status& status) {
  return ipc::ToUtf8({status.message().data(), status.message().size()}, kErrorTextBytesMax);
}

int64_t BootTimeMs() {
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

ipc::Dialect FromProto(v1::Dialect dialect) {
  return dialect == v1::DIALECT_NODE ? ipc::Dialect::kNode : ipc::Dialect::kDeka;
}

std::string KeyOf(const v1::Sender& sender, std::string_view request_id) {
  return fmt::format("{}\n{}", sender.principal(), request_id);
}

v1::ExitStatus ExitStatusOf(const ipc::ExitStatus& status) {
  v1::ExitStatus proto;
  if (status.code) {
    proto.set_code(*status.code);
  } else if (status.signal) {
    proto.set_signal(*status.signal);
  } else {
    proto.set_unknown_reason(ipc::ToUtf8(status.unknown_reason, kErrorTextBytesMax));
  }
  proto.set_still_held(!status.drained);
  return proto;
}

}  // namespace

v1::Sender OwnSender() {
  v1::Sender sender;
  sender.set_principal("agent");
  return sender;
}

void QueueBudget::Change(size_t before, size_t now) {
  bytes_ += now - before;
  if (now >= before) return;
  // Who still has to wait stands in line again.
  for (size_t count = waiting_.size(); count > 0 && !waiting_.empty(); --count) {
    RecordedChild* const child = waiting_.front();
    waiting_.pop_front();
    child->TryWaiting();
  }
}

void QueueBudget::Wait(RecordedChild& child) {
  if (std::find(waiting_.begin(), waiting_.end(), &child) == waiting_.end()) {
    waiting_.push_back(&child);
  }
}

void QueueBudget::Forget(RecordedChild& child) { waiting_.remove(&child); }

class RecordedChild::Call {
 public:
  Call(v1::SendOutcome answer_when, absl::AnyInvocable<void()> on_accepted,
       Answer<v1::SendMessageResponse> answer)
      : answer_when_(answer_when == v1::SEND_OUTCOME_ACCEPTED ? v1::SEND_OUTCOME_ACCEPTED
                                                              : v1::SEND_OUTCOME_WRITTEN),
        on_accepted_(std::move(on_accepted)),
        answer_(std::move(answer)) {}

  bool answered() const { return answered_; }

  // The message is in the queue. True if this was the answer.
  bool OnAccepted() {
    if (on_accepted_) std::exchange(on_accepted_, nullptr)();
    if (answer_when_ != v1::SEND_OUTCOME_ACCEPTED) return false;
    v1::SendMessageResponse response;
    response.set_outcome(v1::SEND_OUTCOME_ACCEPTED);
    Give(std::move(response));
    return true;
  }

  // The last byte of the message is in the socket.
  void OnWritten(int64_t sequence) {
    v1::SendMessageResponse response;
    response.set_outcome(v1::SEND_OUTCOME_WRITTEN);
    response.set_sequence(sequence);
    Give(std::move(response));
  }

  void Fail(const absl::Status& status) { Give(status); }

 private:
  friend class RecordedChild;

  void Give(absl::StatusOr<v1::SendMessageResponse> result) {
    if (std::exchange(answered_, true)) return;
    on_accepted_ = nullptr;
    answer_(std::move(result));
  }

  const v1::SendOutcome answer_when_;
  absl::AnyInvocable<void()> on_accepted_;
  Answer<v1::SendMessageResponse> answer_;
  bool answered_ = false;
  std::weak_ptr<Message> message_;
};

class RecordedChild::Message {
 public:
  enum class State { kWaiting, kQueued, kFinished };

  State state = State::kWaiting;
  std::string key;  // {principal, request id}; empty without an id
  uint64_t fingerprint = 0;
  std::string json;  // while it waits for room
  v1::Sender sender;
  std::string request_id;
  uint64_t tag = 0;       // while it is queued
  bool promised = false;  // a caller was told that it is accepted: it cannot be taken back
  int64_t sequence = 0;   // of its event, once finished
  absl::Status outcome;   // once finished: OK if it was written
  Clock::time_point finished_at;
  std::vector<std::shared_ptr<Call>> calls;  // that wait for the outcome
  absl::AnyInvocable<void(absl::Status)> on_written;
};

RecordedChild::RecordedChild(const Environment& environment, Description description,
                             std::shared_ptr<ChildMemory> memory, std::shared_ptr<Log> log,
                             Child::Listener* listener)
    : environment_(environment),
      description_(std::move(description)),
      memory_(std::move(memory)),
      log_(std::move(log)),
      listener_(listener),
      payload_bytes_max_(description_.limits.message_bytes_max),
      hold_limit_(environment.loop) {}

RecordedChild::~RecordedChild() {
  *self_ = nullptr;
  environment_.queues.Forget(*this);
  environment_.queues.Change(queued_bytes_, 0);
  const absl::Status unknown = ipc::MakeError(
      ipc::Reason::kOutcomeUnknown,
      "The agent ended while the message was in its queue, so nobody knows whether the "
      "child got it. Ask the child before sending it again.");
  for (const auto& [tag, message] : queued_) {
    for (const std::shared_ptr<Call>& call : message->calls) call->Fail(unknown);
  }
  RefuseWaiting(StoppingError());
}

ipc::ChildProcess::Custody RecordedChild::Custody() const {
  return {.memory = ChildMemory::StreamsOf(*memory_),
          .keeper = environment_.keeper,
          .number = memory_->number()};
}

absl::Status RecordedChild::Fork(ipc::ForkOptions options, std::chrono::milliseconds timeout,
                                 const v1::Sender& sender, const ForkId& fork_id) {
  const int kill_signal = options.kill_signal;
  payload_bytes_max_ = std::max(payload_bytes_max_, options.output_line_bytes_max);
  options.channel.debug_name = description_.id;
  has_channel_ = options.ipc;
  start_time_ = std::chrono::system_clock::now();
  if (environment_.keeper != nullptr) {
    // Chosen before the child can start, so that a successor knows it.
    const ipc::DialectChoice choice = ipc::ForkDialect(options);
    options.dialect = choice.dialect;
    dialect_ = agent::ToProto(choice.dialect);
    dialect_reason_ = choice.reason;
    if (absl::Status status = Store(options, timeout, sender, fork_id); !status.ok()) return status;
  }
  absl::StatusOr<std::unique_ptr<ipc::ChildProcess>> process =
      ipc::ChildProcess::Fork(environment_.loop, std::move(options), *this, Custody());
  if (!process.ok()) return process.status();
  process_ = *std::move(process);
  if (has_channel_) {
    dialect_ = agent::ToProto(process_->dialect());
    if (environment_.keeper == nullptr) dialect_reason_ = process_->dialect_reason();
  }
  RecordStarted(sender);
  if (timeout.count() > 0) StartTimeout(timeout, kill_signal);
  return absl::OkStatus();
}

absl::Status RecordedChild::Adopt(int socket, pid_t pid, ipc::Channel::Options options,
                                  const v1::Sender& sender) {
  options.debug_name = description_.id;
  const ipc::Dialect dialect = options.dialect;
  has_channel_ = true;
  start_time_ = std::chrono::system_clock::now();
  absl::StatusOr<std::unique_ptr<ipc::ChildProcess>> process = ipc::ChildProcess::Adopt(
      environment_.loop, socket, pid, std::move(options), *this, Custody());
  if (!process.ok()) return process.status();
  process_ = *std::move(process);
  dialect_ = agent::ToProto(dialect);
  dialect_reason_ = "given with the channel that was adopted";
  RecordStarted(sender);
  return absl::OkStatus();
}

void RecordedChild::StartTimeout(std::chrono::milliseconds timeout, int kill_signal) {
  timeout_ = std::make_unique<ipc::Timer>(environment_.loop);
  timeout_->Start(
      timeout,
      [this, kill_signal] {
        // A child that has just ended needs no signal.
        (void)Signal(kill_signal, OwnSender());
        memory_->control().timed_out = 1;
      },
      /*referenced=*/false);
}

absl::Status RecordedChild::Store(const ipc::ForkOptions& options,
                                  std::chrono::milliseconds timeout, const v1::Sender& sender,
                                  const ForkId& fork_id) {
  stored::v1::StoredChild stored;
  *stored.mutable_child() = ToProto();
  stored.set_has_channel(options.ipc);
  stored.set_leads_group(options.own_process_group || options.detached);
  stored.set_queue_messages_max(options.channel.queue_messages_max);
  stored.set_log_events_max(environment_.limits.log_events_max);
  *stored.mutable_sender() = sender;
  stored.set_fork_key(fork_id.key);
  stored.set_fork_fingerprint(fork_id.fingerprint);
  stored.set_fork_sequence(fork_id.sequence);
  stored.set_kill_signal(options.kill_signal);
  if (timeout.count() > 0) stored.set_timeout_at_ms(BootTimeMs() + timeout.count());
  const std::string bytes = stored.SerializeAsString();
  if (bytes.size() > ChildMemory::kDescriptionBytesMax) {
    return InvalidField("spec", fmt::format("describes the child with {} bytes (names, labels, "
                                            "arguments); at most {} are allowed.",
                                            bytes.size(), ChildMemory::kDescriptionBytesMax));
  }
  memory_->set_description(bytes);
  return absl::OkStatus();
}

absl::Status RecordedChild::Recover(Agent::FoundChild found,
                                    const stored::v1::StoredChild& stored) {
  const ChildMemory::Control& control = memory_->control();
  const uint64_t ends = memory_->progress().ends;
  pid_ = found.pid;
  has_channel_ = stored.has_channel();
  dialect_ = stored.child().dialect();
  dialect_reason_ = stored.child().dialect_reason();
  const google::protobuf::Timestamp& start = stored.child().start_time();
  start_time_ = std::chrono::system_clock::time_point(std::chrono::seconds(start.seconds()) +
                                                      std::chrono::nanoseconds(start.nanos()));
  const ipc::StreamMemory::Limits& streams = control.limits.streams;
  payload_bytes_max_ = std::max(payload_bytes_max_, streams.output_line_bytes_max);
  disconnected_ = has_channel_ && (ends & ipc::ChildProcess::kDisconnected) != 0;
  if ((ends & ipc::ChildProcess::kExited) != 0) {
    ipc::ExitStatus status = {.unknown_reason = "The agent before did not learn how it ended."};
    if (control.exit_known) status = ipc::ExitStatusOf(control.wait_status);
    status.drained = !control.still_held;
    exit_status_ = ExitStatusOf(status);
    environment_.keeper->Acknowledge(memory_->number());
  }
  closed_ = (ends & ipc::ChildProcess::kClosed) != 0;
  finished_sends_ = memory_->progress().kept;
  if (closed_) {
    environment_.keeper->Release(memory_->number());
    RecoverMessages();
    return absl::OkStatus();
  }

  ipc::ForkOptions options;
  options.ipc = has_channel_;
  options.dialect = FromProto(dialect_);
  options.own_process_group = stored.leads_group();
  options.kill_signal = stored.kill_signal();
  options.channel.message_bytes_max = streams.message_bytes_max;
  options.channel.queue_bytes_max = streams.queue_bytes_max;
  options.channel.queue_messages_max = streams.queue_messages_max;
  options.channel.debug_name = description_.id;
  if (streams.output_line_bytes_max > 0) {
    options.output_line_bytes_max = streams.output_line_bytes_max;
    options.stdout_mode = options.stderr_mode = ipc::Stdio::kPipe;
  }
  absl::StatusOr<std::unique_ptr<ipc::ChildProcess>> process = ipc::ChildProcess::Recover(
      environment_.loop, std::move(options),
      {.channel = std::move(found.channel),
       .output = {std::move(found.output[0]), std::move(found.output[1])},
       .pid = found.pid,
       .pidfd = std::move(found.pidfd),
       .dialect_reason = dialect_reason_},
      *this, Custody());
  if (!process.ok()) return process.status();
  process_ = *std::move(process);
  RecoverMessages();
  if (log_->newest_sequence() == 0) RecordStarted(stored.sender());
  if (control.disconnect_mode != 0 && has_channel_ && !disconnected_) {
    disconnected_by_ = static_cast<v1::Disconnected::By>(control.disconnected_by);
    disconnected_sender_.ParseFromArray(control.sender, static_cast<int>(control.sender_bytes));
    (void)process_->Disconnect(static_cast<ipc::Channel::Mode>(control.disconnect_mode - 1));
  }
  if (stored.timeout_at_ms() != 0 && !control.timed_out && !exit_status_) {
    StartTimeout(
        std::chrono::milliseconds(std::max<int64_t>(stored.timeout_at_ms() - BootTimeMs(), 0)),
        stored.kill_signal());
  }
  return absl::OkStatus();
}

// Those that are queued, and those that are remembered.
void RecordedChild::RecoverMessages() {
  const uint64_t kept_max = memory_->control().limits.finished_max;
  const auto oldest = Clock::now() - environment_.limits.request_id_kept_ms_max;
  const uint64_t first = finished_sends_ - std::min(finished_sends_, kept_max);
  const int64_t next = environment_.log.next_sequence();
  const int64_t newest =
      first < finished_sends_ ? memory_->finished(finished_sends_ - 1).sequence : 0;
  bool overwritten = first > 0;  // all those before, by later ones
  for (uint64_t number = first; number < finished_sends_; ++number) {
    const FinishedSend& finished = memory_->finished(number);
    // By one that was kept and never committed.
    if (finished.sequence > newest || finished.sequence >= next) {
      overwritten = true;
      continue;
    }
    if (std::exchange(overwritten, false)) forgotten_through_ = finished.sequence - 1;
    auto message = std::make_shared<Message>();
    message->state = Message::State::kFinished;
    message->key.assign(finished.key, finished.key_bytes);
    message->fingerprint = finished.fingerprint;
    message->sequence = finished.sequence;
    message->finished_at = Clock::now() - AgeOf(finished.time_us);
    if (message->finished_at < oldest) {
      forgotten_through_ = std::max(forgotten_through_, message->sequence);
      continue;
    }
    if (finished.reason != FinishedSend::kWritten) {
      message->outcome =
          OutcomeOf(ipc::MakeError(static_cast<ipc::Reason>(finished.reason),
                                   "The message was not written in full. Its `undelivered` event "
                                   "says why."),
                    finished.written_bytes);
    }
    remembered_[message->key] = message;
    remembered_finished_.push_back(std::move(message));
  }
  if (overwritten) forgotten_through_ = next - 1;
  if (process_ == nullptr) return;
  process_->ForEachQueued([this](uint64_t tag, std::string_view note) {
    auto message = std::make_shared<Message>();
    if (stored::v1::StoredSend send;
        send.ParseFromArray(note.data(), static_cast<int>(note.size()))) {
      message->sender = send.sender();
      message->request_id = send.request_id();
      message->fingerprint = send.fingerprint();
    }
    message->state = Message::State::kQueued;
    message->tag = tag;
    // Somebody may have been told that it is accepted.
    message->promised = true;
    if (!message->request_id.empty()) {
      message->key = KeyOf(message->sender, message->request_id);
      remembered_[message->key] = message;
    }
    next_tag_ = std::max(next_tag_, tag + 1);
    queued_[tag] = std::move(message);
  });
  UpdateQueued();
}

void RecordedChild::RecordStarted(const v1::Sender& sender) {
  pid_ = process_->pid();
  v1::Started started;
  *started.mutable_child() = ToProto();
  *started.mutable_sender() = sender;
  Stage(v1::Event::kStarted, started);
  HoldIfFull();
  environment_.log.Commit();
}

std::string RecordedChild::name() const {
  return ChildName(environment_.log.agent(), description_.id);
}

bool RecordedChild::connected() const { return process_ != nullptr && process_->connected(); }

absl::StatusOr<ipc::Channel::Accepted> RecordedChild::Send(
    std::string_view json, absl::AnyInvocable<void(absl::Status)> on_written) {
  auto message = std::make_shared<Message>();
  message->sender = OwnSender();
  message->on_written = std::move(on_written);
  return Enqueue(message, json);
}

absl::Status RecordedChild::Disconnect() {
  if (!has_channel_) return NoChannelError();
  const bool first = connected();
  if (process_ == nullptr) return ChannelClosedError();
  if (absl::Status status = process_->Disconnect(); !status.ok()) return status;
  if (first) {
    disconnected_by_ = v1::Disconnected::BY_CALLER;
    disconnected_sender_ = OwnSender();
  }
  return absl::OkStatus();
}

absl::Status RecordedChild::Kill(int signal) { return Signal(signal, OwnSender()).status(); }

std::shared_ptr<RecordedChild::Call> RecordedChild::SendMessage(
    v1::SendMessageRequest request, const v1::Sender& sender, Agent::SendOptions options,
    Answer<v1::SendMessageResponse> answer) {
  auto call = std::make_shared<Call>(request.answer_when(), std::move(options.on_accepted),
                                     std::move(answer));
  auto message = std::make_shared<Message>();
  if (!request.request_id().empty()) {
    message->key = KeyOf(sender, request.request_id());
    message->fingerprint = Fingerprint(request.json());
    if (const std::shared_ptr<Message> first = Remembered(message->key)) {
      if (first->fingerprint == message->fingerprint) {
        Repeat(first, call);
      } else {
        call->Fail(ipc::MakeError(
            ipc::Reason::kRequestIdReused,
            fmt::format("The request id {} was used for another message to {}. Give a fresh one.",
                        request.request_id(), name()),
            {{"request_id", request.request_id()}}));
      }
      return call;
    }
    const bool never_came =
        request.known_sequence() > 0 && request.known_sequence() >= forgotten_through_;
    if (request.repeat() && !never_came) {
      call->Fail(ipc::MakeError(
          ipc::Reason::kOutcomeUnknown,
          fmt::format(
              "The request id {} is not remembered for {} (any more): nothing was sent now. "
              "Look at the child's events before sending it again under a fresh id.",
              request.request_id(), name()),
          {{"request_id", request.request_id()}}));
      return call;
    }
  }
  message->sender = sender;
  message->request_id = std::move(*request.mutable_request_id());
  message->calls.push_back(call);
  call->message_ = message;

  // Nothing overtakes what waits for room.
  absl::Status refused = waiting_.empty() || !has_open_channel()
                             ? Enqueue(message, request.json()).status()
                             : QueueFullError();
  if (options.wait_for_room && ipc::ReasonOf(refused) == ipc::Reason::kQueueFull) {
    message->json = std::move(*request.mutable_json());
    waiting_.push_back(message);
    WaitForBudget();
    refused = absl::OkStatus();
  }
  if (!refused.ok()) {
    call->Fail(refused);
    return call;
  }
  if (!message->key.empty()) remembered_[message->key] = message;
  if (message->state == Message::State::kQueued) TellAccepted(message);
  return call;
}

std::shared_ptr<RecordedChild::Message> RecordedChild::Remembered(const std::string& key) {
  ForgetOldMessages();
  const auto found = remembered_.find(key);
  return found == remembered_.end() ? nullptr : found->second;
}

void RecordedChild::Repeat(const std::shared_ptr<Message>& message,
                           const std::shared_ptr<Call>& call) {
  switch (message->state) {
    case Message::State::kQueued:
      if (call->OnAccepted()) {
        message->promised = true;
        return;
      }
      [[fallthrough]];
    case Message::State::kWaiting:
      call->message_ = message;
      message->calls.push_back(call);
      return;
    case Message::State::kFinished:
      if (!message->outcome.ok()) {
        call->Fail(message->outcome);
      } else if (!call->OnAccepted()) {
        call->OnWritten(message->sequence);
      }
      return;
  }
}

std::string_view RecordedChild::NoteOf(const Message& message) {
  if (memory_->file() < 0) return {};
  stored::v1::StoredSend send;
  *send.mutable_sender() = message.sender;
  send.set_request_id(message.request_id);
  send.set_fingerprint(message.fingerprint);
  send.SerializeToString(&kind_bytes_);
  return kind_bytes_;
}

absl::StatusOr<ipc::Channel::Accepted> RecordedChild::Enqueue(
    const std::shared_ptr<Message>& message, std::string_view json) {
  if (!has_channel_) return NoChannelError();
  // A channel that another process still holds outlives the child's own.
  if (process_ == nullptr || disconnected_) {
    return exit_status_ ? ExitedError() : ChannelClosedError();
  }
  const bool too_large = json.size() > description_.limits.message_bytes_max;
  if (!too_large && HoldIfFull(json.size())) return HeldError();
  if (!queued_.empty() && listener_ == nullptr &&
      EventLog::IsTooSmall(*log_, RoomFor(json.size()))) {
    return QueueBeyondLogError();
  }
  if (!environment_.queues.Fits(json.size() + kQueueOverheadBytes)) return QueueFullError();
  const uint64_t tag = next_tag_++;
  const absl::StatusOr<ipc::Channel::Accepted> accepted =
      process_->Send(json, tag, NoteOf(*message));
  if (!accepted.ok()) return accepted;
  message->state = Message::State::kQueued;
  message->tag = tag;
  queued_[tag] = message;
  UpdateQueued();
  return accepted;
}

void RecordedChild::TellAccepted(const std::shared_ptr<Message>& message) {
  std::vector<std::shared_ptr<Call>> calls = std::exchange(message->calls, {});
  for (std::shared_ptr<Call>& call : calls) {
    if (call->OnAccepted()) {
      message->promised = true;
    } else {
      message->calls.push_back(std::move(call));
    }
  }
}

void RecordedChild::TryWaiting() {
  while (!waiting_.empty()) {
    const std::shared_ptr<Message> message = waiting_.front();
    const absl::Status refused = Enqueue(message, message->json).status();
    if (ipc::ReasonOf(refused) == ipc::Reason::kQueueFull) return WaitForBudget();
    waiting_.pop_front();
    message->json = {};
    if (refused.ok()) {
      TellAccepted(message);
    } else {
      Refuse(message, refused);
    }
  }
}

void RecordedChild::WaitForBudget() {
  // A queue with something in it tries again when that is written.
  if (queued_.empty()) environment_.queues.Wait(*this);
}

void RecordedChild::RefuseWaiting(const absl::Status& reason) {
  for (const std::shared_ptr<Message>& message : std::exchange(waiting_, {})) {
    Refuse(message, reason);
  }
}

void RecordedChild::Refuse(const std::shared_ptr<Message>& message, const absl::Status& reason) {
  if (!message->key.empty()) remembered_.erase(message->key);
  for (const std::shared_ptr<Call>& call : std::exchange(message->calls, {})) call->Fail(reason);
}

void RecordedChild::Cancel(const std::shared_ptr<Call>& call, const absl::Status& reason) {
  const std::shared_ptr<Message> message = call->message_.lock();
  if (call->answered() || message == nullptr || message->state == Message::State::kFinished) return;
  if (message->calls.size() == 1 && !message->promised) {
    if (message->state == Message::State::kWaiting) {
      std::erase(waiting_, message);
      Refuse(message, reason);
      return TryWaiting();
    }
    if (process_->Cancel(message->tag)) {
      queued_.erase(message->tag);
      Refuse(message, reason);
      UpdateQueued();
      return TryWaiting();
    }
  }
  std::erase(message->calls, call);
  call->Fail(ipc::MakeError(
      ipc::Reason::kOutcomeUnknown,
      fmt::format(
          "The message to {} was not taken back, because {}. Its event tells whether it was "
          "written.",
          name(),
          message->promised || !message->calls.empty()
              ? "another call with the same request id counts on it"
              : "its first byte is in the child's socket")));
}

void RecordedChild::Disconnect(ipc::Channel::Mode mode, v1::Disconnected::By by,
                               const v1::Sender& sender, Answer<v1::DisconnectResponse> answer) {
  if (!has_channel_) return answer(NoChannelError());
  if (disconnected_) return AnswerDisconnect(answer);
  if (connected()) {
    disconnected_by_ = by;
    disconnected_sender_ = sender;
  }
  StoreDisconnect(mode, disconnected_by_, disconnected_sender_);
  disconnect_answers_.push_back(std::move(answer));
  // Of a channel that has closed already OnDisconnect is about to tell.
  (void)process_->Disconnect(mode);
  RefuseWaiting(ChannelClosedError());
}

void RecordedChild::StoreDisconnect(ipc::Channel::Mode mode, v1::Disconnected::By by,
                                    const v1::Sender& sender) {
  if (memory_->file() < 0) return;
  ChildMemory::Control& control = memory_->control();
  const auto asked = static_cast<uint8_t>(static_cast<int>(mode) + 1);
  if (control.disconnect_mode == 0) {
    const std::string bytes = sender.SerializeAsString();
    control.disconnected_by = static_cast<uint32_t>(by);
    control.sender_bytes = static_cast<uint32_t>(std::min(bytes.size(), sizeof(control.sender)));
    std::memcpy(control.sender, bytes.data(), control.sender_bytes);
  }
  // Later ones may only hasten the first.
  if (asked > control.disconnect_mode) {
    __atomic_store_n(&control.disconnect_mode, asked, __ATOMIC_RELEASE);
  }
}

void RecordedChild::AnswerDisconnect(Answer<v1::DisconnectResponse>& answer) {
  v1::DisconnectResponse response;
  response.set_sequence(log_->newest_sequence());
  answer(std::move(response));
}

absl::StatusOr<int64_t> RecordedChild::Signal(int signal, const v1::Sender& sender) {
  if (!IsSignal(signal)) {
    return InvalidField("signal", fmt::format("is {}, which is no signal; give a number from 1 to "
                                              "{}.",
                                              signal, SIGRTMAX));
  }
  const absl::StatusOr<int64_t> sequence = RecordSignal(signal, sender);
  if (!sequence.ok()) return sequence;
  if (absl::Status status = process_->Kill(signal); !status.ok()) return SignalError(status);
  return sequence;
}

absl::StatusOr<int64_t> RecordedChild::KillGroup(const v1::Sender& sender) {
  const absl::StatusOr<int64_t> sequence = RecordSignal(SIGKILL, sender);
  if (!sequence.ok()) return sequence;
  if (absl::Status status = process_->KillGroup(); !status.ok()) return SignalError(status);
  return sequence;
}

absl::StatusOr<int64_t> RecordedChild::RecordSignal(int signal, const v1::Sender& sender) {
  if (process_ == nullptr) return ExitedError();
  if (absl::Status status = process_->Kill(0); !status.ok()) return SignalError(status);
  v1::Signalled signalled;
  signalled.set_signal(signal);
  *signalled.mutable_sender() = sender;
  const int64_t sequence = Stage(v1::Event::kSignalled, signalled);
  HoldIfFull();
  environment_.log.Commit();
  return sequence;
}

v1::Child::State RecordedChild::state() const {
  if (closed_) return v1::Child::STATE_CLOSED;
  if (exit_status_) return v1::Child::STATE_EXITED;
  return connected() ? v1::Child::STATE_CONNECTED : v1::Child::STATE_DISCONNECTED;
}

v1::Child RecordedChild::ToProto() const {
  v1::Child child;
  child.set_name(name());
  child.set_display_name(description_.display_name);
  child.mutable_labels()->insert(description_.labels.begin(), description_.labels.end());
  child.set_pid(pid_);
  child.set_state(state());
  child.set_dialect(dialect_);
  child.set_dialect_reason(ipc::ToUtf8(dialect_reason_, kErrorTextBytesMax));
  child.set_program(ipc::ToUtf8(description_.program, kPathBytesMax));
  size_t args_bytes = 0;
  for (const std::string& arg : description_.args) {
    std::string text = ipc::ToUtf8(arg, kShownArgsBytesMax - args_bytes);
    args_bytes += text.size() + 1;
    child.add_args(std::move(text));
    if (args_bytes >= kShownArgsBytesMax) break;
  }
  const int64_t start_us =
      std::chrono::duration_cast<std::chrono::microseconds>(start_time_.time_since_epoch()).count();
  child.mutable_start_time()->set_seconds(start_us / 1'000'000);
  child.mutable_start_time()->set_nanos(static_cast<int32_t>(start_us % 1'000'000 * 1000));
  if (exit_status_) *child.mutable_exit_status() = *exit_status_;
  if (process_ != nullptr) {
    child.set_queued_bytes(static_cast<int64_t>(process_->queued_bytes()));
    child.set_queued_messages(static_cast<int64_t>(process_->queued_messages()));
  }
  child.set_last_sequence(log_->newest_sequence());
  child.set_last_child_sequence(log_->newest_child_sequence());
  const ChildLimits& limits = description_.limits;
  child.mutable_limits()->set_message_bytes_max(static_cast<int64_t>(limits.message_bytes_max));
  child.mutable_limits()->set_queue_bytes_max(static_cast<int64_t>(limits.queue_bytes_max));
  child.mutable_limits()->set_log_bytes_max(static_cast<int64_t>(limits.log_bytes_max));
  return child;
}

int64_t RecordedChild::Stage(int kind_field, const google::protobuf::MessageLite& kind,
                             PayloadField payload_field, std::string_view payload) {
  kind.SerializeToString(&kind_bytes_);
  return environment_.log.Stage(*log_, {.kind_field = kind_field,
                                        .kind = kind_bytes_,
                                        .payload_field = payload_field,
                                        .payload = payload,
                                        .progress = Progress()});
}

const ipc::Progress* RecordedChild::Progress() {
  progress_ = process_->progress();
  progress_.kept = finished_sends_;
  return &progress_;
}

void RecordedChild::OnSpawn() {
  if (listener_ != nullptr) listener_->OnSpawn(*this);
}

void RecordedChild::OnMessage(ipc::Message message) {
  const EncodedKind kind = EncodedKind::FromChild(dialect_, message.json.size(), message.internal);
  environment_.log.Stage(*log_, {.kind_field = v1::Event::kFromChild,
                                 .kind = kind.bytes(),
                                 .payload_field = PayloadField::kJson,
                                 .payload = message.json,
                                 .progress = Progress()});
  if (listener_ != nullptr && !message.internal) return listener_->OnMessage(*this, message.json);
  HoldIfFull();
}

void RecordedChild::OnReadEnd() { environment_.log.Commit(); }

void RecordedChild::OnOutput(ipc::OutputLine line) {
  const EncodedKind kind = EncodedKind::Output(
      line.descriptor == 1 ? v1::Output::STREAM_STDOUT : v1::Output::STREAM_STDERR,
      line.text.size(), line.partial, line.unterminated);
  environment_.log.Stage(
      *log_, {.kind_field = v1::Event::kOutput,
              .kind = kind.bytes(),
              .payload_field = ipc::IsUtf8(line.text) ? PayloadField::kText : PayloadField::kRaw,
              .payload = line.text,
              .progress = Progress()});
  if (listener_ != nullptr) return listener_->OnOutput(*this, line);
  HoldIfFull();
}

void RecordedChild::OnError(ipc::BadFrame frame) {
  v1::Error error;
  error.set_reason(ReasonOrInternal(frame.reason));
  error.set_message(TextOf(frame.reason));
  error.set_size_bytes(static_cast<int64_t>(frame.size_bytes));
  Stage(v1::Event::kError, error, PayloadField::kRaw, frame.bytes);
  if (listener_ != nullptr) return listener_->OnError(*this, frame.reason);
  HoldIfFull();
}

EventLog::Room RecordedChild::RoomFor(size_t json_bytes) const {
  const size_t messages = queued_.size() + 1;
  return {.bytes = kKeptBytes + json_bytes + 2 * payload_bytes_max_ + queued_bytes_ +
                   messages * kEventOverheadBytes,
          .events = kKeptEvents + messages};
}

bool RecordedChild::LogIsFull(size_t json_bytes) const {
  return listener_ == nullptr && environment_.log.IsFull(*log_, RoomFor(json_bytes));
}

bool RecordedChild::HoldIfFull(size_t json_bytes) {
  if (!LogIsFull(json_bytes)) return false;
  held_for_bytes_ = std::max(held_for_bytes_, json_bytes);
  if (!std::exchange(held_, true)) {
    process_->PauseReading();
    LookAtHold();
  }
  return true;
}

void RecordedChild::LookAtHold() {
  if (!held_ || process_ == nullptr) return;
  // Before it is looked: what is read from now on is told.
  environment_.log.OnRead(*log_, [&loop = environment_.loop, self = self_] {
    loop.Post([self] {
      if (*self != nullptr) (*self)->LookAtHold();
    });
  });
  const auto now = Clock::now();
  std::optional<Clock::time_point> limit;
  if (LogIsFull(held_for_bytes_)) limit = environment_.log.Lapse(*log_, now);
  if (limit && LogIsFull(held_for_bytes_)) {
    hold_limit_.Start(
        std::chrono::ceil<std::chrono::milliseconds>(*limit - now), [this] { LookAtHold(); },
        /*referenced=*/false);
    return;
  }
  held_ = false;
  held_for_bytes_ = 0;
  hold_limit_.Cancel();
  process_->ResumeReading();
}

void RecordedChild::OnSent(ipc::Sent sent) {
  const auto found = queued_.find(sent.tag);
  if (found == queued_.end()) return;
  const std::shared_ptr<Message> message = std::move(found->second);
  queued_.erase(found);
  if (!message->key.empty()) Keep(*message, sent);
  if (sent.status.ok()) {
    v1::MessageToChild to_child;
    to_child.set_dialect(dialect_);
    to_child.set_size_bytes(static_cast<int64_t>(sent.json.size()));
    *to_child.mutable_sender() = message->sender;
    to_child.set_request_id(message->request_id);
    message->sequence = Stage(v1::Event::kToChild, to_child, PayloadField::kJson, sent.json);
  } else {
    v1::Undelivered undelivered;
    undelivered.set_request_id(message->request_id);
    *undelivered.mutable_sender() = message->sender;
    undelivered.set_written_bytes(static_cast<int64_t>(sent.written_bytes));
    undelivered.set_frame_bytes(
        static_cast<int64_t>(ipc::Codec::EncodeAs(process_->dialect(), sent.json).size()));
    undelivered.set_reason(ReasonOrInternal(sent.status));
    undelivered.set_message(TextOf(sent.status));
    message->sequence = Stage(v1::Event::kUndelivered, undelivered);
    message->outcome = OutcomeOf(sent.status, sent.written_bytes);
  }
  message->state = Message::State::kFinished;
  message->finished_at = Clock::now();
  if (!message->key.empty()) {
    remembered_finished_.push_back(message);
    ForgetOldMessages();
  }
  if (!message->calls.empty() || message->on_written) finished_.push_back(message);
}

// What a successor is to remember of a message that is finished: with its event, which is about to
// be staged.
void RecordedChild::Keep(const Message& message, const ipc::Sent& sent) {
  if (memory_->control().limits.finished_max == 0) return;
  FinishedSend& finished = memory_->finished(finished_sends_++);
  finished.fingerprint = message.fingerprint;
  finished.time_us = NowUs();
  finished.sequence = environment_.log.next_sequence();
  finished.written_bytes = sent.written_bytes;
  finished.reason =
      sent.status.ok()
          ? FinishedSend::kWritten
          : static_cast<uint16_t>(ipc::ReasonOf(sent.status).value_or(ipc::Reason::kInternal));
  finished.key_bytes =
      static_cast<uint16_t>(std::min(message.key.size(), FinishedSend::kKeyBytesMax));
  std::memcpy(finished.key, message.key.data(), finished.key_bytes);
}

absl::Status RecordedChild::OutcomeOf(const absl::Status& status, uint64_t written_bytes) const {
  if (written_bytes == 0) return status;
  return ipc::MakeError(
      ipc::Reason::kOutcomeUnknown,
      fmt::format("{} bytes of the message were in the socket of {} when the channel ended ({}). "
                  "Ask the child before sending it again.",
                  written_bytes, name(), TextOf(status)),
      {{"written_bytes", fmt::format("{}", written_bytes)}});
}

void RecordedChild::ForgetOldMessages() {
  const Limits& limits = environment_.limits;
  const auto oldest = Clock::now() - limits.request_id_kept_ms_max;
  while (!remembered_finished_.empty() &&
         (remembered_finished_.size() > limits.send_request_ids_max ||
          remembered_finished_.front()->finished_at < oldest)) {
    remembered_.erase(remembered_finished_.front()->key);
    forgotten_through_ = std::max(forgotten_through_, remembered_finished_.front()->sequence);
    remembered_finished_.pop_front();
  }
}

void RecordedChild::OnWriteEnd() {
  HoldIfFull();
  environment_.log.Commit();
  UpdateQueued();
  TryWaiting();
  AnswerFinished();
}

void RecordedChild::UpdateQueued() {
  const size_t before = std::exchange(queued_bytes_, process_ ? process_->queued_bytes() : 0);
  environment_.queues.Change(before, queued_bytes_);
}

// A callback may destroy the child: nothing of it is touched once they begin.
void RecordedChild::AnswerFinished() {
  for (const std::shared_ptr<Message>& message : std::exchange(finished_, {})) {
    for (const std::shared_ptr<Call>& call : std::exchange(message->calls, {})) {
      if (message->outcome.ok()) {
        call->OnWritten(message->sequence);
      } else {
        call->Fail(message->outcome);
      }
    }
    if (message->on_written) std::exchange(message->on_written, nullptr)(message->outcome);
  }
}

void RecordedChild::OnDrain() {
  if (listener_ != nullptr) listener_->OnDrain(*this);
}

void RecordedChild::OnDisconnect(absl::Status reason) {
  v1::Disconnected disconnected;
  if (disconnected_by_ != v1::Disconnected::BY_UNSPECIFIED) {
    disconnected.set_by(disconnected_by_);
    if (disconnected_by_ == v1::Disconnected::BY_CALLER) {
      *disconnected.mutable_sender() = disconnected_sender_;
    }
  } else {
    disconnected.set_by(ipc::ReasonOf(reason) == ipc::Reason::kChannelFailed
                            ? v1::Disconnected::BY_FAILURE
                            : v1::Disconnected::BY_CHILD);
  }
  if (!reason.ok()) disconnected.set_message(TextOf(reason));
  Stage(v1::Event::kDisconnected, disconnected);
  HoldIfFull();
  environment_.log.Commit();
  disconnected_ = true;
  UpdateQueued();
  RefuseWaiting(exit_status_ ? ExitedError() : ChannelClosedError());
  for (Answer<v1::DisconnectResponse>& answer : std::exchange(disconnect_answers_, {})) {
    AnswerDisconnect(answer);
  }
  environment_.on_ending();
  if (listener_ != nullptr) listener_->OnDisconnect(*this);
}

void RecordedChild::OnExit(ipc::ExitStatus status) {
  timeout_.reset();
  exit_status_ = ExitStatusOf(status);
  ChildMemory::Control& control = memory_->control();
  control.wait_status =
      status.code ? W_EXITCODE(*status.code, 0) : W_EXITCODE(0, status.signal.value_or(0));
  control.still_held = !status.drained;
  control.exit_known = status.code || status.signal;
  v1::Exited exited;
  *exited.mutable_status() = *exit_status_;
  Stage(v1::Event::kExited, exited);
  environment_.log.Commit();
  if (environment_.keeper != nullptr) environment_.keeper->Acknowledge(memory_->number());
  if (disconnected_) RefuseWaiting(ExitedError());
  environment_.on_ending();
  if (listener_ != nullptr) listener_->OnExit(*this, status);
}

void RecordedChild::OnClose() {
  Stage(v1::Event::kClosed, v1::Closed());
  environment_.log.Commit();
  closed_ = true;
  timeout_.reset();
  process_.reset();
  memory_->GiveBackStreams();
  if (environment_.keeper != nullptr) environment_.keeper->Release(memory_->number());
  UpdateQueued();
  if (listener_ != nullptr && !tell_([this] { listener_->OnClose(*this); })) return;
  environment_.on_closed(*this);
}

absl::Status RecordedChild::NoChannelError() const {
  return ipc::MakeError(
      ipc::Reason::kNoChannel,
      fmt::format("{} was forked without a channel (no_channel), so nothing can be sent to it. "
                  "Signal it instead.",
                  name()),
      {{"child", name()}});
}

absl::Status RecordedChild::ChannelClosedError() const {
  return ipc::MakeError(
      ipc::Reason::kChannelClosed,
      fmt::format("The channel of {} has ended, so nothing can be sent to it any more. Its "
                  "`disconnected` event says why.",
                  name()),
      {{"child", name()}});
}

absl::Status RecordedChild::ExitedError() const {
  return ipc::MakeError(ipc::Reason::kChildExited,
                        fmt::format("{} has exited, so nobody is there to read a message or to be "
                                    "signalled. Its `exited` event says how it ended.",
                                    name()),
                        {{"child", name()}});
}

absl::Status RecordedChild::HeldError() const {
  return ipc::MakeError(
      ipc::Reason::kHeldByObserver,
      fmt::format("An observer that must not lose anything has not read what the log of {} is full "
                  "of, and holds it back. Nothing was queued. Wait and try again.",
                  name()),
      {{"child", name()}});
}

absl::Status RecordedChild::SignalError(const absl::Status& status) const {
  const std::optional<ipc::Reason> reason = ipc::ReasonOf(status);
  if (reason == ipc::Reason::kChildExited) return ExitedError();
  if (reason == ipc::Reason::kNoProcess) {
    return ipc::MakeError(*reason,
                          fmt::format("{} was adopted without its process, so nobody here can "
                                      "signal it. Disconnect it instead.",
                                      name()),
                          {{"child", name()}});
  }
  if (reason == ipc::Reason::kSignalNotPermitted) {
    return ipc::MakeError(*reason,
                          fmt::format("The process of {} runs as another user now, whom the agent "
                                      "may not signal. Disconnect it instead.",
                                      name()),
                          {{"child", name()}});
  }
  return status;
}

absl::Status RecordedChild::QueueBeyondLogError() const {
  return ipc::MakeError(
      ipc::Reason::kQueueFull,
      fmt::format("An observer that must not lose anything watches {}, and with what is queued its "
                  "log (log_bytes_max is {}) has no room for another message. Wait until some "
                  "messages are written.",
                  name(), description_.limits.log_bytes_max),
      {{"child", name()}, {"limit", fmt::format("{}", description_.limits.log_bytes_max)}});
}

absl::Status RecordedChild::QueueFullError() const {
  return ipc::MakeError(
      ipc::Reason::kQueueFull,
      waiting_.empty()
          ? fmt::format(
                "The queues of all children have no room (queues_bytes_max is {}). Wait until "
                "some messages are written.",
                environment_.queues.bytes_max())
          : fmt::format("Other messages wait for room in the queue of {}, which reads too slowly. "
                        "Wait until some are written.",
                        name()),
      {{"child", name()}, {"limit", fmt::format("{}", environment_.queues.bytes_max())}});
}

}  // namespace deka::agent
