// A client of an agent, for children that the agent forks: its surface reads as Node's
// ChildProcess.
//
//   absl::StatusOr<deka::Client> client = deka::Client::Connect();
//   absl::StatusOr<deka::Child> child = client->Fork("node", {"worker.js"});
//   child->Listen({.on_message = [](std::string_view json) { ... }});
//   child->Send(R"({"hello":1})");
//   child->Disconnect();
//
// It looks in on what others have forked, too: Find, List, Observe, Attach. An agent that went away
// is reached again: calls that can be repeated are, an observation goes on after its last event.
//
// Errors: the agent's own, as bridge_service.proto lists them for each method, with the reason that
// ErrorReason() reads. The client adds these:
//
// * `UNAVAILABLE` AGENT_UNREACHABLE: no agent answers; the message says where and how to start one.
// * `UNKNOWN` OUTCOME_UNKNOWN: the answer to something that must not be done twice was lost.
// * `INVALID_ARGUMENT` INVALID_ARGUMENT: a field is not UTF-8, or a target is no `unix:PATH`.
// * `FAILED_PRECONDITION` ADDRESS_UNSAFE: another user could answer at the default socket.
//
// Thread: every method, any thread. The callbacks of one observation or attachment come one at a
// time, on a thread of its own, and may call everything. While one runs, nothing more is read: at
// most kStreamBytesMax wait in this process, the rest waits in the agent, which tells a gap if it
// becomes too much.
#ifndef SDK_CPP_CLIENT_H_
#define SDK_CPP_CLIENT_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "sdk/cpp/error.h"
#include "sdk/cpp/observer.h"

namespace deka {

// What one observation has read ahead of its callbacks, at most.
inline constexpr size_t kStreamBytesMax = 512 << 10;

// A running observation. The destructor stops it.
class Observation {
 public:
  ~Observation();
  Observation(Observation&&) noexcept;
  Observation& operator=(Observation&&) noexcept;

  // Ends it: when it returns, no callback runs or will run. Called from one of its own callbacks
  // (the destructor, too), that one is the last.
  void Stop();

  // Until it has ended. Not from its own callbacks.
  void Wait();

  // Everything up to here was told or did not match. Unset before the agent has answered.
  v1::Cursor cursor() const;

 private:
  friend class Client;
  class Impl;
  explicit Observation(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

// A conversation with one child in one stream: sends, disconnects, signals in the order they were
// asked for, and observes. The destructor stops it.
//
// A lost connection is resumed, and what is not answered yet is asked for again, a send as a repeat
// of its request id, so that nothing is done twice. One that the agent may have forgotten is not
// sent but failed with OUTCOME_UNKNOWN; so is a signal, which is never repeated.
class Attachment {
 public:
  // Asked for and not answered: beyond this the methods wait.
  static constexpr size_t kRequestsMax = 1024;
  static constexpr size_t kRequestsBytesMax = 1 << 20;

  struct Options {
    std::optional<v1::Observation> observation = {};  // unset: nothing is observed
    // The first failure ends it, with that error, whose metadata has the request's `number`.
    bool stop_on_failure = false;
    Observer observer = {};
    std::function<void(int64_t through)> on_ack = {};  // answered up to here
    // One that was refused, for this reason; before the ack that covers it.
    std::function<void(int64_t number, const absl::Status&)> on_failed = {};
  };

  ~Attachment();
  Attachment(Attachment&&) noexcept;
  Attachment& operator=(Attachment&&) noexcept;

  // Each answers its number: 1, 2, 3... Fails when the attachment has ended or is finished, with
  // its end or FAILED_PRECONDITION.
  absl::StatusOr<int64_t> Send(std::string_view json);
  absl::StatusOr<int64_t> Disconnect(v1::DisconnectMode mode = v1::DISCONNECT_MODE_FLUSH);
  absl::StatusOr<int64_t> Kill(int signal);

  // Nothing more will be asked for. It ends when everything is answered and, if the observation has
  // an end of its own, that is reached.
  void Finish();

  // Until it has ended, which answers how. Not from its own callbacks.
  absl::Status Wait();

  // As Observation::Stop. What is not answered may have been done or not.
  void Stop();

  v1::Cursor cursor() const;

 private:
  friend class Child;
  class Impl;
  explicit Attachment(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

class Connection;

// A condition on a message: at `pointer`, a JSON Pointer, stands `equals`, a JSON value; without
// one, anything.
v1::ContentFilter Where(std::string pointer, std::optional<std::string> equals = std::nullopt);

// A child that an agent has. The destructor stops listening; the child goes on.
class Child {
 public:
  // What Node's ChildProcess emits. Each may be empty.
  struct Listener {
    std::function<void(std::string_view json)> on_message = {};
    std::function<void()> on_disconnect = {};
    std::function<void(const v1::ExitStatus&)> on_exit = {};
    // Process, channel and output have ended: the last of all.
    std::function<void()> on_close = {};
    // Events missed, messages perhaps among them.
    std::function<void(const v1::Gap&)> on_gap = {};
    // Nothing more will be told, for this reason.
    std::function<void(const absl::Status&)> on_error = {};
  };

  struct SendOptions {
    v1::SendOutcome answer_when = v1::SEND_OUTCOME_WRITTEN;
    std::string request_id = {};           // empty: a fresh one
    std::chrono::milliseconds timeout{0};  // 0: none
  };

  ~Child();
  Child(Child&&) noexcept;
  Child& operator=(Child&&) noexcept;

  const std::string& name() const;             // `agents/{agent}/children/{child}`
  std::string id() const;                      // the last part of it
  int pid() const;                             // 0 if it is not known
  const v1::Child& description() const;        // as it was when forked or found
  absl::StatusOr<v1::Child> Describe() const;  // as it is now

  // Tells what the child does: from its start if it was forked here, from now on if it was found.
  // Once; a second call is FAILED_PRECONDITION.
  absl::Status Listen(Listener listener);

  // Node's send(): OK means that the last byte is in the child's socket. If the answer is lost, the
  // send is repeated by its request id, which sends nothing twice. OUTCOME_UNKNOWN if the agent may
  // have forgotten the first attempt, or if there is no answer within the timeout.
  absl::StatusOr<v1::SendMessageResponse> Send(std::string_view json) const;
  absl::StatusOr<v1::SendMessageResponse> Send(std::string_view json, SendOptions options) const;

  struct CallOptions {
    // Which messages are replies: those that fit all of these, 16 at most. Empty: any message, but
    // for Node's own.
    std::vector<v1::ContentFilter> where = {};
    std::string request_id = {};           // as in SendOptions
    std::chrono::milliseconds timeout{0};  // of all of it; 0: none
  };

  // Sends a message and waits for the reply: the first one from the child that fits and comes after
  // it. The agent looks for it, from before the send, so that none is missed; a lost connection is
  // resumed. Any number of calls may be under way, each with an observer of its own in the agent.
  //
  //   child->Call(R"({"id":7,"ping":1})", {.where = {Where("/id", "7")}, .timeout = 5s})
  //
  // Errors: those of Send, and of Observe, before anything is sent, and
  //
  // * `DEADLINE_EXCEEDED` NO_REPLY_DEADLINE: no reply within the timeout, but the child has the
  //   message, or may have it, as the error says. Only with NOT_SENT_DEADLINE nothing was sent.
  // * `FAILED_PRECONDITION` NO_REPLY_CHANNEL_CLOSED: the child got the message, but its channel
  //   ended before a reply: it has exited, closed it, or was disconnected.
  // * `UNKNOWN` OUTCOME_UNKNOWN: a gap, or the end of the agent; a reply may be in what is missing.
  absl::StatusOr<v1::Event> Call(std::string_view json, CallOptions options) const;

  // Answers at once: what keeps it from standing is how it ends.
  Attachment Attach(Attachment::Options options) const;

  absl::StatusOr<bool> connected() const;

  // Answers when the channel has closed. The process is not signalled.
  absl::Status Disconnect(v1::DisconnectMode mode = v1::DISCONNECT_MODE_FLUSH) const;
  absl::Status Kill(int signal = 15) const;

  // Waits until the process has ended. `unknown_reason` is set where the agent could not tell how.
  absl::StatusOr<v1::ExitStatus> Wait() const;

 private:
  friend class Client;
  Child(std::shared_ptr<Connection> connection, v1::Child description,
        std::optional<v1::Cursor> start);

  std::shared_ptr<Connection> connection_;
  v1::Child description_;
  // An event of the agent that was before whatever is asked for next.
  std::shared_ptr<std::atomic<int64_t>> known_sequence_;
  std::optional<v1::Cursor> start_;
  std::optional<Observation> observation_;
};

// A connection to an agent. Copies share it.
class Client {
 public:
  struct Options {
    std::string target = {};  // `unix:PATH`; empty: $DEKA_TARGET, else the agent's default socket
    std::string name = {};    // what it says of itself, 63 bytes at most; empty: `program/pid`
    // For a socket that nobody serves yet: an agent that was just started.
    std::chrono::milliseconds appear_ms_max{0};
    // For an agent that took the connection to answer.
    std::chrono::milliseconds connect_ms_max{5'000};
    // How long calls and observations wait for an agent that went away.
    std::chrono::milliseconds reconnect_ms_max{30'000};
  };

  static absl::StatusOr<Client> Connect();
  static absl::StatusOr<Client> Connect(Options options);

  const std::string& target() const;

  // Starts a program as a shell would here: found in this process' PATH, its working directory this
  // one's. PROGRAM_NOT_FOUND if it is not.
  absl::StatusOr<Child> Fork(std::string_view program, std::vector<std::string> args = {}) const;
  absl::StatusOr<Child> Fork(v1::ChildSpec spec) const;

  // The agent itself: its processes, its limits, what it holds.
  absl::StatusOr<v1::Agent> GetAgent() const;

  // Puts another program in the agent's place, the one at this absolute path of the agent's host
  // or, if that is empty, the one that is now at the path of the agent's own, and answers when the
  // new agent does: what it tells of itself. Children, observations and attachments go on.
  // UPGRADE_REFUSED says why the agent goes on as it is; OUTCOME_UNKNOWN that no new one has
  // answered within 30 s.
  absl::StatusOr<v1::Agent> Upgrade(std::string_view binary = "") const;

  // A child by display name, id, or resource name.
  absl::StatusOr<Child> Find(std::string_view name) const;

  struct Children {
    std::vector<v1::Child> children;
    v1::Cursor cursor;  // where to observe from, to hear what happens to them afterwards
  };
  // All that fit, in the order they were started.
  absl::StatusOr<Children> List(v1::ChildFilter filter = {}) const;

  // Answers when the observation stands, so that nothing that happens afterwards escapes it; the
  // first callbacks may have come by then. `parent`, `client` and `response_bytes_max` are filled
  // in if they are unset. A name in the filter means the same child after a resume.
  absl::StatusOr<Observation> Observe(v1::ObserveRequest request, Observer observer) const;

  // Finds the child and attaches to it.
  absl::StatusOr<Attachment> Attach(std::string_view child, Attachment::Options options) const;

 private:
  friend class Child;
  explicit Client(std::shared_ptr<Connection> connection);
  // DEADLINE_EXCEEDED without a reason if it does not stand by `deadline`.
  absl::StatusOr<Observation> Observe(v1::ObserveRequest request, Observer observer,
                                      std::chrono::steady_clock::time_point deadline) const;
  std::shared_ptr<Connection> connection_;
};

// What Client::Fork makes of a program's name: its absolute path if it is in PATH or has a slash,
// and this process' working directory.
absl::StatusOr<v1::ChildSpec> SpecOf(std::string_view program, std::vector<std::string> args);

}  // namespace deka

#endif  // SDK_CPP_CLIENT_H_
